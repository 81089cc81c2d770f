"""Checks of a model that need no attack: random logits, outputs that are no logits, gradients that are none."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.ascent import attack_loss
from tla_core.attacks import attack_mode
from tla_core.chunks import forward_in_chunks
from tla_core.layers import model_device
from tla_core.masking.verdicts import MaskingCheck, largest, share, too_many
from tla_core.validation import as_images, as_labels, check_label_range

# The float32 gradient of the cross-entropy by the logits: below it, what reaches the pixels underflows (1.2e-38).
_SMALLEST_LOGIT_GRADIENT = 1e-30
_SMALLEST_RANDOM_CHANGE = 1e-4  # of the spread of the logits; rounding is 1e-6
_PASSES = 5


def check_stochastic(model: nn.Module, x: Tensor | np.ndarray, *, batch_size: int = 256) -> MaskingCheck:
    """Are the logits of an image the same each time? Five passes over at most 16 images are compared.

    Against a randomised model an attack has to average its gradients (expectation over transformation, Athalye et al.
    2018), and an accuracy is that of one draw. AutoAttack (Croce and Hein 2020) raises the same flag.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the ``largest_change`` of a logit, as a fraction of the spread of the image's logits, and the
        ``changed_share`` of images.
    """
    x = as_images(x, device=model_device(model))[:16]
    with undisturbed(model):
        passes = torch.stack([logits_of(model, x, batch_size) for _ in range(_PASSES)])
    first = passes[0]
    spread = first.amax(1) - first.amin(1)
    # Two infinities or two NaN in the same place are no change.
    same = (passes == first) | (passes.isnan() & first.isnan())
    moved = torch.where(same, 0, (passes - first).abs()).nan_to_num(torch.inf).amax((0, 2))
    change = torch.where(moved == 0, 0.0, moved / spread).nan_to_num(torch.inf)
    changed = change > _SMALLEST_RANDOM_CHANGE
    values = {"largest_change": largest(change), "changed_share": share(changed)}
    if not changed.any():
        return MaskingCheck("stochastic", True, f"{_PASSES} passes over {len(x)} images gave the same logits.", values)
    return MaskingCheck(
        "stochastic",
        False,
        f"the model is random: the logits of {int(changed.sum())} of {len(x)} images changed between {_PASSES} passes,"
        f" by up to {values['largest_change']:.2g} of their spread. An attack follows the gradient of one draw, and the"
        " accuracy is that of another. Switch dropout and noise off, or attack the average of many passes.",
        values,
    )


def check_outputs(
    model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, loss: str = "ce", batch_size: int = 256
) -> MaskingCheck:
    """Are the outputs logits that a loss can be differentiated by: finite, no probabilities, not saturated?

    Probabilities, taken for logits, make the cross-entropy flat (AutoAttack's flag, Croce and Hein 2020); logarithms of
    probabilities do no harm. An image is saturated if its logits lie so far apart (about 69) that the gradient of the
    cross-entropy underflows in float32 (Carlini and Wagner 2016, of defensive distillation); the margin loss does not.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    y : Tensor or ndarray, (n,)
    loss : {"ce", "margin"}
        The loss that is attacked by; saturation counts for ``"ce"`` only.
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the shares ``not_finite``, ``probabilities`` and ``saturated``, and the ``median_gap`` between the two
        largest outputs.
    """
    x, y = as_batch(model, x, y)
    with undisturbed(model):
        logits = logits_of(model, x, batch_size)
    check_label_range(y, logits)
    finite = logits.isfinite().all(1)
    inside = (logits >= 0).all(1) & (logits <= 1 + 1e-6).all(1)
    probabilities = inside & ((logits.sum(1) - 1).abs() < 1e-3) & (logits.shape[1] > 1)
    by_logits = logits.softmax(1).scatter_add(1, y[:, None], -torch.ones_like(logits[:, :1]))
    saturated = finite & (by_logits.abs().amax(1) < _SMALLEST_LOGIT_GRADIENT)
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    gap = (top[:, 0] - top[:, -1])[finite]
    values = {
        "not_finite": share(~finite),
        "probabilities": share(probabilities),
        "saturated": share(saturated),
        "median_gap": gap.median().item() if len(gap) else float("nan"),
    }
    n = len(x)
    if not finite.all():
        message = (
            f"the outputs of {n - int(finite.sum())} of {n} images are not finite: neither a prediction nor a gradient"
            " of them means anything. Find the overflow in the model."
        )
        return MaskingCheck("outputs", False, message, values)
    if n and probabilities.all():
        message = (
            f"the outputs of all {n} images are probabilities (in [0, 1], with the sum 1): taken for logits they make"
            " the loss nearly flat. Leave out the softmax at the end of the model."
        )
        return MaskingCheck("outputs", False, message, values)
    if loss == "ce" and too_many(saturated):
        message = (
            f"the outputs of {int(saturated.sum())} of {n} images are saturated (median gap between the two largest"
            f" logits {values['median_gap']:.3g}): the gradient of the cross-entropy underflows in float32. Divide the"
            " logits by a constant, or attack with loss='margin'."
        )
        return MaskingCheck("outputs", False, message, values)
    message = f"logits of {n} images, with a median gap of {values['median_gap']:.3g} between the two largest."
    return MaskingCheck("outputs", True, message, values)


def check_gradients(
    model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray, loss: str = "ce", *, batch_size: int = 256
) -> MaskingCheck:
    """Does the loss have a gradient by each image: a graph, finite, not exactly zero?

    A model that rounds, thresholds, detaches or leaves torch has none ("shattered gradients", Athalye et al. 2018), and
    a gradient attack stays where it started.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    y : Tensor or ndarray, (n,)
    loss : {"ce", "margin"}
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the shares of images whose gradient is ``zero``, ``not_finite``, or missing (``no_graph``).
    """
    x, y = as_batch(model, x, y)
    count = {"zero": 0, "not_finite": 0, "no_graph": 0}
    with undisturbed(model):
        for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            gradient = _input_gradient(model, part, labels, loss)
            if gradient is None:
                count["no_graph"] += len(part)
                continue
            gradient = gradient.flatten(1)
            count["zero"] += int((gradient == 0).all(1).sum())
            count["not_finite"] += int((~gradient.isfinite()).any(1).sum())
    n = len(x)
    values = {name: k / max(n, 1) for name, k in count.items()}
    bad = torch.arange(n) < sum(count.values())
    if not too_many(bad):
        return MaskingCheck("gradients", True, f"{n - sum(count.values())} of {n} images have a gradient.", values)
    kinds = {"zero": "exactly zero", "not_finite": "not finite", "no_graph": "missing (no graph leads to the image)"}
    found = " and ".join(f"{count[name]} are {words}" for name, words in kinds.items() if count[name])
    return MaskingCheck(
        "gradients",
        False,
        f"of the gradients of {n} images {found}: a gradient attack does nothing there. Attack a differentiable"
        " approximation of what rounds, thresholds or detaches (BPDA), or with a black-box attack.",
        values,
    )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no trace in the model, and torch's random state as before afterwards."""
    device = model_device(model)
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with attack_mode(model), torch.random.fork_rng(devices=devices, device_type=kind):
        yield


def logits_of(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([forward_in_chunks(model, part) for part in x.split(batch_size)])


def as_batch(model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    x = as_images(x, device=model_device(model)).detach()
    return x, as_labels(y, len(x)).to(x.device)


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor | None:
    """Gradient of the loss by the images; None where there is no graph from one to the other."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        try:
            total = attack_loss(model(x), y, loss).sum()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            with torch.no_grad():
                model(x.detach())  # raises again unless it was the graph, as in x.numpy()
            return None
        if not total.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    return gradient
