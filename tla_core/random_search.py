"""The Square attack (Andriushchenko et al. 2020): a random search that asks the model for outputs alone."""

import torch
from torch import Tensor, nn

from tla_core.ascent import attack_loss
from tla_core.attack_config import AttackConfig
from tla_core.chunks import forward_in_chunks
from tla_core.random_numbers import counter_uniform

_SEED = 0x51A7E5  # so that the search does not draw the numbers of the attack's starts
# A square's share of the image's area; it is halved at these queries of 10,000, and earlier in a shorter search.
_FIRST_SHARE = 0.8
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TILES = 5  # rows and columns of patterns that the L2 search begins with
_LEAST_SIDE_L2 = 3


@torch.no_grad()
def square_search(
    model: nn.Module, x: Tensor, y: Tensor, indices: Tensor, attack: AttackConfig, *, seed: int
) -> Tensor:
    """Search the ball around each image until it is misclassified or the queries, `attack.steps`, are used up.

    Each query sets a square at random, of a size that shrinks: in L-inf to plus or minus `eps` in each channel, in L2
    to a pattern that takes the norm of another square. It is kept where the margin rises. Outputs that are not
    finite count as misclassified.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] -> logits; in eval mode.
    x : Tensor, (n, c, h, w), float32 in [0, 1]
    y : Tensor, (n,)
    indices : Tensor, (n,), int64
        The draws of an image depend on (seed, index) alone.
    attack : AttackConfig
        Its norm, `eps` and `steps` are used.
    seed : int

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
        The candidate of each image with the largest margin.

    Notes
    -----
    The authors' code draws one place of the square for a whole batch; here each image has its own. And in L2, images of
    fewer than five rows or columns begin with one pattern instead of 25.
    """
    propose = _Linf(attack, x) if attack.norm == "linf" else _L2(attack, x)
    numbers = counter_uniform(seed ^ _SEED, indices, 0, propose.draws_at_first)
    best = (x + propose.first(numbers)).clamp_(0, 1)
    margin = _margin(model, best, y)
    left = (margin <= 0).nonzero()[:, 0]
    for query in range(1, attack.steps):
        if not len(left):
            break
        numbers = counter_uniform(seed ^ _SEED, indices[left], query, propose.draws)
        share = _FIRST_SHARE / 2 ** sum(query / attack.steps * 10_000 > at for at in _HALVED_AT)
        images, at = x[left], best[left]
        candidates = (images + propose.next(at - images, numbers, share)).clamp_(0, 1)
        margins = _margin(model, candidates, y[left])
        better = (margins > margin[left]).nonzero()[:, 0]
        margin[left[better]] = margins[better]
        best[left[better]] = candidates[better]
        left = left[margin[left] <= 0]
    return best


def _margin(model: nn.Module, images: Tensor, y: Tensor) -> Tensor:
    """How far another class leads the true one; infinite where an output is not finite."""
    logits = forward_in_chunks(model, images)
    return torch.where(logits.isfinite().all(1), attack_loss(logits, y, "margin"), torch.inf)


class _Linf:
    """Perturbations of plus or minus eps: vertical stripes at first, then squares."""

    def __init__(self, attack: AttackConfig, x: Tensor) -> None:
        self.eps, (_, self.c, self.h, self.w) = attack.eps, x.shape
        self.draws_at_first, self.draws = self.c * self.w, 2 + self.c

    def first(self, numbers: Tensor) -> Tensor:
        stripes = _signs(numbers).view(-1, self.c, 1, self.w) * self.eps
        return stripes.expand(-1, -1, self.h, -1)

    def next(self, delta: Tensor, numbers: Tensor, share: float) -> Tensor:
        side = min(max(round((share * self.h * self.w) ** 0.5), 1), self.h, self.w)
        rows, columns = _places(numbers[:, 0], self.h, side), _places(numbers[:, 1], self.w, side)
        inside = (rows >= 0)[:, None, :, None] & (columns >= 0)[:, None, None, :]
        return torch.where(inside, _signs(numbers[:, 2:])[..., None, None] * self.eps, delta)


