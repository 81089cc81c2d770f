"""Images of the explorer: found, checked, and laid out as PNG, or as thumbnails where they are large."""

from __future__ import annotations

import io
from math import ceil, isqrt
from pathlib import Path
from typing import Any

import numpy as np

from analysis.explore.items import Items

THUMBNAIL = 96  # pixels of the longer side: larger images are in the page at this size
CHANGE_SIZE = 48  # pixels, at most, of the pictures of what an attack changed in those


def collect_images(items: Items, images, adv_images) -> tuple[np.ndarray | None, dict[str, np.ndarray], list[str]]:
    """Clean images (n, h, w, 3 or 1) uint8 of the shown rows, the adversarial ones by model, and notes.

    Parameters
    ----------
    items : Items
    images : array_like, (N, c, h, w) in the row order of the first set, or None
        None looks for the dataset that the sets name.
    adv_images : mapping of model to array_like like images in the row order of its set, or None
        A model that is not in it has those of its set.

    Raises
    ------
    ValueError
        For images that do not fit the items, or that are neither uint8 nor floats in [0, 1].
    """
    notes = []
    n_items, first = len(items.first), next(iter(items.sets))
    if unknown := sorted(set(adv_images or {}) - set(items.sets)):
        raise ValueError(f"adv_images are of {', '.join(unknown)}; expected models: {', '.join(items.sets)}.")
    if images is None:
        clean, note = _found(items)
        notes += [note] if note else []
    else:
        clean = _pixels(images, "images", n_items, items.orders[first][items.rows])
    adversarial = {}
    for name, reps in items.sets.items():
        if name in (adv_images or {}):
            rows = items.orders[name][items.rows]
            adversarial[name] = _pixels(adv_images[name], f"adv_images of {name}", n_items, rows)
        elif reps.adv_images is not None:
            adversarial[name] = _pixels(reps.adv_images, f"adv_images of {name}", n_items, items.rows)
    for name, pixels in adversarial.items():
        if clean is not None and pixels.shape != clean.shape:
            raise ValueError(
                f"adv_images of {name} must be like images, {clean.shape[1:]} (h, w, c). Got {pixels.shape[1:]}."
            )
    return clean, adversarial, notes


def write_images(folder: Path, indices: np.ndarray, sheets: list[np.ndarray | None]) -> None:
    """Write images in full size as ``SHEET-INDEX.png``: sheet 0 holds the clean ones, m + 1 those of model m."""
    from tla_core.checkpoint import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    for sheet, pixels in enumerate(sheets):
        if pixels is None or not is_reduced(pixels):  # the page holds smaller ones as they are
            continue
        for index, image in zip(indices, pixels, strict=True):
            write_atomic(folder / f"{sheet}-{index}.png", png(image))


def png(pixels: np.ndarray) -> bytes:
    """One image (h, w, 1 or 3) as PNG, which loses nothing."""
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _webp(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, "WEBP", quality=85, method=4)
    return buffer.getvalue()


def _picture(pixels: np.ndarray):
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def sprite(pixels: np.ndarray) -> tuple[bytes, dict[str, Any]]:
    """All images (n, h, w, c) side by side in one picture, and where they lie in it.

    As PNG, which loses nothing, if they have at most `THUMBNAIL` pixels a side. Larger ones become thumbnails of that
    size as WebP, and the layout says so (``reduced``).
    """
    reduced = is_reduced(pixels)
    sheet, layout = _sheet(_smaller(pixels, THUMBNAIL) if reduced else pixels)
    layout |= {"type": "image/webp" if reduced else "image/png", "reduced": reduced, "full": list(pixels.shape[1:3])}
    return (_webp(sheet) if reduced else png(sheet)), layout


def is_reduced(pixels: np.ndarray) -> bool:
    """Whether images (n, h, w, c) are too large to be in the page as they are."""
    return max(pixels.shape[1:3]) > THUMBNAIL


def change_sprite(clean: np.ndarray, adversarial: np.ndarray) -> tuple[bytes, dict[str, Any], np.ndarray]:
    """Adversarial minus clean on grey, each amplified as far as fits, with the gains (n,).

    For images that become thumbnails: averaging pixels would cancel most of what an attack added. Every picture holds
    some of the pixels, unaveraged, and the gain is that of the whole image.
    """
    step = max(1, ceil(max(clean.shape[1:3]) / CHANGE_SIZE))
    changes, gains = [], np.ones(len(clean), np.float32)
    for row, (image, adv_image) in enumerate(zip(clean, adversarial, strict=True)):
        change = adv_image.astype(np.int16) - image
        if largest := int(np.abs(change).max()):
            gains[row] = 127 / largest
        changes.append(np.rint(128 + gains[row] * change[::step, ::step]).astype(np.uint8))
    sheet, layout = _sheet(np.stack(changes))
    return _webp(sheet), layout | {"type": "image/webp", "reduced": True}, gains


def _smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    """Images (n, h, w, c) whose longer side has so many pixels."""
    from PIL import Image

    height, width = pixels.shape[1:3]
    size = max(1, round(width * side / max(height, width))), max(1, round(height * side / max(height, width)))
    smaller = [np.asarray(_picture(image).resize(size, Image.Resampling.LANCZOS)) for image in pixels]
    return np.stack(smaller).reshape(len(pixels), size[1], size[0], pixels.shape[-1])


def _sheet(pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Images row by row in a square, and where they lie in it."""
    n, height, width, channels = pixels.shape
    columns = max(1, isqrt(n - 1) + 1)
    lines = ceil(n / columns)
    sheet = np.zeros((lines * columns, height, width, channels), np.uint8)
    sheet[:n] = pixels
    sheet = sheet.reshape(lines, columns, height, width, channels).swapaxes(1, 2)
    layout = {"columns": columns, "height": height, "width": width, "full": [height, width]}
    return sheet.reshape(lines * height, columns * width, channels), layout


def _found(items: Items) -> tuple[np.ndarray | None, str | None]:
    """The images of the dataset that the first set names, or why there are none."""
    from tla_core.datasets import DatasetError, load_dataset

    name, split = (items.first.meta.get(key) for key in ("dataset", "split"))
    if not name or not split:
        return None, "No clean images: the sets do not say which dataset they are of; pass images=."
    try:
        data = load_dataset(name, split)
    except (DatasetError, ValueError) as error:
        return None, f"No clean images: {str(error).splitlines()[0]}"
    indices, source = items.first.indices, items.first.meta.get("source", data.source)
    if source != data.source:
        return None, f"No clean images: the sets are of {source}, and only {data.source} is here; pass images=."
    if indices.min() < 0 or indices.max() >= len(data) or (data.labels.numpy()[indices] != items.first.labels).any():
        return None, f"No clean images: the labels are not those of the {split} images of {name}; pass images=."
    return _pixels(data.images, "images", len(data), indices[items.rows]), None


def _pixels(images, name: str, n: int, rows: np.ndarray) -> np.ndarray:
    images = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if images.ndim != 4 or len(images) != n or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must have the shape ({n}, 1 or 3, h, w). Got {images.shape}.")
    images = images[rows]
    if images.dtype != np.uint8:
        if images.dtype.kind != "f" or not (images.min(initial=0) >= 0 and images.max(initial=0) <= 1):
            span = f"{images.dtype} from {images.min():g} to {images.max():g}"
            raise ValueError(f"{name} must be uint8, or floats in [0, 1] without NaN. Got {span}.")
        images = np.rint(images * 255).astype(np.uint8)  # what a screen can show; no file format of images holds more
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
