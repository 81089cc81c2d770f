"""Random searches for adversarial examples, which ask the model for outputs and never for gradients.

The Square attack (Andriushchenko et al. 2020) by `pyautoattack`, and where that is not installed a short search by two
of its ideas: vertical stripes of random signs, then random squares that are kept if they raise the margin.
"""

import importlib.util

import torch
from torch import Tensor, nn

from tla_core.ascent import attack_loss
from tla_core.chunks import forward_in_chunks
from tla_core.config import AttackConfig
from tla_core.random_numbers import counter_uniform

# Candidates of an image that are tried at once, before the best is kept: batches of a few images waste a machine.
_AT_ONCE = 4
_SHARE_OF_STRIPES = 0.2
_FIRST_SIDE, _LAST_SIDE = 0.5, 0.1  # of a square, as a fraction of the image's: large changes first
_SEED = 0x51A7E5  # so that the search does not draw the numbers of the attack's starts


def square_is_installed() -> bool:
    return importlib.util.find_spec("pyautoattack") is not None


@torch.no_grad()
def square_search(
    model: nn.Module, x: Tensor, y: Tensor, attack: AttackConfig, *, seed: int, n_queries: int, batch_size: int
) -> Tensor:
    """The Square attack, from the margin. Sets torch's random state; its draws are for all images at once.

    Parameters
    ----------
    model, x, y, attack, seed, n_queries
        See `random_search`. In L2, images of fewer than 5 rows or columns have no room for its patterns.
    batch_size : int
        Images forwarded at once; changes nothing.

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
        Adversarial images where it found some, and elsewhere `x`.

    Raises
    ------
    ImportError
        Without `pyautoattack`.
    """
    from pyautoattack.square import SquareAttack

    def logits(images: Tensor) -> Tensor:
        return torch.cat([forward_in_chunks(model, part) for part in images.split(batch_size)])

    class Search(SquareAttack):
        def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            """Outputs that are not finite and ties count as broken, below 0: at 0 the search goes on without images."""
            found = logits(x)
            margin = torch.where(found.isfinite().all(1), -attack_loss(found, y, "margin"), -torch.inf)
            margin = torch.where(margin <= 0, margin.clamp(max=-1e-12), margin)
            return margin, margin.clone()

    norm = {"linf": "Linf", "l2": "L2"}[attack.norm]
    search = Search(logits, norm=norm, eps=attack.eps, n_queries=n_queries, seed=seed, device=x.device)
    return search.perturb(x, y)


@torch.no_grad()
def random_search(
    model: nn.Module, x: Tensor, y: Tensor, indices: Tensor, attack: AttackConfig, *, seed: int, n_queries: int
) -> Tensor:
    """Search the ball around each image, until it is misclassified or the queries are used up.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] -> logits; in eval mode.
    x : Tensor, (n, c, h, w), float32 in [0, 1]
    y : Tensor, (n,)
    indices : Tensor, (n,), int64
        The draws of an image depend on (seed, index) alone.
    attack : AttackConfig
        Its norm and `eps` are used.
    seed : int
    n_queries : int
        Forward passes of each image.

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
        The candidate of each image with the largest margin.
    """
    n, c, h, w = x.shape
    best = torch.full((n,), -torch.inf, device=x.device)
    delta = torch.zeros_like(x)
    left = torch.arange(n, device=x.device)
    n_stripes = max(int(n_queries * _SHARE_OF_STRIPES), 1)
    query = 0
    while query < n_queries and len(left):
        stripes = query < n_stripes
        k = min(_AT_ONCE, (n_stripes if stripes else n_queries) - query)
        numbers = counter_uniform(seed ^ _SEED, indices[left], query, k * (c * w + 2)).view(len(left), k, c * w + 2)
        if stripes:
            signs = _signs(numbers[..., 2:]).view(-1, k, c, 1, w).expand(-1, k, c, h, w)
            candidates = signs * _to_the_border(attack, signs)
        else:
            progress = (query - n_stripes) / max(n_queries - n_stripes - 1, 1)
            side = _FIRST_SIDE * (_LAST_SIDE / _FIRST_SIDE) ** progress
            candidates = _with_squares(delta[left], numbers, side, attack)
        images = (x[left, None] + candidates).clamp(0, 1).flatten(0, 1)
        margins = attack_loss(forward_in_chunks(model, images), y[left].repeat_interleave(k), "margin")
        margin, which = margins.nan_to_num(torch.inf).view(-1, k).max(1)
        better = (margin > best[left]).nonzero()[:, 0]
        best[left[better]] = margin[better]
        delta[left[better]] = candidates[better, which[better]]
        left = left[best[left] <= 0]
        query += k
    return (x + delta).clamp_(0, 1)


def _with_squares(delta: Tensor, numbers: Tensor, side: float, attack: AttackConfig) -> Tensor:
    """`delta`, (n, c, h, w), with k other squares in it: (n, k, c, h, w)."""
    (n, c, h, w), k = delta.shape, numbers.shape[1]
    high, wide = max(round(side * h), 1), max(round(side * w), 1)
    top = (numbers[..., 0, None] * (h - high + 1)).floor()
    left = (numbers[..., 1, None] * (w - wide + 1)).floor()
    rows, columns = torch.arange(h, device=delta.device), torch.arange(w, device=delta.device)
    in_rows, in_columns = (rows >= top) & (rows < top + high), (columns >= left) & (columns < left + wide)
    inside = (in_rows[..., :, None] & in_columns[..., None, :])[:, :, None].expand(n, k, c, h, w)
    signs = _signs(numbers[..., 2 : 2 + c])[..., None, None].expand(n, k, c, h, w)
    if attack.norm == "linf":
        return torch.where(inside, signs * attack.eps, delta[:, None])
    moved = delta[:, None] + inside * signs * (attack.eps / (c * high * wide) ** 0.5)
    return moved * _to_the_border(attack, moved)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _to_the_border(attack: AttackConfig, delta: Tensor) -> Tensor | float:
    """The factor that brings perturbations, (n, k, c, h, w), to the border of the ball (signs, for linf)."""
    if attack.norm == "linf":
        return attack.eps
    norms = torch.linalg.vector_norm(delta.flatten(2), dim=2).clamp(min=1e-12)
    return (attack.eps / norms)[..., None, None, None]