class _L2:
    """Perturbations of norm eps: patterns in 25 tiles at first, then patterns that take the norm of other places."""

    def __init__(self, attack: AttackConfig, x: Tensor) -> None:
        self.eps, (_, self.c, self.h, self.w) = attack.eps, x.shape
        self.tiles = _TILES if min(self.h, self.w) >= _TILES else 1
        self.draws_at_first = self.tiles**2 * (1 + self.c)
        self.draws = 5 + self.c

    def first(self, numbers: Tensor) -> Tensor:
        side, n = min(self.h, self.w) // self.tiles, len(numbers)
        turned, signs = numbers.view(n, self.tiles, self.tiles, 1 + self.c).split((1, self.c), dim=3)
        tiles = _patterns(side, turned[..., 0])[..., None, :, :] * _signs(signs)[..., None, None]
        # (n, tile row, tile column, c, side, side) -> (n, c, rows, columns), in the middle of the image.
        block = tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, self.c, self.tiles * side, self.tiles * side)
        delta = numbers.new_zeros(n, self.c, self.h, self.w)
        top, left = (self.h - self.tiles * side) // 2, (self.w - self.tiles * side) // 2
        delta[:, :, top : top + self.tiles * side, left : left + self.tiles * side] = block
        return self._of_norm_eps(delta)

    def next(self, delta: Tensor, numbers: Tensor, share: float) -> Tensor:
        side = max(round((share * self.h * self.w) ** 0.5), _LEAST_SIDE_L2)
        side = min(side + 1 - side % 2, self.h, self.w)  # odd, where the image has room
        new = [_places(numbers[:, 0], self.h, side), _places(numbers[:, 1], self.w, side)]
        old = [_places(numbers[:, 2], self.h, side), _places(numbers[:, 3], self.w, side)]
        in_new, in_old = ((r >= 0)[:, None, :, None] & (k >= 0)[:, None, None, :] for r, k in (new, old))
        # What the second square has, and what is missing to eps, goes to the first: an equal part to each channel.
        missing = (self.eps**2 - _squared(delta, (1, 2, 3))).clamp(min=0) / self.c
        norm = (missing + _squared(delta * (in_new | in_old), (2, 3))).sqrt()
        images = torch.arange(len(delta), device=delta.device)[:, None, None]
        patterns = _patterns(side, numbers[:, 4])[images, new[0].clamp(min=0)[..., None], new[1].clamp(min=0)[:, None]]
        patterns = patterns[:, None] * _signs(numbers[:, 5:])[..., None, None] * in_new
        inside = delta * in_new
        mixed = patterns + inside / (_squared(inside, (2, 3)).sqrt() + 1e-12)
        mixed = mixed / (_squared(mixed, (2, 3)).sqrt() + 1e-12) * norm
        return self._of_norm_eps(torch.where(in_new, mixed, delta * ~in_old))

    def _of_norm_eps(self, delta: Tensor) -> Tensor:
        return delta * (self.eps / (_squared(delta, (1, 2, 3)).sqrt() + 1e-12))


def _squared(delta: Tensor, dims: tuple[int, ...]) -> Tensor:
    return delta.square().sum(dims, keepdim=True)


def _patterns(side: int, turned: Tensor) -> Tensor:
    """Two opposite hills, one above the other or, from `turned` = 1/2 on, side by side: its shape, side, side."""
    pattern = torch.cat([_hill(side // 2, side), -_hill(side - side // 2, side)]).to(turned.device)
    pattern /= pattern.norm().clamp(min=1e-12)
    return torch.where(turned[..., None, None] < 0.5, pattern, pattern.T)


def _hill(rows: int, columns: int) -> Tensor:
    """Nested squares around the middle, the k-th of height 1 / k**2, of norm 1 together."""
    hill = torch.zeros(rows, columns)
    top, left = rows // 2, columns // 2
    for k in range(max(rows, columns) // 2 + 1):
        hill[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** 2
    return hill / hill.norm().clamp(min=1e-12)


def _places(uniform: Tensor, size: int, side: int) -> Tensor:
    """Where each row (or column) of the image is in a square of that side at a random place, (n, size); outside, -1."""
    first = (uniform * (size - side + 1)).floor().clamp(max=size - side)
    place = (torch.arange(size, device=uniform.device) - first[:, None]).long()
    return torch.where((place >= 0) & (place < side), place, -1)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)
