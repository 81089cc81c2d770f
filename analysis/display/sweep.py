"""What a setting does to a model: accuracies and distance ratios for each of its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.display.panel import PanelGrid
from analysis.display.style import TEXT_WIDTH, FigureStyle, class_colour
from analysis.display.texts import Legend, add_legend, show_as_text, show_names_as_text
from analysis.frames import frame_of_records

# Panel -> its lines: key in the rows, name in the legend, place of the colour, and marker, as grey print needs it.
_PANELS = {
    "accuracy, %": (
        ("clean", "clean", 0, "o"), ("robust", "PGD100", 1, "s"), ("strongest", "strongest", 2, "^"),
        ("paper", "paper, PGD100", 3, "x"),
    ),
    "r′": (("r_prime", "r′", 0, "o"),),
    "r": (("r", "r", 0, "o"),),
}  # fmt: skip
_COLOURS = tuple(class_colour(k) for k in (0, 6, 3, 9))


class SweepDisplay(PanelGrid):
    """Accuracies, r′ and r against the values of a setting, with error bars.

    Values are evenly spaced: those of the supplement go over orders of magnitude, and some are words.

    Parameters
    ----------
    setting : str
        Name of the setting, below the axes.
    rows : sequence of dict
        As those of `sweep_table`: ``value``; ``clean``, ``robust``, ``strongest`` and ``paper``, fractions; ``r_prime``
        and ``r``; errors under ``clean se`` and so on. What is missing or None is not drawn.

    Attributes
    ----------
    figure_, axes_
        Set by `plot`.

    Raises
    ------
    ValueError
        If there are no rows.
    """

    def __init__(self, setting: str, rows: Sequence[Mapping[str, Any]]) -> None:
        keys = {"value", *(end for panel in _PANELS.values() for key, *_ in panel for end in (key, f"{key} se"))}
        self.setting = setting
        self.rows = [{key: _or_none(value) for key, value in row.items() if key in keys} for row in rows]
        if not self.rows:
            raise ValueError("a SweepDisplay needs at least one value. Got none.")

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(_PANELS),)

    def _new_axes(self, style: FigureStyle) -> np.ndarray:
        import matplotlib.pyplot as plt

        size = style.figure_size(TEXT_WIDTH, 2.6)
        return plt.subplots(1, len(_PANELS), figsize=size, layout="constrained", width_ratios=(2, 1, 1))[1]

    def _draw_all(self, axes: np.ndarray, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        colours = style.colours(_COLOURS)
        for ax, (title, lines) in zip(axes, _PANELS.items(), strict=True):
            places = np.arange(len(self.rows))
            visible_lines = [line for line in lines if np.isfinite(self._values(line[0])).any()]
            handles = []
            for number, (key, name, colour, marker) in enumerate(visible_lines):
                factor = 100 if title.endswith("%") else 1
                shift = 0.12 * (number - (len(visible_lines) - 1) / 2)  # so that error bars do not hide each other
                errors = factor * np.nan_to_num(self._values(f"{key} se"))
                handles.append(ax.errorbar(
                    places + shift, factor * self._values(key), yerr=errors, color=colours[colour % len(colours)],
                    marker=marker, markersize=style.markers(4), linewidth=0.8, elinewidth=0.8, capsize=2,
                    linestyle="none" if key == "paper" else "-", label=name,
                ))  # fmt: skip
            ax.set_xticks(places, [str(row["value"]) for row in self.rows], rotation=45)
            show_as_text(*ax.get_xticklabels())
            ax.set(xlabel=self.setting, title=title)
            show_names_as_text(ax)
            ax.spines[["top", "right"]].set_visible(False)
            if len(lines) > 1:
                names = [name for _, name, *_ in visible_lines]
                add_legend(ax, handles, names, legend, loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=2)

    def _values(self, key: str) -> np.ndarray:
        return np.array([np.nan if row.get(key) is None else row[key] for row in self.rows], dtype=np.float64)

    def numbers(self) -> list[dict]:
        """What the figure shows, as records."""
        return [dict(row) for row in self.rows]

    def to_dataframe(self):
        """One row for each number shown: ``value`` of the setting, ``measure``, its ``mean`` and ``error``."""
        measures = [(key, name) for lines in _PANELS.values() for key, name, *_ in lines]
        return frame_of_records([
            {"value": row["value"], "measure": name, "mean": row[key], "error": row.get(f"{key} se")}
            for row in self.rows for key, name in measures if row.get(key) is not None
        ])  # fmt: skip

    def __repr__(self) -> str:
        return f"SweepDisplay({self.setting}: {', '.join(str(row['value']) for row in self.rows)})"


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
