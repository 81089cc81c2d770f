"""The checks of arguments: numbers and names of settings, images, labels. Every public function refuses the same.

torch and numpy take seconds to import, and settings are made without them, so the checks of arrays import them.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

# Settings -------------------------------------------------------------------------------------------------------------


def check_whole(name: str, value: Any, least: int) -> int:
    """Return `value` as an int; ValueError unless it is a whole number of at least `least` (True and 2.0 are none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}. Got {value!r}.")
    return int(value)


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise ValueError unless `value` is a finite number from `low` to `high`; an open end is not among them."""
    is_finite = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if is_finite and (value > low if open_low else value >= low) and (value < high if open_high else value <= high):
        return
    left = "more than" if open_low else "at least"
    right = "" if high == math.inf else f" and {'less than' if open_high else 'at most'} {high:g}"
    raise ValueError(f"{name} must be a finite number, {left} {low:g}{right}. Got {value!r}.")


def check_radius(name: str, value: Any, norm: str) -> None:
    """Raise ValueError unless `value` is a radius that images in [0, 1] can have in that norm."""
    check_number(name, value, 0.0)
    if norm == "linf" and value > 1:
        hint = f"{value:g}/255" if value <= 255 else "8/255"
        raise ValueError(
            f"{name} must be at most 1 for linf, since images are in [0, 1]. Got {value:g}; did you mean {hint}?"
        )


def check_one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of the choices; the message lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}. Got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False; 1 is neither."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False. Got {value!r}.")


# Images and labels ----------------------------------------------------------------------------------------------------


def _outside_inference_mode(check: Callable) -> Callable:
    """A check whose tensors autograd takes, also where the caller is in torch's inference mode."""

    @functools.wraps(check)
    def outside(*args: Any, **options: Any) -> Any:
        import torch

        with torch.inference_mode(False):
            return check(*args, **options)

    return outside


@_outside_inference_mode
def as_images(images: Tensor | np.ndarray, *, device: torch.device | str | None = None) -> Tensor:
    """Check images and return them as float32 in [0, 1].

    Parameters
    ----------
    images : Tensor or ndarray, (n, c, h, w)
        uint8 in 0..255 (divided by 255), or float32 in [0, 1].
    device : torch.device or str, optional
        Where the result is needed; by default it stays where it is.

    Returns
    -------
    Tensor, (n, c, h, w), float32
        The input itself where nothing had to change.

    Raises
    ------
    TypeError
        For anything but uint8 or float32 arrays.
    ValueError
        For another number of dimensions, values outside [0, 1], or NaN.
    """
    images = check_images(images)
    if device is not None:
        images = images.to(device, non_blocking=True)
    return scale_images(images)


@_outside_inference_mode
def check_images(images: Tensor | np.ndarray) -> Tensor:
    """Check images as `as_images` does, but leave uint8 as it is: a quarter of the memory."""
    import torch

    images = _as_tensor(images, "images")
    if images.dtype not in (torch.uint8, torch.float32):
        raise TypeError(
            f"images must be uint8 in 0..255 or float32 in [0, 1]. Got {images.dtype}; convert with .astype('float32')"
            " or .float() after scaling to [0, 1]."
        )
    if images.ndim != 4:
        shape = tuple(images.shape)
        raise ValueError(f"images must have the shape (n, c, h, w). Got {shape}; a single image is x[None].")
    if images.dtype == torch.float32 and images.numel():
        low, high = (value.item() for value in torch.aminmax(images.detach()))
        if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
            raise ValueError(
                f"float images must lie in [0, 1]. Got values from {low:.6g} to {high:.6g}; divide by 255 if they are"
                " bytes, and put normalisation inside the model, not into the images."
            )
    return images


@_outside_inference_mode
def scale_images(images: Tensor) -> Tensor:
    """Turn checked images into float32 in [0, 1]."""
    import torch

    images = images.float().div_(255) if images.dtype == torch.uint8 else images
    # Networks that flatten with .view need it; images of one channel count as contiguous in either layout.
    images = images.contiguous()
    _, c, h, w = images.shape
    return images.as_strided(images.shape, (c * h * w, h * w, w, 1), images.storage_offset()) if c == 1 else images


@_outside_inference_mode
def as_labels(
    labels: Tensor | np.ndarray, n: int, *, n_classes: int | None = None, name: str = "labels",
    device: torch.device | str | None = None,
) -> Tensor:  # fmt: skip
    """Check labels, or other whole numbers called `name`, and return them as int64, (n,).

    Raises
    ------
    TypeError
        If they are not integers.
    ValueError
        If there are not `n` of them, or one is outside 0..n_classes-1.
    """
    import torch

    labels = _as_tensor(labels, name)
    if labels.dtype.is_floating_point or labels.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise TypeError(f"{name} must be integers. Got {labels.dtype}.")
    if labels.shape != (n,):
        raise ValueError(f"{name} must have the shape ({n},), one for each image. Got {tuple(labels.shape)}.")
    labels = labels.to(device, torch.long)
    if labels.numel():
        low, high = (value.item() for value in torch.aminmax(labels))
        if low < 0 or (n_classes is not None and high >= n_classes):
            bound = "0 or more" if n_classes is None else f"in 0..{n_classes - 1}, since there are {n_classes} classes"
            raise ValueError(f"{name} must be {bound}. Got {name} from {low} to {high}.")
    return labels


def check_label_range(labels: Tensor, logits: Tensor) -> None:
    """Raise ValueError where the model has fewer outputs than the labels need, or none per class."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"the model must return logits of the shape ({len(labels)}, classes). Got {tuple(logits.shape)}."
        )
    if labels.numel() and int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels must be in 0..{logits.shape[1] - 1}, since the model has {logits.shape[1]} outputs."
            f" Got the label {int(labels.max())}."
        )


def _as_tensor(value: Tensor | np.ndarray, name: str) -> Tensor:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value  # autograd refuses what inference mode made
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "buif":
            raise TypeError(f"{name} must be a numeric array. Got dtype {value.dtype}.")
        # A read-only array (a memory map) is fine, since nothing here writes into it; torch warns all the same.
        value = np.ascontiguousarray(value)
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    raise TypeError(f"{name} must be a torch tensor or a numpy array. Got {type(value).__name__}.")
