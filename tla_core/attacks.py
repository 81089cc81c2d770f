"""Gradient attacks on images in [0, 1]: one PGD loop, of which FGSM, BIM, MIM and C&W margin are settings."""

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.config import AttackConfig
from tla_core.folding import fold_batch_norm
from tla_core.layers import model_device
from tla_core.validation import as_images, as_labels, check_label_range

# On a CPU images of so many pixels are forwarded at once, 96 of 32 x 32: smaller parts are dominated by the overhead of
# each operation (64 digits at once took 1.1 times as long on the network of `mini`), the activations of larger ones do
# not stay in the cache (128 images of 64 x 64 took 1.6 times as long as 48 on a narrow residual network).
CPU_CHUNK_PIXELS = 96 * 32 * 32
_LEAST_CHUNK = 16
# On a GPU broken images are looked for after so many steps, since the processor has to wait for the answer.
_GPU_STEPS_BETWEEN_CHECKS = 5

# Networks of which one image has shown that they give the same outputs when folded.
_folds_equally: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


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
        Run that one of the restarts alone.
    start : Tensor, (n, c, h, w), optional
        Images within `eps` of `x` at which the first step begins, in place of the attack's own start.
    fold : bool
        Compute the gradients of a configured attack with batch norm folded into the convolutions: faster on a CPU, and
        equal up to rounding.
    stop_when_broken : bool
        An image that is clearly misclassified (see `clearly_broken`) keeps the iterate that shows it and takes no
        further steps. For measuring accuracies: the examples are weaker than those of a whole attack.
    trusted : bool
        Images and labels were checked before, and are where the model is: a GPU is not waited for.

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
    """
    if isinstance(attack, TransferAttack):
        settings = {"generator": generator, "indices": indices, "restart": restart, "start": start, "fold": fold}
        return run_attack(attack.attack, attack.source, x, y, **settings).to(model_device(model))
    if not trusted:
        device = model_device(model)
        x = as_images(x, device=device)
        y = as_labels(y, len(x)).to(device)
        indices = None if indices is None else as_labels(indices, len(x), name="indices").to(device)
    if not len(x):
        return x.clone()
    if model.training:
        warnings.warn(
            "the model is in training mode: it is attacked in eval mode and put back afterwards. Call model.eval()"
            " first, or use attack_mode(model), to say that this is meant.",
            stacklevel=3,
        )
    with attack_mode(model):
        if not isinstance(attack, AttackConfig):
            return _check_returned(attack(model, x, y), x)
        if not trusted:
            with torch.no_grad():
                check_label_range(y[y.argmax()][None], model(x[:1]))
        seed = 0 if generator is None else generator.initial_seed()
        indices = torch.arange(len(x), device=x.device) if indices is None else indices
        model = folded_if_equal(model, x, trusted) if fold else model
        if attack.restarts > 1 and restart is None and start is None:
            return _worst_of_restarts(attack, model, x, y, seed, indices)
        x_adv = _start(attack, x, seed, indices, restart or 0) if start is None else start
        return (_ascend_until_broken if stop_when_broken else _ascend)(attack, model, x, y, x_adv)


@contextmanager
def attack_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and frozen parameters inside the block; modes, `requires_grad` and buffers as before after it."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for buffer, before, version in buffers:
                if buffer._version != version:  # a layer that updates its statistics even in eval mode
                    buffer.copy_(before)


def attack_loss(logits: Tensor, y: Tensor, loss: str) -> Tensor:
    """The loss that an attack ascends, for each image: cross-entropy, or max_other - z_y.

    Parameters
    ----------
    logits : Tensor, (n, classes)
    y : Tensor, (n,)
    loss : {"ce", "margin"}

    Returns
    -------
    Tensor, (n,)
    """
    if loss == "ce":
        return F.cross_entropy(logits, y, reduction="none")
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true[:, 0]


def clearly_broken(logits: Tensor, y: Tensor) -> Tensor:
    """Where another class leads the true one by more than 1, and by more than a tenth of the range of the logits.

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
    spread = logits.amax(1) - logits.amin(1)
    return attack_loss(logits, y, "margin") > (0.1 * spread).clamp(min=1)


