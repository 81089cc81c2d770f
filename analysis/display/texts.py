"""Legends where the caller wants them, and names that are shown as they are, in lines that fit."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.tables import latex_text

# What the parameter `legend` of every `plot` takes.
Legend = bool | str | Mapping[str, Any]


def add_legend(host, handles: Sequence, names: Sequence[str], legend: Legend = True, **where: Any):
    """A legend of axes or of a figure; None where none is wanted.

    Parameters
    ----------
    host : Axes, Figure or SubFigure
    handles : sequence of artists
    names : sequence of str
        Shown as they are: none is left out for an underscore in front, and none is a formula.
    legend : bool, str or mapping
        Whether there is one; a place of matplotlib's, such as ``"upper left"``; or keyword arguments for its legend.
    **where
        What it is where the caller chooses nothing.
    """
    if legend is False:
        return None
    if isinstance(legend, str):
        legend = {"loc": legend}
    chosen = dict(legend) if isinstance(legend, Mapping) else {}
    if chosen.keys() & {"loc", "bbox_to_anchor"}:
        where = {key: value for key, value in where.items() if key not in ("loc", "bbox_to_anchor")}
    title = {**where, **chosen}.pop("title", "")
    # matplotlib takes a label with an underscore in front for one that is to be left out.
    box = host.legend(list(handles), [" "] * len(names), **{**where, **chosen})
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_text(name)
    show_as_text(*box.get_texts(), *([box.get_title()] if title else []))
    return box


def show_as_text(*texts) -> None:
    """Draw texts letter by letter: ``$5 to $10`` is no formula."""
    for text in texts:
        text.set_parse_math(False)
        if text.get_usetex():
            text.set_text(latex_text(text.get_text()))


def show_names_as_text(ax) -> None:
    """The title and the labels of axes, which may hold names of classes and models."""
    show_as_text(ax.title, ax.xaxis.label, ax.yaxis.label)


def points_of(setting: str) -> float:
    """Points of a text of matplotlib's as it is set now, such as ``"axes.titlesize"``."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=rcParams[setting]).get_size_in_points()


def wrapped(name: str, inches: float, points: float) -> str:
    """A name in lines that are no longer than so many inches, in letters of that size."""
    characters = max(6, int(inches * 72 / (0.58 * points)))
    return "\n".join(textwrap.fill(line, characters) for line in name.split("\n"))


def columns_that_fit(names: Sequence[str], inches: float, points: float, *, limit: int) -> int:
    """How many columns of a legend are not wider than so many inches."""
    for columns in range(min(limit, len(names)), 1, -1):
        length = -(-len(names) // columns)  # a legend is filled column by column
        widest = [max(map(len, names[start : start + length])) for start in range(0, len(names), length)]
        if sum(0.58 * letters + 2 for letters in widest) * points <= 72 * inches:
            return columns
    return 1
