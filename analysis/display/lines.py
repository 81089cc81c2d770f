"""One number of several models over layers, levels or classes, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.display.panel import Panel
from analysis.display.style import LINE_COLOURS, LINE_STYLES, FigureStyle
from analysis.display.texts import Legend, add_legend, columns_that_fit, points_of, show_as_text, show_names_as_text
from analysis.frames import frame_of_records

_MARKERS = ("o", "s", "^", "D", "v", "P")


class LinesDisplay(Panel):
    """Lines, or points beside each other, one for each model.

    The legend of several models is below the axes of a new figure, and within axes that are given.

    Parameters
    ----------
    values : mapping of str to sequence of float, (m,)
        By model; None and nan are not drawn.
    ticks : sequence of str, (m,)
        What stands below each place.
    places : sequence of float, (m,), optional
        Where they lie; by default 0, 1, 2 and so on.
    errors : mapping of str to sequence of float, (m,), optional
        Standard errors.
    quantity, along, title : str
        Of the two axes, and above.
    joined : bool
        Draw lines between the points.
    reference : float, optional
        A thin line across.
    limits : (float, float), optional
        Of the values' axis.

    Attributes
    ----------
    figure_, ax_
        Set by `plot`.

    Raises
    ------
    ValueError
        If there are no models, or not one value and error for each tick.
    """

    _size = 2.55, 2.6

    def __init__(
        self, values: Mapping[str, Sequence[float | None]], ticks: Sequence[str], *,
        places: Sequence[float] | None = None, errors: Mapping[str, Sequence[float | None]] | None = None,
        quantity: str = "", along: str = "", title: str = "", joined: bool = True, reference: float | None = None,
        limits: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        self.values, self.ticks, self.errors = dict(values), list(ticks), dict(errors or {})
        self.places = list(range(len(self.ticks)) if places is None else places)
        self.quantity, self.along, self.title, self.joined, self.reference = quantity, along, title, joined, reference
        self.limits = limits
        lengths = {len(each) for each in (*self.values.values(), *self.errors.values(), self.places)}
        if not self.values or lengths != {len(self.ticks)} or not self.ticks:
            raise ValueError(f"expected models, and {len(self.ticks)} values for each. Got {sorted(lengths)}.")

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        if self.reference is not None:
            ax.axhline(self.reference, color="#bdbdbd", linewidth=0.8, zorder=1)
        lines = [self._line(ax, number, style) for number in range(len(self.values))]
        is_long = max(len(tick) for tick in self.ticks) * len(self.ticks) > 30
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
        ax.set_xticks(self.places, self.ticks, **turned)
        ax.set(xlabel=self.along, ylabel=self.quantity, title=self.title)
        show_as_text(*ax.get_xticklabels())
        show_names_as_text(ax)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(y=0.08)
        if self.limits is not None:
            margin = 0.03 * (self.limits[1] - self.limits[0])
            ax.set_ylim(self.limits[0] - margin, self.limits[1] + margin)
        if len(lines) > 1:
            is_below = in_new_figure and legend is True
            width, points = ax.figure.get_figwidth(), points_of("legend.fontsize")
            columns = columns_that_fit(list(self.values), width, points, limit=3) if is_below else 1
            host, loc = (ax.figure, "outside lower center") if is_below else (ax, "best")
            where = {"loc": loc, "ncols": columns, "handlelength": 2.4, "columnspacing": 1.2}
            add_legend(host, lines, list(self.values), legend, **where)

    def _line(self, ax, number: int, style: FigureStyle):
        """The line of one model, or its points beside those of the others: error bars must not hide each other."""
        name, colours = list(self.values)[number], style.colours(LINE_COLOURS)
        gap = min(np.diff(sorted(self.places)), default=1.0)
        shift = 0 if self.joined else 0.7 * gap * ((number + 0.5) / len(self.values) - 0.5)
        return ax.errorbar(
            np.add(self.places, shift), _floats(self.values[name]), yerr=self._errors(name),
            color=colours[number % len(colours)], marker=_MARKERS[number % len(_MARKERS)],
            linestyle=LINE_STYLES[number % len(LINE_STYLES)] if self.joined else "none",
            markersize=style.markers(3), linewidth=1.1, elinewidth=0.8, capsize=1.5, zorder=2,
        )  # fmt: skip

    def _errors(self, name: str) -> np.ndarray | None:
        return _floats(self.errors[name]) if name in self.errors else None

    def numbers(self) -> list[dict]:
        """What the figure shows, as records."""
        return [
            {"name": name, "values": dict(zip(self.ticks, values, strict=True))} for name, values in self.values.items()
        ]

    def to_dataframe(self):
        """One row for each number: ``model``, ``tick``, ``place``, ``value`` and ``error``; nan where there is none."""
        nothing = [np.nan] * len(self.ticks)
        return frame_of_records([
            {"model": name, "tick": tick, "place": place, "value": value, "error": error}
            for name, values in self.values.items()
            for tick, place, value, error in zip(
                self.ticks, self.places, _floats(values), _floats(self.errors.get(name, nothing)), strict=True
            )
        ])  # fmt: skip

    def __repr__(self) -> str:
        return f"LinesDisplay({self.quantity}: {', '.join(self.values)}; {len(self.ticks)} places)"


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
