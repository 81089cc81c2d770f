"""Everything the page needs in one sequence of bytes, the same in a file and in a notebook.

Four bytes (little-endian) give the length of a JSON header. The header follows, and then the arrays and sprites of
images whose places it names. Neighbours travel, and features do not: for 2,000 points a map (float32) takes 16 kB, 10
neighbours (int32) take 80 kB, and features of 128 units would take a megabyte.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.display.style import class_colour
from analysis.explore.about import describe
from analysis.explore.columns import Column
from analysis.explore.images import change_sprite, is_reduced, png, sprite
from analysis.explore.items import Items
from analysis.explore.measures import Measures
from analysis.representations import RepresentationSet

_ALIGNMENT = 8
_COLOURS = 10  # of the figures; the page has more for 11 to 20 classes
_MEASURED = (
    "class_distance", "adv_class_distance", "moved", "neighbours", "adv_neighbours", "confidence", "adv_confidence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Contents:
    """What the explorer knows, and how its page is to begin.

    Attributes
    ----------
    items : Items
    maps : dict
        {method: {model: (n or 2n, 2)}} of the shown images.
    map_texts : dict
        {method: how it was made}.
    measures : dict of str to Measures
    images, adv_images : ndarray (n, h, w, c) uint8 or None, and a dict of these by model
    columns : tuple of Column
    k : int
        Neighbours that are shown at first.
    notes : list of str
    full_images : {"none", "page", "beside"}
        Where images are in their full size.
    steps : bool
        The models are steps of one, for one panel and a slider.
    """

    items: Items
    maps: dict[str, dict[str, np.ndarray]]
    map_texts: dict[str, str]
    measures: dict[str, Measures]
    images: np.ndarray | None
    adv_images: dict[str, np.ndarray]
    columns: tuple[Column, ...]
    k: int
    notes: list[str]
    full_images: str
    steps: bool


class _Body:
    """The part behind the header, written one after the other."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def bytes_(self, content: bytes) -> dict[str, int]:
        place = {"offset": self.size, "length": len(content)}
        padding = -len(content) % _ALIGNMENT  # typed arrays of a browser start at multiples of their item size
        self.parts += [content, bytes(padding)]
        self.size += len(content) + padding
        return place

    def array(self, values: np.ndarray | None, dtype: str) -> dict[str, Any] | None:
        if values is None:
            return None
        values = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
        return {"dtype": dtype, "shape": list(values.shape), **self.bytes_(values.tobytes())}

    def images(self, pixels: np.ndarray | None, full: bool) -> dict[str, Any] | None:
        """Images side by side; with `full`, each image that became a thumbnail also in full size."""
        if pixels is None:
            return None
        content, layout = sprite(pixels)
        originals = [self.bytes_(png(image)) for image in pixels] if full and layout["reduced"] else None
        return layout | self.bytes_(content) | {"originals": originals}

    def changes(self, clean: np.ndarray | None, adversarial: np.ndarray | None) -> dict[str, Any] | None:
        """What an attack changed in images that became thumbnails; for other images the page finds it itself."""
        if clean is None or adversarial is None or not is_reduced(clean):
            return None
        content, layout, gains = change_sprite(clean, adversarial)
        return layout | self.bytes_(content) | {"gains": self.array(gains, "float32")}


def pack(contents: Contents) -> bytes:
    """The payload of the page."""
    body, items = _Body(), contents.items
    reps, has_originals = items.first.subset(items.rows), contents.full_images == "page"
    frames = _frames(contents.maps, common=contents.steps)
    header = {
        "methods": {method: contents.map_texts.get(method, "") for method in contents.maps},
        "class_names": list(items.first.class_names),
        "colours": [class_colour(c) for c in range(_COLOURS)],
        "k": contents.k,
        "notes": [*items.notes, *contents.notes],
        "total": len(items.first),
        "steps": contents.steps,
        "full_images": contents.full_images,
        "labels": body.array(reps.labels, "int16"),
        "indices": body.array(reps.indices, "int32"),
        "images": body.images(contents.images, has_originals),
        "columns": [
            {
                "name": column.name,
                "categories": column.categories and list(column.categories),
                "values": body.array(column.values, "float64" if column.categories is None else "int16"),
            }
            for column in contents.columns
        ],
        "models": [_model(body, contents, name, frames, has_originals) for name in items.sets],
    }
    text = json.dumps(header, ensure_ascii=True, allow_nan=False).encode()
    text += b" " * (-(len(text) + 4) % _ALIGNMENT)
    return len(text).to_bytes(4, "little") + text + b"".join(body.parts)


def _model(body: _Body, contents: Contents, name: str, frames: dict, full: bool) -> dict[str, Any]:
    reps, measures = contents.items.sets[name], contents.measures[name]
    page_reps = reps.subset(contents.items.rows)
    adv_images = contents.adv_images.get(name)
    return {
        "name": name,
        "about": describe(reps),
        "numbers": _numbers(reps, measures),
        "adversarial": reps.adv_features is not None,
        "maps": {
            method: body.array((model_maps[name] - frames[method][name][:2]) / frames[method][name][2], "float32")
            for method, model_maps in contents.maps.items()
        },
        "frames": {method: frames[method][name] for method in contents.maps},
        "predictions": body.array(page_reps.predictions, "int16"),
        "adv_predictions": body.array(page_reps.adv_predictions, "int16"),
        "inner": body.array(measures.inner, "float32"),
        **{key: body.array(getattr(measures, key), "int32" if "neighbours" in key else "float32") for key in _MEASURED},
        "images": body.images(adv_images, full),
        "changes": body.changes(contents.images, adv_images),
    }


def _numbers(reps: RepresentationSet, measures: Measures) -> dict[str, float | None]:
    """Accuracies and r' over all images, shown or not."""
    r_prime = measures.r_prime if math.isfinite(measures.r_prime) else None
    return {"clean": reps.accuracy, "robust": reps.robust_accuracy, "r_prime": r_prime}


def _frames(maps: dict[str, dict[str, np.ndarray]], *, common: bool) -> dict[str, dict[str, list[float]]]:
    """For each map [x, y, half]: the shift, and the scale of both directions, that bring it into [-1, 1].

    Steps of one model have a common frame, so that a point that stays does not seem to move.
    """
    frames = {}
    for method, model_maps in maps.items():
        if common:
            frame = _frame(np.concatenate(list(model_maps.values())))
            frames[method] = dict.fromkeys(model_maps, frame)
        else:
            frames[method] = {name: _frame(coords) for name, coords in model_maps.items()}
    return frames


def _frame(coords: np.ndarray) -> list[float]:
    low, high = coords.min(axis=0), coords.max(axis=0)
    half = max(float((high - low).max()), np.finfo(np.float64).tiny * 2) / 2
    return [*((low + high) / 2).tolist(), half]
