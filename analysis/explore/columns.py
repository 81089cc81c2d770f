"""Columns of one's own: a number or a word for each image, to colour, filter and sort by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.explore.items import Items

# Names of columns that the table for other tools has itself.
RESERVED = (
    "model", "kind", "index", "label", "prediction", "confidence", "outcome", "moved", "class_distance", "image",
)  # fmt: skip
_MOST_CATEGORIES = np.iinfo(np.int16).max


@dataclass(frozen=True, eq=False)
class Column:
    """A column of the shown images.

    Attributes
    ----------
    name : str
    values : ndarray of shape (n,)
        float64 with nan where a number is not known; or, of words, int16 places in `categories`, -1 if not known.
    categories : tuple of str, or None for numbers
    """

    name: str
    values: np.ndarray
    categories: tuple[str, ...] | None = None

    def listed(self) -> list[Any]:
        """Values as Python's, None where they are not known."""
        if self.categories is None:
            return [None if np.isnan(value) else float(value) for value in self.values]
        return [None if code < 0 else self.categories[code] for code in self.values]


def collect_columns(items: Items, columns: Mapping[str, Any] | None) -> tuple[Column, ...]:
    """Columns of the rows that are shown.

    Parameters
    ----------
    items : Items
    columns : mapping of str to sequence of length N, or None
        In the row order of the first set. Numbers; or words, booleans among them. None and nan are not known.

    Raises
    ------
    ValueError
        For another length, an infinite number, a name that the table for other tools needs, or more than 32,767 words.
    """
    if columns is None:
        return ()
    if not isinstance(columns, Mapping):
        raise ValueError(f'columns must be by name, such as {{"brightness": values}}. Got a {type(columns).__name__}.')
    first = next(iter(items.orders.values()))
    return tuple(_column(name, values, len(items.first), first[items.rows]) for name, values in columns.items())


def _column(name: str, values: Any, n: int, rows: np.ndarray) -> Column:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"a column must have a name. Got {name!r}.")
    if name in RESERVED or name.endswith(("_x", "_y")):
        raise ValueError(f"a column cannot be called {name!r}: to_parquet has one of that name. Choose another.")
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    # From a list of words and None, or of words and numbers, numpy would make words of all of them.
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"column {name!r} must have one value for each of the {n} images. Got {values!r:.60}.")
    # pandas has a missing value of its own, which is neither true nor false.
    if not isinstance(values, np.ndarray):
        values = np.array([None if type(value).__name__ == "NAType" else value for value in values], dtype=object)
    array = values
    if array.shape != (n,):
        raise ValueError(f"column {name!r} must have one value for each of the {n} images. Got {array.shape}.")
    array = array[rows]
    if array.dtype.kind in "iuf" or (array.dtype == object and all(_is_number(value) for value in array)):
        numbers = np.array([np.nan if value is None else value for value in array], dtype=np.float64)
        if np.isinf(numbers).any():
            raise ValueError(f"column {name!r} must be finite, or nan where it is not known. Got infinity.")
        return Column(name, numbers)
    words = [None if value is None or value != value else str(value) for value in array.tolist()]
    categories = tuple(sorted({word for word in words if word is not None}))
    if len(categories) > _MOST_CATEGORIES:
        raise ValueError(f"column {name!r} must have at most {_MOST_CATEGORIES} words. Got {len(categories)}.")
    place = {word: number for number, word in enumerate(categories)}
    return Column(name, np.array([-1 if word is None else place[word] for word in words], np.int16), categories)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_))