def images_at_once(x: Tensor) -> int:
    """Into parts of how many images a batch is split: not at all on a GPU, on a CPU equal parts that fit its cache."""
    if x.device.type != "cpu" or not len(x):
        return max(len(x), 1)
    chunk = max(CPU_CHUNK_PIXELS / x.shape[2:].numel(), _LEAST_CHUNK)
    return math.ceil(len(x) / max(round(len(x) / chunk), 1))


@torch.no_grad()
def forward_in_chunks(model: nn.Module, x: Tensor) -> Tensor:
    """The logits as float32, without gradients; so many images at once as `images_at_once` says."""
    return torch.cat([model(part).float() for part in x.split(images_at_once(x))])


@torch.no_grad()
def folded_if_equal(model: nn.Module, x: Tensor, trusted: bool = False) -> nn.Module:
    """The folded model, or the model itself where folding changes its output: one image tells.

    It does in a network that reads what lies between a convolution and its batch norm. The gradients of another network
    would make the attack weaker than it is said to be. A training asks once, not at each step.
    """
    folded = fold_batch_norm(model)
    if folded is model or (trusted and model in _folds_equally):
        return folded
    with torch.autocast(x.device.type, enabled=False):  # rounded to 8 bits, no two networks are equal
        equal = torch.allclose(folded(x[:1]), model(x[:1]), rtol=1e-3, atol=1e-3)
    if equal:
        _folds_equally.add(model)
    return folded if equal else model


