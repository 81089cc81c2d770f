"""Checks of a model that need no attack: logits that are random or depend on the batch, outputs that are no logits."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.attacks import attack_mode
from tla_core.chunks import forward_in_chunks
from tla_core.layers import model_device
from tla_core.masking.verdicts import MaskingCheck, largest, share, too_many
from tla_core.validation import as_images, as_labels, check_label_range

# The float32 gradient of the cross-entropy by the logits: below it, what reaches the pixels underflows (1.2e-38).
_SMALLEST_LOGIT_GRADIENT = 1e-30
# The 16 networks of `small` and `mini` have medians of 0.79 (ALP on Tiny-ImageNet) to 14. With logits times 1e-6 PGD
# left 4 points more of a small network than with its own, and no other check spoke.
_SMALLEST_RANGE = 0.01
_SMALLEST_RANDOM_CHANGE = 1e-4  # of the spread of the logits; rounding is 1e-6
_ROUNDED = 16  # times the rounding error of the largest logit
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
    change = _change_of_logits(passes[0], passes)
    differs = change > _SMALLEST_RANDOM_CHANGE
    values = {"largest_change": largest(change), "changed_share": share(differs)}
    if not differs.any():
        return MaskingCheck("stochastic", True, f"{_PASSES} passes over {len(x)} images gave the same logits.", values)
    return MaskingCheck(
        "stochastic",
        False,
        f"the model is random: the logits of {int(differs.sum())} of {len(x)} images changed between {_PASSES} passes,"
        f" by up to {values['largest_change']:.2g} of their spread. An attack follows the gradient of one draw, and the"
        " accuracy is that of another. Switch dropout and noise off, or attack the average of many passes.",
        values,
    )


def check_batch(
    model: nn.Module, x: Tensor | np.ndarray, company: Tensor | np.ndarray | None = None
) -> MaskingCheck:
    """Are the logits of an image the same alone and in other company? At most 16 images are compared.

    Where they are not, as in a model that normalises over the batch, the accuracy is that of a batch size and an order,
    and an attack moves images by each other's gradients. The other company of the images is their negatives, and as
    many images as an evaluation forwards at once.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    company : Tensor or ndarray, (m, c, h, w), optional
        Images to fill a batch with; by default only the negatives.

    Returns
    -------
    MaskingCheck
        With the ``largest_change`` of a logit, as a fraction of the spread of the image's logits, and the
        ``changed_share`` of images.
    """
    x = as_images(x, device=model_device(model))[:16]
    fillers = [1 - x] if company is None else [as_images(company, device=x.device), 1 - x]
    with undisturbed(model), torch.no_grad():
        batch_logits = model(x).float()
        single_logits = torch.cat([model(image).float() for image in x.split(1)])
        company_logits = model(torch.cat([*fillers, x])).float()[-len(x) :]
    change = _change_of_logits(batch_logits, torch.stack([single_logits, company_logits]))
    differs = change > _SMALLEST_RANDOM_CHANGE
    values = {"largest_change": largest(change), "changed_share": share(differs)}
    if not differs.any():
        return MaskingCheck("batch", True, f"{len(x)} images have the same logits alone and in other batches.", values)
    return MaskingCheck(
        "batch",
        False,
        f"the logits of {int(differs.sum())} of {len(x)} images depend on the rest of their batch, by up to"
        f" {values['largest_change']:.2g} of their spread: every accuracy is that of one batch size and order."
        " Normalise each image by itself, or by statistics that are fixed in eval mode.",
        values,
    )


def check_outputs(
    model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, loss: str = "ce", batch_size: int = 256
) -> MaskingCheck:
    """Are the outputs logits that a loss can be differentiated by: finite, no probabilities, not saturated, not equal?

    Probabilities, taken for logits, make the cross-entropy flat (AutoAttack's flag, Croce and Hein 2020); logarithms of
    probabilities do no harm. An image is saturated if its logits lie so far apart (about 69) that the gradient of the
    cross-entropy underflows in float32 (Carlini and Wagner 2016, of defensive distillation); the margin loss does not.
    Logits that are nearly equal leave the cross-entropy of every image at the logarithm of the number of classes: its
    gradient leads towards all other classes at once, and float32 hardly resolves what it gains.

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
        With the shares ``not_finite`` and of it ``nan``, ``probabilities`` and ``saturated``, the ``median_gap``
        between the two largest outputs, their ``median_range``, and the number of ``classes``.
    """
    # Measure.
    x, y = as_batch(model, x, y)
    with undisturbed(model):
        logits = logits_of(model, x, batch_size)
    check_label_range(y, logits)
    finite, nan = logits.isfinite().all(1), logits.isnan().any(1)
    inside = (logits >= 0).all(1) & (logits <= 1 + 1e-6).all(1)
    probabilities = inside & ((logits.sum(1) - 1).abs() < 1e-3) & (logits.shape[1] > 1)
    by_logits = logits.softmax(1).scatter_add(1, y[:, None], -torch.ones_like(logits[:, :1]))
    saturated = finite & (by_logits.abs().amax(1) < _SMALLEST_LOGIT_GRADIENT)
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    gap = (top[:, 0] - top[:, -1])[finite]
    values = {
        "not_finite": share(~finite),
        "nan": share(nan),
        "probabilities": share(probabilities),
        "saturated": share(saturated),
        "median_gap": gap.median().item() if len(gap) else float("nan"),
        "median_range": (logits.amax(1) - logits.amin(1))[finite].median().item() if len(gap) else float("nan"),
        "classes": float(logits.shape[1]),
    }

    # Judge: the first that is wrong.
    n = len(x)
    if not finite.all():
        message = (
            f"{how_many_not_finite(logits)}: neither a prediction nor a gradient of them means anything. Find the"
            " overflow in the model."
        )
        return MaskingCheck("outputs", False, message, values)
    if logits.shape[1] == 1:
        message = "the model has one output class, so that every image is in it: there is nothing to attack."
        return MaskingCheck("outputs", None, message, values)
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
    if loss == "ce" and values["median_range"] < _SMALLEST_RANGE:
        message = (
            f"the outputs of {n} images lie within {values['median_range']:.3g} (median): so nearly equal that the"
            " cross-entropy hardly tells them apart in float32. Multiply the logits by a constant, or attack with"
            " loss='margin' or 'dlr'."
        )
        return MaskingCheck("outputs", False, message, values)
    message = f"logits of {n} images, with a median gap of {values['median_gap']:.3g} between the two largest."
    return MaskingCheck("outputs", True, message, values)


def how_many_not_finite(logits: Tensor) -> str:
    """The number of images with a logit that is NaN or infinite, in words, from logits (n, classes)."""
    n, bad, nan = len(logits), int((~logits.isfinite()).any(1).sum()), int(logits.isnan().any(1).sum())
    kinds = f"{nan} NaN, {bad - nan} infinite" if 0 < nan < bad else "NaN" if nan else "infinite"
    return f"the outputs of {bad} of {n} images ({bad / max(n, 1):.1%}) are not finite ({kinds})"


def rounding(logits: Tensor) -> Tensor:
    """The rounding error of the logits of each image, (n,), by the coarsest type that holds all of them."""
    finite = logits[logits.isfinite()]
    kinds = [kind for kind in (torch.bfloat16, torch.float16) if torch.equal(finite.to(kind).to(finite.dtype), finite)]
    return torch.finfo(kinds[0] if kinds else torch.float32).eps * logits.abs().amax(1)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no trace in the model, and torch's random state as before afterwards."""
    device = model_device(model)
    kind = "cuda" if device.type == "cpu" else device.type  # whose generator `torch.manual_seed` sets as well
    devices = [device] if kind == device.type else [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with attack_mode(model), torch.random.fork_rng(devices=devices, device_type=kind):
        yield


def logits_of(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Logits of all images, (n, classes), batch by batch and without gradients."""
    return torch.cat([forward_in_chunks(model, part) for part in x.split(batch_size)])


def as_batch(model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Checked images and labels, where the model is."""
    x = as_images(x, device=model_device(model)).detach()
    return x, as_labels(y, len(x)).to(x.device)


def _change_of_logits(first: Tensor, others: Tensor) -> Tensor:
    """Largest change of a logit of each image, (n,), among others (k, n, classes), as a fraction of their spread."""
    spread = first.amax(1) - first.amin(1)
    # Two infinities or two NaN in the same place are no change.
    is_same = (others == first) | (others.isnan() & first.isnan())
    change = torch.where(is_same, 0, (others - first).abs()).nan_to_num(torch.inf).amax((0, 2))
    # Kernels of another batch size add up in another order.
    is_rounding = (change == 0) | (change <= _ROUNDED * rounding(first))
    return torch.where(is_rounding, 0.0, change / spread).nan_to_num(torch.inf)
