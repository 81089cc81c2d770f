"""The checks of arguments: numbers and names of settings, images, labels. Every public function refuses the same.

torch and numpy take seconds to import, and settings are made without them, so the checks of arrays import them.
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from tla_core.stored_images import StoredImages

# Settings -------------------------------------------------------------------------------------------------------------


def check_whole(name: str, value: Any, least: int, highest: float = math.inf) -> int:
    """Return `value` as an int; ValueError unless it is a whole number from `least` to `highest` (2.0 is none)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= highest:
        bound = "" if highest == math.inf else f" and at most {highest}"
        raise ValueError(f"{name} must be a whole number of at least {least}{bound}. Got {value!r}.")
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


def check_one_of(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """Raise ValueError unless `value` is one of the choices; the message lists them, and names the nearest."""
    if value not in choices:
        nearest = did_you_mean(value, choices)
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}. Got {value!r}.{nearest}")


def did_you_mean(value: Any, choices: Iterable[Any], *, likeness: float = 0.7) -> str:
    """" Did you mean ...?" with what is nearly the same among the choices; "" where nothing is."""
    names = {str(choice).lower(): str(choice) for choice in choices}
    near = difflib.get_close_matches(str(value).lower(), names, n=1, cutoff=likeness)
    return f" Did you mean {names[near[0]]}?" if near else ""


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
def as_images(images: Tensor | np.ndarray | list, *, device: torch.device | str | None = None) -> Tensor:
    """Check images and return them as float32 in [0, 1].

    Parameters
    ----------
    images : Tensor, ndarray or list, (n, c, h, w)
        As of `check_images`; uint8 is divided by 255.
    device : torch.device or str, optional
        Where the result is needed; by default it stays where it is.

    Returns
    -------
    Tensor, (n, c, h, w), float32
        The input itself where nothing had to change.

    Raises
    ------
    TypeError, ValueError
        As `check_images`.
    """
    images = check_images(images)
    if device is not None:
        images = images.to(device, non_blocking=True)
    return scale_images(images)


@_outside_inference_mode
def check_images(images: Tensor | np.ndarray | list | StoredImages) -> Tensor | StoredImages:
    """Check images, and leave uint8 as it is: a quarter of the memory.

    Parameters
    ----------
    images : Tensor, ndarray, list of either, or StoredImages; (n, c, h, w)
        uint8 in 0..255, or floats in [0, 1]; what rounding has put outside is clipped. (n, h, w, c) is taken for what
        it is where only the last dimension can be the channels, 1, 3 or 4. A list may hold grey images, (h, w).

    Returns
    -------
    Tensor or StoredImages, (n, c, h, w), uint8 or float32
        The input itself where nothing had to change; without gradient.

    Raises
    ------
    TypeError
        For anything but uint8 or floats.
    ValueError
        For another number of dimensions, an array whose channels may be first or last, values outside [0, 1], or NaN.
    """
    import torch

    from tla_core.stored_images import StoredImages

    if isinstance(images, StoredImages):  # which were checked before
        return images
    original, images = images, _as_tensor(images, "images")
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(
            f"images must be uint8 in 0..255 or float32 in [0, 1]. Got {images.dtype}; convert with .astype('uint8') or"
            " .to(torch.uint8) where they are bytes, and otherwise to floats in [0, 1]."
        )
    if images.ndim != 4:
        shape = tuple(images.shape)
        raise ValueError(
            f"images must have the shape (n, c, h, w). Got {shape}; a single image is x[None], and grey images"
            " (n, h, w) are x[:, None]."
        )
    images = _channels_first(images, is_tensor=isinstance(original, torch.Tensor))
    images = images.detach() if images.requires_grad else images
    return _clipped(images) if images.dtype.is_floating_point else images


