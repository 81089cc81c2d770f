"""Gradient attacks on images in [0, 1]: one PGD loop, of which FGSM, BIM, MIM and C&W margin are settings."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.config import AttackConfig
from tla_core.folding import fold_batch_norm
from tla_core.layers import model_device
from tla_core.validation import as_images, as_labels, check_label_range

# On a CPU so many images at once: their activations stay in the cache. 256 at once take 1.1 to 1.4 times as long for
# each image (benchmarks/attack_gradient.py).
_CPU_CHUNK = 64

Attack = AttackConfig | Callable[[nn.Module, Tensor, Tensor], Tensor]


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
    fold: bool = False,
) -> Tensor:
    """Run an attack given by its configuration, or by a callable ``(model, x, y) -> x_adv``. See `pgd`.

    `restart` runs that one of the restarts alone. `fold` computes the gradients of a configured attack with batch norm
    folded into the convolutions: 1.5 to 1.9 times as fast on a CPU, and equal up to rounding.
    """
    device = model_device(model)
    x = as_images(x, device=device)
    y = as_labels(y, len(x)).to(device)
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
        seed = 0 if generator is None else generator.initial_seed()
        if indices is None:
            indices = torch.arange(len(x))
        indices = as_labels(indices, len(x), name="indices").to(device)
        model = _folded_if_equal(model, x) if fold else model
        if attack.restarts == 1 or restart is not None:
            return _one_start(attack, model, x, y, _start(attack, x, seed, indices, restart or 0))
        return _worst_of_restarts(attack, model, x, y, seed, indices)


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


@torch.no_grad()
def _folded_if_equal(model: nn.Module, x: Tensor) -> nn.Module:
    """The folded model, or the model itself where folding changes its output: one image tells.

    It does in a network that reads what lies between a convolution and its batch norm. The gradients of another network
    would make the attack weaker than it is said to be.
    """
    folded = fold_batch_norm(model)
    if folded is model or torch.allclose(folded(x[:1]), model(x[:1]), rtol=1e-3, atol=1e-3):
        return folded
    return model


def _one_start(attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    if x.device.type == "cpu" and len(x) > _CPU_CHUNK:
        parts = zip(x.split(_CPU_CHUNK), y.split(_CPU_CHUNK), x_adv.split(_CPU_CHUNK), strict=True)
        return torch.cat([_one_start(attack, model, *part) for part in parts])
    velocity = torch.zeros_like(x) if attack.momentum else None
    for step in range(attack.steps):
        with torch.enable_grad():
            x_adv = x_adv.detach().requires_grad_()
            logits = model(x_adv)
            if step == 0:
                check_label_range(y, logits)
            # The sum, not the mean: an image's gradient must not depend on how many share its batch.
            (gradient,) = torch.autograd.grad(attack_loss(logits, y, attack.loss).sum(), x_adv)
        if velocity is not None:
            velocity = attack.momentum * velocity + gradient / _norms(gradient, 1)
            gradient = velocity
        x_adv = _step_and_project(attack, x, x_adv.detach(), gradient)
    return x_adv


def _step_and_project(attack: AttackConfig, x: Tensor, x_adv: Tensor, gradient: Tensor) -> Tensor:
    if attack.norm == "linf":
        moved = x_adv + attack.step_size * gradient.sign()
        return (x + (moved - x).clamp_(-attack.eps, attack.eps)).clamp_(0, 1)
    delta = x_adv + attack.step_size * gradient / _norms(gradient, 2) - x
    delta *= (attack.eps / _norms(delta, 2)).clamp(max=1)
    return (x + delta).clamp_(0, 1)


def _worst_of_restarts(
    attack: AttackConfig, model: nn.Module, x: Tensor, y: Tensor, seed: int, indices: Tensor
) -> Tensor:
    worst = worst_key = None
    for restart in range(attack.restarts):
        x_adv = _one_start(attack, model, x, y, _start(attack, x, seed, indices, restart))
        with torch.no_grad():
            logits = model(x_adv)
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
        delta = (gauss / _norms(gauss, 2) * radius[:, None] * attack.eps).view_as(x)
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
    key = _mix(_mix(key ^ ((seed >> 32) & 0xFFFFFFFF)) ^ restart).to(indices.device)
    key = _mix(_mix(key ^ (indices & 0xFFFFFFFF)) ^ (indices >> 32))
    positions = torch.arange(size, device=indices.device) * 0x9E3779B9 & 0xFFFFFFFF
    return (_mix(_mix(key)[:, None] ^ positions) >> 8).float() * 2.0**-24


def _mix(h: Tensor) -> Tensor:
    h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)


def _norms(images: Tensor, order: int) -> Tensor:
    """Norm of each image, shaped to divide by; never 0."""
    norms = torch.linalg.vector_norm(images.flatten(1), order, dim=1).clamp(min=1e-12)
    return norms.view(-1, *[1] * (images.ndim - 1))


def _check_returned(x_adv: object, x: Tensor) -> Tensor:
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise ValueError(f"the attack must return images of the shape {tuple(x.shape)}. Got {got}.")
    return as_images(x_adv.detach(), device=x.device)
