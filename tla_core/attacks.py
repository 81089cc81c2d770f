"""Attacks on images in [0, 1]: PGD, of which FGSM, BIM, MIM and C&W margin are settings, APGD, and Square."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.ascent import ascend, attack_loss, starting_points
from tla_core.attack_config import AttackConfig
from tla_core.chunks import forward_in_chunks
from tla_core.folding import folded_if_equal, says_the_same
from tla_core.layers import model_device
from tla_core.modes import attack_mode
from tla_core.random_search import square_search
from tla_core.validation import as_images, as_labels
from tla_core.wrapping import as_classifier


@dataclass(frozen=True)
class TransferAttack:
    """A black-box attack: the examples are made against another model, and shown to the one that is evaluated.

    Parameters
    ----------
    source : nn.Module
        Images in [0, 1] -> logits; an independently trained copy, in the paper's tables.
    attack : AttackConfig
    """

    source: nn.Module
    attack: AttackConfig

    def __str__(self) -> str:
        return f"{self.attack}, transferred from {type(self.source).__name__}"


Attack = AttackConfig | TransferAttack | Callable[[nn.Module, Tensor, Tensor], Tensor]


def pgd(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "ce",
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018): the last iterate, or the worst over several restarts.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] -> logits. Attacked in eval mode, and left as it was found; a model that comes in training
        mode draws a warning.
    x : Tensor or ndarray, (n, c, h, w)
        uint8, or float32 in [0, 1]. Not changed.
    y : Tensor or ndarray, (n,)
        True classes.
    eps, step_size, steps, norm, restarts, random_start, loss, momentum
        See `AttackConfig`. Among restarts a misclassified image beats a correct one, then the higher loss wins.
    generator : torch.Generator, optional
        Only its initial seed is used; None means seed 0. The random start of an image depends on (seed, index,
        restart) alone, on every device, so that splitting a batch or dropping images changes nothing.
    indices : Tensor, (n,), optional
        The images' indices for the random start; by default their positions in `x`.

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
        Adversarial images on the model's device, within `eps` of `x` in the norm.

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or settings.
    """
    settings = AttackConfig(
        norm=norm, eps=eps, step_size=step_size, steps=steps, restarts=restarts, random_start=random_start, loss=loss,
        momentum=momentum,
    )  # fmt: skip
    return run_attack(settings, model, x, y, generator=generator, indices=indices)


