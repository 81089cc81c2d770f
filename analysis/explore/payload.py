"""Everything the page needs in one sequence of bytes, the same in a file and in a notebook.

Four bytes (little-endian) give the length of a JSON header; then comes the header, and what it gives the places of:
arrays, and sprites of images as PNG. Of 2,000 points a map (float32) takes 16 kB and 10 neighbours (int32) take 80 kB,
where the features that these are found by take a megabyte at 128 units: so neighbours travel, and features do not.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from analysis.display.style import class_colour
from analysis.explore.images import sprite
from analysis.explore.items import Items
from analysis.explore.measures import Measures

_ALIGNMENT = 8


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

    def images(self, pixels: np.ndarray | None) -> dict[str, int] | None:
        if pixels is None:
            return None
        content, layout = sprite(pixels)
        return layout | self.bytes_(content)


def pack(
    items: Items,
    maps: dict[str, dict[str, np.ndarray]],
    measures: dict[str, Measures],
    images: np.ndarray | None,
    adv_images: dict[str, np.ndarray],
    *,
    k: int,
    notes: list[str],
) -> bytes:
    """The payload of the page."""
    body, shown = _Body(), items.first.subset(items.rows)
    models = []
    for name, reps in items.sets.items():
        mine, measured = reps.subset(items.rows), measures[name]
        models.append(
            {
                "name": name,
                "attack": _attack_text(reps.meta.get("attack")),
                "adversarial": reps.adv_features is not None,
                "maps": {method: body.array(_to_unit_square(of[name]), "float32") for method, of in maps.items()},
                "predictions": body.array(mine.predictions, "int16"),
                "adv_predictions": body.array(mine.adv_predictions, "int16"),
                "inner": body.array(measured.inner, "float32"),
                **{
                    key: body.array(getattr(measured, key), "int32" if "neighbours" in key else "float32")
                    for key in (
                        "class_distance", "adv_class_distance", "moved", "neighbours", "adv_neighbours", "confidence",
                        "adv_confidence",
                    )
                },
                "images": body.images(adv_images.get(name)),
            }
        )  # fmt: skip
    header = {
        "methods": list(maps),
        "class_names": list(items.first.class_names),
        "colours": [class_colour(c) for c in range(len(items.first.class_names))],
        "k": k,
        "notes": [*items.notes, *notes],
        "labels": body.array(shown.labels, "int16"),
        "indices": body.array(shown.indices, "int32"),
        "images": body.images(images),
        "models": models,
    }
    text = json.dumps(header, ensure_ascii=True, allow_nan=False).encode()
    text += b" " * (-(len(text) + 4) % _ALIGNMENT)
    return len(text).to_bytes(4, "little") + text + b"".join(body.parts)


def _to_unit_square(coords: np.ndarray) -> np.ndarray:
    """A map moved and scaled, the same in both directions, into [-1, 1]: all maps have the same axes."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    return (coords - (low + high) / 2) / (max(float((high - low).max()), np.finfo(np.float64).tiny) / 2)


def _attack_text(attack: dict[str, Any] | str | None) -> str:
    if not isinstance(attack, dict):
        return str(attack or "")
    values = [f"{key} {attack[key]:g}" for key in ("eps", "step_size", "steps", "restarts") if key in attack]
    return f"{str(attack.get('name', '')).upper()} {', '.join(values)}".strip()
