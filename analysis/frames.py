"""Results and figures as data frames of pandas', one observation a row, for tools of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Column -> values of one length, or one value for all rows."""
    import pandas as pd

    n = max((len(values) for values in columns.values() if _is_column(values)), default=1)
    return pd.DataFrame({key: values if _is_column(values) else [values] * n for key, values in columns.items()})


def frame_of_records(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each record."""
    import pandas as pd

    return pd.DataFrame(list(records))


def stacked(parts: Iterable[tuple[Mapping[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    """Frames below each other, each behind columns that say which it is: ``({"model": "UM"}, frame)``."""
    import pandas as pd

    frames = []
    for where, part in parts:
        frames.append(part.copy())
        for place, (key, value) in enumerate(where.items()):
            frames[-1].insert(place, key, value)
    return pd.concat(frames, ignore_index=True)


def points(coords: Any, **columns: Any) -> pd.DataFrame:
    """Points of a map: ``x`` and ``y`` behind other columns."""
    coords = np.asarray(coords)
    return frame({**columns, "x": coords[:, 0], "y": coords[:, 1]})


def names_of(classes: Any, class_names: Sequence[str] | None) -> list:
    """The names of classes, or their numbers where there are no names."""
    return [k if class_names is None else class_names[k] for k in np.asarray(classes).tolist()]


def grid(values: Any, axis: Any, quantity: str) -> pd.DataFrame:
    """``values[i, j]`` at ``(axis[i], axis[j])``."""
    first, second = np.meshgrid(axis, axis, indexing="ij")
    return frame({"first": first.ravel(), "second": second.ravel(), quantity: np.asarray(values).ravel()})


def _is_column(values: Any) -> bool:
    return isinstance(values, (list, tuple, np.ndarray))