def fgsm(model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, eps: float, norm: str = "linf") -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size `eps` from `x`. See `pgd`."""
    return run_attack(AttackConfig(name="fgsm", eps=eps, norm=norm), model, x, y)


def run_attack(
    attack: Attack,
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
    restart: int | None = None,
    start: Tensor | None = None,
    fold: bool = False,
    stop_when_broken: bool = False,
    trusted: bool = False,
) -> Tensor:
    """Run an attack given by its configuration, or by a callable ``(model, x, y) -> x_adv``. See `pgd`.

    Parameters
    ----------
    attack : AttackConfig, TransferAttack or callable
    model, x, y, generator, indices
        As in `pgd`.
    restart : int, optional
        Run one of the attack's starts alone. Those of a targeted attack are counted restart by restart, with one start
        for each target.
    start : Tensor, (n, c, h, w), optional
        Images within `eps` of `x` at which the first step begins, in place of the attack's own start: of its first
        restart, or of `restart`, and so towards one target. A random search takes none.
    fold : bool
        Compute the gradients of a configured attack with batch norm folded into the convolutions: faster on a CPU, and
        equal up to rounding. If the images before the attack, or the examples after it, show otherwise, the model is
        attacked as it is, with a warning.
    stop_when_broken : bool
        An image that is clearly misclassified (see `tla_core.ascent.ascend`) keeps the iterate that shows it and takes
        no further steps. For measuring accuracies: the examples are weaker than those of a whole attack.
    trusted : bool
        Images and labels were checked before, and are where the model is: a GPU is not waited for.

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
    """
    if isinstance(attack, TransferAttack):
        settings = {"generator": generator, "indices": indices, "restart": restart, "start": start, "fold": fold}
        return run_attack(attack.attack, attack.source, x, y, **settings).to(model_device(model))
    # Checks.
    if not trusted:
        device = model_device(model)
        x = as_images(x, device=device)
        y = as_labels(y, len(x), device=device)
        indices = None if indices is None else as_labels(indices, len(x), name="indices", device=device)
        start = None if start is None else _check_start(attack, start, x)
    if not len(x):
        return x.clone()
    if not trusted:
        model = as_classifier(model, x, y)
    if model.training:
        warnings.warn(
            "the model is in training mode: it is attacked in eval mode and put back afterwards. Call model.eval()"
            " first, or use attack_mode(model), to say that this is meant.",
            stacklevel=3,
        )
    # The attack, on the folded network where that says the same.
    with attack_mode(model):
        if not isinstance(attack, AttackConfig):
            with torch.enable_grad():
                x_adv = attack(model, x, y)
            return _check_returned(x_adv, x)
        seed = 0 if generator is None else generator.initial_seed()
        indices = torch.arange(len(x), device=x.device) if indices is None else indices
        one_start = None if restart is None and start is None else restart or 0

        def attacked(network: nn.Module) -> Tensor:
            return _run(attack, network, x, y, seed, indices, one_start, start, stop_when_broken)

        network = folded_if_equal(model, x, trusted) if fold else model
        x_adv = attacked(network)
        if network is not model and not trusted and not says_the_same(network, model, x_adv):
            x_adv = attacked(model)
        return x_adv


def _run(
    attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, seed: int, indices: Tensor, one_start: int | None,
    start: Tensor | None, stop_when_broken: bool,
) -> Tensor:  # fmt: skip
    """One start of an attack, or the worst case of each image over all of them."""
    targets = _targets(attack, model, x, y)
    n_targets = 1 if targets is None else targets.shape[1]
    starts = range(attack.restarts * n_targets) if one_start is None else (one_start,)
    result = result_key = None
    for number in starts:
        if attack.takes_gradients:
            begin = starting_points(attack, x, seed, indices, number) if start is None else start
            target = None if targets is None else targets[:, number % n_targets]
            x_adv = ascend(attack, model, x, y, begin, target=target, stop_when_broken=stop_when_broken)
        else:
            x_adv = square_search(model, x, y, indices, attack, seed=seed + number)
        if len(starts) == 1:
            return x_adv
        logits = forward_in_chunks(model, x_adv)
        broken, loss = ~is_correct(logits, y), attack_loss(logits, y, attack.loss)
        if result is None:
            result, result_key = x_adv, (broken, loss)
            continue
        is_worse = (broken & ~result_key[0]) | ((broken == result_key[0]) & (loss > result_key[1]))
        result = torch.where(is_worse[:, None, None, None], x_adv, result)
        result_key = (broken | result_key[0], torch.where(is_worse, loss, result_key[1]))
    return result


def _targets(attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """The classes that each image is driven to, (n, targets): the wrong ones with the largest clean logits first.

    None for an untargeted attack, and for a model of one class, which knows no wrong one.
    """
    if not attack.targets:
        return None
    logits = forward_in_chunks(model, x).scatter(1, y[:, None], -torch.inf)
    n_targets = attack.n_targets(logits.shape[1])
    return logits.argsort(dim=1, descending=True)[:, :n_targets] if n_targets else None


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """Where the largest logit is that of the true class; nowhere where one is NaN or infinite, (n,), bool."""
    return (logits.argmax(1) == y) & logits.isfinite().all(1)


def _check_start(attack: Attack, start: Tensor | np.ndarray, x: Tensor) -> Tensor:
    """Refuse a start outside the ball: APGD may return it, as its best iterate."""
    if isinstance(attack, AttackConfig) and not attack.takes_gradients:
        raise ValueError(f"start must be None for a random search, which has its own. Got images, for {attack}.")
    start = as_images(start, device=x.device)
    if start.shape != x.shape:
        raise ValueError(f"start must have the shape of the images, {tuple(x.shape)}. Got {tuple(start.shape)}.")
    if isinstance(attack, AttackConfig) and len(x):
        order = 2 if attack.norm == "l2" else torch.inf
        largest = torch.linalg.vector_norm((start - x).flatten(1), order, dim=1).max().item()
        if largest > attack.eps + 1e-5 * max(attack.eps, 1):
            raise ValueError(
                f"start must lie within eps of the images, {attack.eps:g} in {attack.norm}. Got a distance of"
                f" {largest:.6g}."
            )
    return start


def _check_returned(x_adv: object, x: Tensor) -> Tensor:
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        description = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise ValueError(f"the attack must return images of the shape {tuple(x.shape)}. Got {description}.")
    return as_images(x_adv.detach(), device=x.device)
