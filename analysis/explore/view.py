"""The view of a page, as a dictionary that a person can read and write, and its check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from analysis.explore.columns import Column

COLOURS = ("label", "prediction", "outcome", "confidence", "distance", "common")
OUTCOMES = ("withstood", "fooled", "wrong before")
TABS = ("neighbours", "selection", "differences", "items")
_Check = Callable[[Any], bool]


class ViewRules:
    """What a view of some data may hold.

    Parameters
    ----------
    methods, models : tuple of str
    n_classes, stored : int
        Classes, and neighbours of each image that the page has.
    indices : container of int
        Of the images that are shown.
    columns : tuple of Column
    """

    def __init__(self, methods, models, n_classes: int, stored: int, indices, columns: tuple[Column, ...]) -> None:
        self._columns = {column.name: column for column in columns}
        colours = (*COLOURS, *(f"column:{name}" for name in self._columns))
        self._rules: dict[str, tuple[_Check, str]] = {
            "map": _one_of(methods),
            "colour": _one_of(colours),
            "points": _one_of(("both", "clean", "adversarial")),
            "neighbours": (lambda value: _is_int(value) and 1 <= value <= stored, f"an integer from 1 to {stored}"),
            "search": (lambda value: isinstance(value, str), "text"),
            "classes": (_classes(n_classes, at_most=2), f"one or two classes, from 0 to {n_classes - 1}"),
            "outcome": _one_of(OUTCOMES),
            "false_class": (_class(n_classes), f"a class, from 0 to {n_classes - 1}"),
            "model": _one_of(models),
            "columns": (self._are_ranges, "by name of a column [lowest, highest], or a word of it"),
            "hidden": (_list_of(lambda value: isinstance(value, str)), "keys of the legend, a list of text"),
            "groups": (_groups(n_classes), "a list of [name, list of classes]"),
            "pinned": (lambda value: _is_int(value) and value in indices, "the index of an image that is shown"),
            "zoom": (_zooms(models), "by name of a model [x, y, factor]"),
            "panel": _one_of(models),
            "step": _one_of(models),
            "compare": (_pair(models), f"two of {', '.join(models)}"),
            "tab": _one_of(TABS),
            "theme": _one_of(("light", "dark")),
        }

    def check(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """The view, with lists for tuples, as JSON has them.

        Raises
        ------
        ValueError
            For an unknown key, or a value that this data cannot show.
        """
        if not isinstance(view, Mapping):
            raise ValueError(f'view must be a dictionary, such as {{"map": "pca"}}. Got a {type(view).__name__}.')
        view = {key: _plain(value) for key, value in view.items()}
        for key, value in view.items():
            if key not in self._rules:
                raise ValueError(f"view has the key {key!r}; expected some of {', '.join(self._rules)}.")
            allowed, expected = self._rules[key]
            if not allowed(value):
                raise ValueError(f"view[{key!r}] must be {expected}. Got {value!r}.")
        return view

    def _are_ranges(self, value: Any) -> bool:
        if not isinstance(value, dict) or not set(value) <= set(self._columns):
            return False
        for name, choice in value.items():
            categories = self._columns[name].categories
            if categories is not None and choice not in categories:
                return False
            if categories is None and not (_is_numbers(choice, 2, allow_none=True)):
                return False
        return True


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, tuples and mappings as the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_numbers(value: Any, count: int, allow_none: bool = False) -> bool:
    def allowed(each):
        number = isinstance(each, int | float) and not isinstance(each, bool) and each == each
        return number or (allow_none and each is None)

    return isinstance(value, list) and len(value) == count and all(map(allowed, value))


def _one_of(names) -> tuple[_Check, str]:
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"


def _list_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _class(n_classes: int) -> _Check:
    return lambda value: _is_int(value) and 0 <= value < n_classes


def _classes(n_classes: int, at_most: int) -> _Check:
    each = _list_of(_class(n_classes))
    return lambda value: each(value) and 1 <= len(value) <= at_most


def _groups(n_classes: int) -> _Check:
    classes = _classes(n_classes, at_most=n_classes)

    def group(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and classes(value[1])

    return _list_of(group)


def _zooms(models) -> _Check:
    def check(value: Any) -> bool:
        known = isinstance(value, dict) and set(value) <= set(models)
        return known and all(_is_numbers(place, 3) and place[2] > 0 for place in value.values())

    return check


def _pair(models) -> _Check:
    each = _list_of(lambda value: isinstance(value, str) and value in models)
    return lambda value: each(value) and len(value) == 2
