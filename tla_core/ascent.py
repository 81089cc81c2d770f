"""The loop of every gradient attack: from a start, step by step up a loss, inside the ball around each image.

Two rules say how a step is taken: `_Pgd` (Madry et al. 2018) with a fixed size, and `_Apgd` (Croce and Hein 2020),
which halves the size where the loss no longer rises. Images move independently of each other, so that one that is done
can leave, and the next take its place.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.attack_config import AttackConfig
from tla_core.chunks import images_at_once
from tla_core.random_numbers import counter_uniform

# On a GPU broken images are looked for only every so many steps, since the processor has to wait for the answer.
_GPU_STEPS_BETWEEN_CHECKS = 5
# An iterate that is kept must only be misclassified by more than what folding and batching round (1e-5 of the range).
_ROUNDING = 1e-3
# Of APGD, all from the paper: sections 3.1 and 3.2, and the first checkpoints of table 7.
_MOMENTUM = 0.75
_SHARE_OF_RISES = 0.75
_FIRST_WINDOW, _SHORTER_BY, _LEAST_WINDOW = 0.22, 0.03, 0.06

State = dict[str, Tensor]  # what moves along with each image; the first dimension is that of the images


def attack_loss(logits: Tensor, y: Tensor, loss: str, target: Tensor | None = None) -> Tensor:
    """The loss that an attack ascends, for each image.

    Parameters
    ----------
    logits : Tensor, (n, classes)
    y : Tensor, (n,)
        True classes.
    loss : {"ce", "margin", "dlr"}
        Cross-entropy; ``max_other - z_y``; or the difference of logits ratio, that margin divided by the distance
        between the largest and the third largest logit (Croce and Hein 2020, eq. 6), which scaling logits leaves alone.
    target : Tensor, (n,), optional
        Ascend towards this class instead of away from `y`: minus its cross-entropy; ``z_target - z_y``; or that
        divided by the distance of the largest logit to the mean of the third and the fourth (their eq. 7).

    Returns
    -------
    Tensor, (n,)

    Raises
    ------
    ValueError
        For ``dlr`` of fewer than three classes, or with targets four.
    """
    if loss == "ce":
        sign, label = (1, y) if target is None else (-1, target)
        return sign * F.cross_entropy(logits, label, reduction="none")
    true = logits.gather(1, y[:, None])[:, 0]
    if target is None:
        margin = logits.scatter(1, y[:, None], -torch.inf).amax(1) - true
    else:
        margin = logits.gather(1, target[:, None])[:, 0] - true
    if loss == "margin":
        return margin
    least = 3 if target is None else 4
    if logits.shape[1] < least:
        raise ValueError(
            f"the loss dlr{'' if target is None else ' with targets'} needs a model of at least {least} classes. Got"
            f" {logits.shape[1]}; take loss='margin'."
        )
    largest = logits.topk(least, dim=1).values
    scale = largest[:, 0] - (largest[:, 2] if target is None else largest[:, 2:].mean(1))
    return margin / (scale + 1e-12)


def clearly_broken(logits: Tensor, y: Tensor) -> Tensor:
    """Where another class leads the true one by more than 1, and by more than a tenth of the range of the logits.

    An image whose logits are not finite counts as broken too.

    So clearly that further steps of an ascent do not undo it: of 24,000 attacks on the four networks of `mini` (PGD-20,
    cross-entropy and margin) none did, and four did at a lead of 0.25.

    Parameters
    ----------
    logits : Tensor, (n, classes)
    y : Tensor, (n,)

    Returns
    -------
    Tensor, (n,), bool
    """
    lead = attack_loss(logits, y, "margin")
    return (lead > (0.1 * _range(logits)).clamp(min=1)) | ~logits.isfinite().all(1)


def starting_points(attack: AttackConfig, x: Tensor, seed: int, indices: Tensor, restart: int) -> Tensor:
    """Where the ascent of each image begins: the image, or a point of the ball by (seed, index, restart)."""
    if not attack.random_start:
        return x.clone()
    uniform = counter_uniform(seed, indices, restart, x[0].numel() + (attack.norm == "l2") * (x[0].numel() + 1))
    if attack.norm == "linf":
        delta = (2 * uniform - 1).view_as(x) * attack.eps
    else:
        # Uniform in the ball: a Gaussian direction (Box-Muller), and a radius of u^(1/d).
        size = x[0].numel()
        radius = uniform[:, -1] ** (1 / size)
        gauss = (-2 * torch.log1p(-uniform[:, :size])).sqrt() * torch.cos(2 * torch.pi * uniform[:, size : 2 * size])
        delta = (_unit(gauss, 2) * radius[:, None] * attack.eps).view_as(x)
    return (x + delta).clamp_(0, 1)


def ascend(
    attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, target: Tensor | None = None,
    stop_when_broken: bool = False,
) -> Tensor:  # fmt: skip
    """Take all steps of an attack from a start.

    Parameters
    ----------
    attack : AttackConfig
    model : nn.Module
        In `attack_mode`.
    x, start : Tensor, (n, c, h, w), float32 in [0, 1]
    y : Tensor, (n,), int64
    target : Tensor, (n,), int64, optional
        See `attack_loss`.
    stop_when_broken : bool
        An image takes no further steps once it is misclassified: with PGD, of which the last iterate counts, once it is
        `clearly_broken`; with APGD, which keeps its best iterate, once that is no matter of rounding. On a CPU the next
        image takes its place, so that every chunk is full.

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
        The last iterate of PGD, the best of APGD; with `stop_when_broken` of a broken image the one that shows it.
    """
    rule = (_Apgd if attack.name == "apgd" else _Pgd)(attack, model)
    queue = {"x": x, "y": y, "iterate": start} | ({} if target is None else {"target": target})
    if stop_when_broken:
        return _ascend_until_broken(rule, queue)
    ends = []
    for first in range(0, len(x), images_at_once(x)):
        images = rule.begin(_rows(queue, slice(first, first + images_at_once(x))))
        for _ in range(rule.turns):
            rule.turn(images)
        ends.append(images["result"])
    return torch.cat(ends)


def _ascend_until_broken(rule: "_Pgd | _Apgd", queue: State) -> Tensor:
    x = queue["x"]
    result = queue["iterate"].clone()
    places = images_at_once(x)
    active = torch.arange(min(places, len(x)), device=x.device)  # positions of the images that are under way
    images = rule.begin(_rows(queue, active))
    next_position, turn = len(active), 0
    while len(active):
        iterates = images["iterate"]
        logits = rule.turn(images)
        turn += 1
        if x.device.type != "cpu" and turn % _GPU_STEPS_BETWEEN_CHECKS and turn < rule.turns:
            continue
        broken = rule.broken(images, logits)
        is_done = broken | (images["turn"] == rule.turns)
        done_rows = is_done.nonzero()[:, 0]
        if not len(done_rows):
            continue
        # An image that is done leaves its result, and its place to the next.
        result[active[done_rows]] = _where(broken, iterates, images["result"])[done_rows]
        active_rows = (~is_done).nonzero()[:, 0]
        next_positions = torch.arange(next_position, min(next_position + len(done_rows), len(x)), device=x.device)
        next_position += len(next_positions)
        active = torch.cat([active[active_rows], next_positions])
        images = _rows(images, active_rows)
        if len(next_positions):
            next_images = rule.begin(_rows(queue, next_positions))
            images = {name: torch.cat([images[name], next_images[name]]) for name in images}
    return result


class _Pgd:
    """Steps of a fixed size, along the sign or the direction of the gradient, or of its accumulated momentum."""

    def __init__(self, attack: AttackConfig, model: nn.Module) -> None:
        self.attack, self.model, self.turns = attack, model, attack.steps

    def begin(self, images: State) -> State:
        images = {**images, "result": images["iterate"], "turn": torch.zeros_like(images["y"])}
        return images | ({"velocity": torch.zeros_like(images["x"])} if self.attack.momentum else {})

    def turn(self, images: State) -> Tensor:
        """Move every image by one step, and return the logits from before it."""
        logits, _, gradient = _gradients(self.model, self.attack, images)
        if self.attack.momentum:
            gradient = images["velocity"] = self.attack.momentum * images["velocity"] + _unit(gradient, 1)
        images["iterate"] = images["result"] = _moved(
            self.attack, images["x"], images["iterate"], gradient, self.attack.step_size
        )
        images["turn"] = images["turn"] + 1
        return logits

    def broken(self, images: State, logits: Tensor) -> Tensor:
        return clearly_broken(logits, images["y"])


class _Apgd:
    """Auto-PGD: a step size that halves itself, momentum, and the best iterate kept (Croce and Hein 2020, algorithm 1).

    The first turn is the gradient at the start, each further one that at the next iterate: one turn more than steps.
    """

    def __init__(self, attack: AttackConfig, model: nn.Module) -> None:
        self.attack, self.model, self.turns = attack, model, attack.steps + 1
        # Turn -> steps since the last checkpoint, at the turns that are checkpoints.
        self.windows = torch.zeros(self.turns + 1, dtype=torch.long)
        window, checkpoint = max(int(_FIRST_WINDOW * attack.steps), 1), 0
        while (checkpoint := checkpoint + window) <= attack.steps:
            self.windows[checkpoint] = window
            window = max(window - max(int(_SHORTER_BY * attack.steps), 1), max(int(_LEAST_WINDOW * attack.steps), 1))

    def begin(self, images: State) -> State:
        x, iterate = images["x"], images["iterate"]
        self.windows = self.windows.to(x.device)
        lowest, false = x.new_full((len(x),), -torch.inf), torch.zeros_like(images["y"], dtype=torch.bool)
        return {
            **images, "turn": torch.zeros_like(images["y"]), "previous": iterate,
            # The best iterate so far, which the ascent goes back to; and the one to return, misclassified if any was.
            "best": iterate, "best_gradient": torch.zeros_like(x), "best_loss": lowest,
            "result": iterate, "result_loss": lowest, "result_broken": false,
            "step_size": x.new_full((len(x),), 2 * self.attack.eps),
            # Since the last checkpoint; the published code compares the first loss of all with 0.
            "rises": torch.zeros_like(images["y"]), "last_loss": torch.zeros_like(lowest), "checked_loss": lowest,
            "was_halved": ~false,
        }  # fmt: skip

    def turn(self, images: State) -> Tensor:
        """Measure loss and gradient where each image is, move it, and return the logits from before the step."""
        attack, iterate, first = self.attack, images["iterate"], images["turn"] == 0
        logits, loss, gradient = _gradients(self.model, attack, images)
        # Is this the best iterate, or the one to return?
        is_best = first | (loss > images["best_loss"])
        broken = logits.argmax(1) != images["y"]
        is_result = (broken == images["result_broken"]) & (loss > images["result_loss"])
        is_result |= first | (broken & ~images["result_broken"])
        _replace(images, is_best, best=iterate, best_gradient=gradient, best_loss=loss)
        _replace(images, is_result, result=iterate, result_loss=loss)
        images["result_broken"] = images["result_broken"] | broken
        # At a checkpoint: did the loss rise often enough since the last one?
        images["rises"] = images["rises"] + (~first & (loss > images["last_loss"]))
        images["last_loss"] = torch.where(first, 0.0, loss)
        _replace(images, first, checked_loss=loss)
        window = self.windows[images["turn"]]
        is_checkpoint = window > 0
        rises_seldom = images["rises"] <= _SHARE_OF_RISES * window
        stuck = ~images["was_halved"] & (images["checked_loss"] >= images["best_loss"])
        is_halved = is_checkpoint & (rises_seldom | stuck)
        _replace(
            images,
            is_checkpoint,
            was_halved=is_halved,
            checked_loss=images["best_loss"],
            rises=torch.zeros_like(window),
        )
        # Then it goes on from the best iterate, with half the step size.
        _replace(images, is_halved, step_size=images["step_size"] / 2)
        iterate = _where(is_halved, images["best"], iterate)
        gradient = _where(is_halved, images["best_gradient"], gradient)
        # A step, and a share of the one before.
        step = _moved(attack, images["x"], iterate, gradient, _shaped(images["step_size"], iterate))
        share = _shaped(torch.where(first, 1.0, _MOMENTUM), iterate)
        target = iterate + (step - iterate) * share + (iterate - images["previous"]) * (1 - share)
        images["previous"], images["iterate"] = iterate, _projected(attack, images["x"], target)
        images["turn"] = images["turn"] + 1
        return logits

    def broken(self, images: State, logits: Tensor) -> Tensor:
        lead = attack_loss(logits, images["y"], "margin")
        return (lead > _ROUNDING * _range(logits)) | ~logits.isfinite().all(1)


# A step ---------------------------------------------------------------------------------------------------------------


def _gradients(model: nn.Module, attack: AttackConfig, images: State) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, loss and its gradient where each image is; zeros for what has no gradient."""
    with torch.enable_grad():
        iterate = images["iterate"].detach().requires_grad_()
        logits = _logits_with_graph(model, iterate)
        # The sum, not the mean: an image's gradient must not depend on how many share its batch.
        loss = attack_loss(logits, images["y"], attack.loss, images.get("target"))
        total = loss.sum()
        gradient = torch.autograd.grad(total, iterate, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        warnings.warn(
            "no gradient leads from the model's output to its input: a gradient attack tries its random start and"
            " nothing else. Use a black-box attack, or a differentiable approximation of the model.",
            stacklevel=2,
        )
        gradient = torch.zeros_like(iterate)
    # A pixel without a gradient stays where it is. Not in place: autograd may give one number, expanded.
    return logits.detach(), loss.detach(), gradient.nan_to_num(nan=0.0)


def _moved(attack: AttackConfig, x: Tensor, iterate: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
    direction = gradient.sign() if attack.norm == "linf" else _unit(gradient, 2)
    return _projected(attack, x, iterate + step_size * direction)


def _projected(attack: AttackConfig, x: Tensor, iterate: Tensor) -> Tensor:
    """Into the ball around `x`, and into the pixel range."""
    if attack.norm == "linf":
        return (x + (iterate - x).clamp_(-attack.eps, attack.eps)).clamp_(0, 1)
    delta = iterate - x
    delta *= (attack.eps / _norms(delta, 2)).clamp(max=1)
    return (x + delta).clamp_(0, 1)


def _logits_with_graph(model: nn.Module, x_adv: Tensor) -> Tensor:
    try:
        return model(x_adv).float()
    except RuntimeError as error:
        if "requires grad" not in str(error):  # what .numpy() says inside a model that leaves torch
            raise
        return model(x_adv.detach()).float()


def _unit(images: Tensor, order: int) -> Tensor:
    """Each image divided by its norm; zeros stay zeros. Scaled first, since small gradients squared underflow."""
    largest = images.flatten(1).abs().amax(1).clamp(min=torch.finfo(images.dtype).tiny)
    images = images / _shaped(largest, images)
    return images / _norms(images, order)


def _norms(images: Tensor, order: int) -> Tensor:
    """Norm of each image, shaped to divide by; never 0."""
    return _shaped(torch.linalg.vector_norm(images.flatten(1), order, dim=1).clamp(min=1e-12), images)


# One value for each image ---------------------------------------------------------------------------------------------


def _range(logits: Tensor) -> Tensor:
    return logits.amax(1) - logits.amin(1)


def _shaped(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.ndim - 1))


def _where(mask: Tensor, values: Tensor, old_values: Tensor) -> Tensor:
    return torch.where(_shaped(mask, values), values, old_values)


def _replace(images: State, mask: Tensor, **values: Tensor) -> None:
    """Give the images of the mask new values by name; no tensor is changed in place."""
    for name, value in values.items():
        images[name] = _where(mask, value, images[name])


def _rows(images: State, rows: Tensor | slice) -> State:
    return {name: tensor[rows] for name, tensor in images.items()}