def _ascend(attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """All steps from a start."""
    at_once = images_at_once(x)
    if len(x) > at_once:
        parts = zip(x.split(at_once), y.split(at_once), x_adv.split(at_once), strict=True)
        return torch.cat([_ascend(attack, model, *part) for part in parts])
    velocity = torch.zeros_like(x) if attack.momentum else None
    for _ in range(attack.steps):
        _, x_adv, velocity = _one_step(attack, model, x, y, x_adv, velocity)
    return x_adv


def _ascend_until_broken(attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """`_ascend`, without the steps of images that are clearly broken.

    On a CPU the next images take the places of those that are done, so that every chunk is full.
    """
    result = x_adv.clone()
    on_cpu = x.device.type == "cpu"
    places = images_at_once(x)
    # What moves along with an image: its position, and all that a step reads and changes.
    active = torch.arange(places, device=x.device)
    state = [x[active], y[active], x_adv[active], torch.zeros_like(x[active])]
    left = torch.full((places,), attack.steps, device=x.device)
    following = places
    turn = 0
    while len(active):
        here = state[2]
        logits, moved, velocity = _one_step(attack, model, *state[:3], state[3] if attack.momentum else None)
        state[2], state[3] = moved, state[3] if velocity is None else velocity
        left -= 1
        turn += 1
        if not on_cpu and turn % _GPU_STEPS_BETWEEN_CHECKS and turn < attack.steps:
            continue
        broken = clearly_broken(logits, state[1])
        done = broken | (left == 0)
        finished = done.nonzero()[:, 0]
        if not len(finished):
            continue
        keeps_here = broken[finished].view(-1, *[1] * (x.ndim - 1))
        result[active[finished]] = torch.where(keeps_here, here[finished], moved[finished])
        stay = (~done).nonzero()[:, 0]
        new = torch.arange(following, min(following + len(finished), len(x)), device=x.device)
        following += len(new)
        active = torch.cat([active[stay], new])
        fresh = (x[new], y[new], x_adv[new], torch.zeros_like(x[new]))
        state = [torch.cat([old[stay], more]) for old, more in zip(state, fresh, strict=True)]
        left = torch.cat([left[stay], torch.full((len(new),), attack.steps, device=x.device)])
    return result


def _one_step(
    attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, velocity: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The logits at `x_adv`, the next iterate, and the next velocity."""
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        logits = _logits_with_graph(model, x_adv)
        # The sum, not the mean: an image's gradient must not depend on how many share its batch.
        loss = attack_loss(logits, y, attack.loss).sum()
        gradient = torch.autograd.grad(loss, x_adv, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        warnings.warn(
            "no gradient leads from the model's output to its input: a gradient attack tries its random start and"
            " nothing else. Use a black-box attack, or a differentiable approximation of the model.",
            stacklevel=2,
        )
        gradient = torch.zeros_like(x)
    gradient.nan_to_num_(nan=0.0)  # a pixel without a gradient stays where it is
    if velocity is not None:
        velocity = attack.momentum * velocity + _unit(gradient, 1)
        gradient = velocity
    return logits.detach(), _step_and_project(attack, x, x_adv.detach(), gradient), velocity


def _step_and_project(attack: AttackConfig, x: Tensor, x_adv: Tensor, gradient: Tensor) -> Tensor:
    if attack.norm == "linf":
        moved = x_adv + attack.step_size * gradient.sign()
        return (x + (moved - x).clamp_(-attack.eps, attack.eps)).clamp_(0, 1)
    delta = x_adv + attack.step_size * _unit(gradient, 2) - x
    delta *= (attack.eps / _norms(delta, 2)).clamp(max=1)
    return (x + delta).clamp_(0, 1)


def _worst_of_restarts(
    attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, seed: int, indices: Tensor
) -> Tensor:
    worst = worst_key = None
    for restart in range(attack.restarts):
        x_adv = _ascend(attack, model, x, y, _start(attack, x, seed, indices, restart))
        logits = forward_in_chunks(model, x_adv)
        broken = logits.argmax(1) != y
        loss = attack_loss(logits, y, attack.loss)
        if worst is None:
            worst, worst_key = x_adv, (broken, loss)
            continue
        worse = (broken & ~worst_key[0]) | ((broken == worst_key[0]) & (loss > worst_key[1]))
        worst = torch.where(worse[:, None, None, None], x_adv, worst)
        worst_key = (broken | worst_key[0], torch.where(worse, loss, worst_key[1]))
    return worst


def _start(attack: AttackConfig, x: Tensor, seed: int, indices: Tensor, restart: int) -> Tensor:
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


def counter_uniform(seed: int, indices: Tensor, restart: int, size: int) -> Tensor:
    """Uniform numbers that depend on (seed, index, restart, position) alone, and not on the device.

    Each is the hash of its coordinates: the 32-bit finaliser of MurmurHash3 (Appleby, public domain), in int64
    arithmetic since torch multiplies no unsigned integers.

    Parameters
    ----------
    seed : int
    indices : Tensor, (n,), int64
    restart, size : int

    Returns
    -------
    Tensor, (n, size), float32 in [0, 1)
    """
    key = _mix(torch.tensor((seed ^ 0x5BD1E995) & 0xFFFFFFFF))  # the constant, since 0 is mixed to 0
    key = _mix(_mix(key ^ ((seed >> 32) & 0xFFFFFFFF)) ^ restart).to(indices.device, non_blocking=True)
    key = _mix(_mix(key ^ (indices & 0xFFFFFFFF)) ^ (indices >> 32))
    positions = torch.arange(size, device=indices.device) * 0x9E3779B9 & 0xFFFFFFFF
    return (_mix(_mix(key)[:, None] ^ positions) >> 8).float() * 2.0**-24


def _mix(h: Tensor) -> Tensor:
    h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)


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
    images = images / largest.view(-1, *[1] * (images.ndim - 1))
    return images / _norms(images, order)


def _norms(images: Tensor, order: int) -> Tensor:
    """Norm of each image, shaped to divide by; never 0."""
    norms = torch.linalg.vector_norm(images.flatten(1), order, dim=1).clamp(min=1e-12)
    return norms.view(-1, *[1] * (images.ndim - 1))


def _check_returned(x_adv: object, x: Tensor) -> Tensor:
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise ValueError(f"the attack must return images of the shape {tuple(x.shape)}. Got {got}.")
    return as_images(x_adv.detach(), device=x.device)