def _channels_first(images: Tensor, *, is_tensor: bool) -> Tensor:
    """(n, h, w, c) turned into (n, c, h, w), where the shape says that it is the former.

    A tensor that can be either is (n, c, h, w), as everywhere in PyTorch; of an array there is no such habit.
    """
    _, first, middle, last = images.shape
    if last not in (1, 3, 4) or first == last == 1:
        return images
    if first not in (1, 3, 4):
        # What is a pixel wide, or as wide as it has channels, is a vector or a small map of features, and no image.
        return images.permute(0, 3, 1, 2) if middle > last else images
    only_first_is_square = middle == last and first != middle
    if is_tensor or only_first_is_square:
        return images
    raise ValueError(
        f"images must say where their channels are. Got an array {tuple(images.shape)}, which may be (n, c, h, w) or"
        " (n, h, w, c): pass torch.from_numpy(x) for the former, and for the latter"
        " torch.from_numpy(x).permute(0, 3, 1, 2)."
    )


def _clipped(images: Tensor) -> Tensor:
    """Floats as float32 in [0, 1]; ValueError where they are outside by more than rounding."""
    import torch

    if images.numel():
        low, high = (value.item() for value in torch.aminmax(images))
        slack = max(1e-5, torch.finfo(images.dtype).eps)
        if not (low >= -slack and high <= 1.0 + slack):  # written so that NaN fails too
            raise ValueError(
                f"float images must lie in [0, 1]. Got values from {low:.6g} to {high:.6g}; divide by 255 if they are"
                " bytes, and put normalisation inside the model, not into the images."
            )
        images = images.float()
        return images if low >= 0.0 and high <= 1.0 else images.clamp(0.0, 1.0)
    return images.float()


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
    labels: Tensor | np.ndarray | list, n: int, *, n_classes: int | None = None, name: str = "labels",
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


def as_class_names(names: Sequence[str] | Mapping[int, str]) -> tuple[str, ...]:
    """Names of the classes in order, also of {0: "cat", 1: "dog"}; ValueError where a number is missing."""
    if isinstance(names, str):
        raise ValueError(f"class_names must be a list of names. Got the text {names!r}; did you mean [{names!r}]?")
    if isinstance(names, Mapping):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            numbers_text = ", ".join(map(repr, names))
            raise ValueError(
                f"class_names must name each of the classes 0..{len(names) - 1}. Got names of {numbers_text}."
            )
        names = [names[k] for k in range(len(names))]
    return tuple(str(name) for name in names)


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


def _as_tensor(value: Tensor | np.ndarray | list, name: str) -> Tensor:
    import numpy as np
    import torch

    if isinstance(value, list | tuple):
        value = _stacked(value, name)
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value  # autograd refuses what inference mode made
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "buif":
            raise TypeError(f"{name} must be a numeric array. Got dtype {value.dtype}.")
        # A read-only array (a memory map) is fine, since nothing here writes into it; torch warns all the same.
        value = np.ascontiguousarray(value)
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    if hasattr(value, "__array__"):  # such as a column of pandas
        return _as_tensor(np.asarray(value), name)
    raise TypeError(f"{name} must be a torch tensor, a numpy array, or a list of them. Got {type(value).__name__}.")


def _stacked(values: Sequence, name: str) -> Tensor | np.ndarray:
    """A list of tensors, arrays or numbers as one; grey images (h, w) get a dimension for their channel."""
    import numpy as np
    import torch

    if not len(values):
        raise ValueError(f"{name} must not be empty. Got a list of nothing.")
    try:
        shapes = [np.shape(value) for value in values]
    except ValueError as error:
        text = f"{name} in a list must be arrays, tensors or numbers. Got lists of unequal things; pairs are tuples."
        raise ValueError(text) from error
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise ValueError(
            f"{name} in a list must all have one shape. Got {tuple(shapes[0])} at position 0 and {tuple(shapes[odd])}"
            f" at {odd}; resize or crop them first."
        )
    if isinstance(values[0], torch.Tensor):
        stacked = torch.stack([torch.as_tensor(value) for value in values])
    else:
        stacked = np.stack([np.asarray(value) for value in values])
    return stacked[:, None] if name == "images" and stacked.ndim == 3 else stacked
