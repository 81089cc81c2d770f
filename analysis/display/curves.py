"""ROC curves of several models in one plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.display.panel import Panel
from analysis.display.style import LINE_COLOURS, LINE_STYLES, FigureStyle
from analysis.display.texts import Legend, add_legend, show_names_as_text
from analysis.frames import frame, stacked

if TYPE_CHECKING:
    from analysis.detection import DetectionResult

_FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, repr=False, eq=False)
class RocCurve:
    """One line of a `RocDisplay`.

    Parameters
    ----------
    name : str
        In the legend.
    false_positive_rate, true_positive_rate : ndarray, (t,)
        From (0, 0) to (1, 1), ascending.
    auc : float
        Area under the curve.
    auc_error : float, optional
        Its standard error.

    Raises
    ------
    ValueError
        If the rates are not equally many, or do not rise from 0 to 1.
    """

    name: str
    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    auc: float
    auc_error: float | None = None

    def __post_init__(self) -> None:
        shapes = np.shape(self.false_positive_rate), np.shape(self.true_positive_rate)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1 or shapes[0][0] < 2:
            raise ValueError(f"the rates of {self.name!r} must be two sequences of one length. Got {shapes}.")
        for rate in (self.false_positive_rate, self.true_positive_rate):
            if rate[0] != 0 or rate[-1] != 1 or (np.diff(rate) < 0).any():
                raise ValueError(f"the rates of {self.name!r} must rise from 0 to 1. Got {rate[0]:g} to {rate[-1]:g}.")


class RocDisplay(Panel):
    """ROC curves of several models, with their areas in the legend.

    Parameters
    ----------
    curves : sequence of RocCurve
    title : str

    Attributes
    ----------
    figure_, ax_
        Set by `plot`.

    Raises
    ------
    ValueError
        If there are no curves.
    """

    _size = 2.75, 3.6

    def __init__(self, curves, *, title: str = "") -> None:
        self.curves, self.title = list(curves), title
        if not self.curves:
            raise ValueError("a RocDisplay needs at least one curve. Got none.")

    @classmethod
    def from_detections(cls, detections: Mapping[str, DetectionResult], *, title: str = "") -> RocDisplay:
        """Take the curves of ``{model: DetectionResult}``, as `detect` makes them."""
        curves = [
            RocCurve(name, each.false_positive_rate, each.true_positive_rate, each.auc, each.auc_error)
            for name, each in detections.items()
        ]
        return cls(curves, title=title)

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        lines, colours = [], style.colours(LINE_COLOURS)
        for number, curve in enumerate(self.curves):
            lines += ax.plot(
                curve.false_positive_rate, curve.true_positive_rate, color=colours[number % len(colours)],
                linestyle=LINE_STYLES[number % len(LINE_STYLES)], linewidth=1.2, zorder=2,
            )  # fmt: skip
        lines += ax.plot([0, 1], [0, 1], color="#bdbdbd", linewidth=0.8, zorder=1)
        ax.set(
            xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title=self.title,
            xlabel="correctly classified inputs that are flagged", ylabel="misclassified inputs that are flagged",
        )  # fmt: skip
        ax.spines[["top", "right"]].set_visible(False)
        # Below the axes: a curve may run anywhere within them.
        legend_y = -0.17 * style.points(self._size[0]) / (style.width or self._size[0])  # of the height of the axes
        names = [f"{curve.name} (AUC {curve.auc:.3f})" for curve in self.curves] + ["chance (AUC 0.500)"]
        add_legend(ax, lines, names, legend, loc="upper center", bbox_to_anchor=(0.5, legend_y), handlelength=2.6)
        show_names_as_text(ax)

    def numbers(self) -> list[dict]:
        """What the figure shows, as records: each area, and the true positive rate within some false positive rates."""
        return [
            {
                "name": curve.name,
                "auc": curve.auc,
                "auc se": curve.auc_error,
                "true_positive_rate_within": {
                    str(rate): float(curve.true_positive_rate[curve.false_positive_rate <= rate].max())
                    for rate in _FALSE_POSITIVE_RATES
                },
            }
            for curve in self.curves
        ]

    def to_dataframe(self):
        """One row for each point of a curve: ``model``, ``false_positive_rate``, ``true_positive_rate``."""
        return stacked(
            (
                {"model": curve.name},
                frame({
                    "false_positive_rate": curve.false_positive_rate, "true_positive_rate": curve.true_positive_rate,
                }),
            )
            for curve in self.curves
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"RocDisplay({', '.join(f'{curve.name} {curve.auc:.3f}' for curve in self.curves)})"
