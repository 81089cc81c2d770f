"""Effects with their confidence intervals, one below the other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from analysis.display.style import TEXT_WIDTH, FigureStyle, Styled
from analysis.display.texts import show_as_text, show_names_as_text
from analysis.frames import frame_of_records


class EffectsDisplay(Styled):
    """A forest plot: the mean of each effect, its interval, and the differences that it is made of.

    Parameters
    ----------
    labels : sequence of str
    means, lows, highs : sequence of float
        In points; an interval of nan is left out.
    differences : sequence of sequences of float
        One for each seed.
    quantity : str
        What the differences are of, for the axis.

    Attributes
    ----------
    figure_, ax_
        Set by `plot`.

    Raises
    ------
    ValueError
        If there are no effects, or not equally many of each.
    """

    def __init__(
        self, labels: Sequence[str], means: Sequence[float], lows: Sequence[float], highs: Sequence[float],
        differences: Sequence[Sequence[float]], *, quantity: str,
    ) -> None:  # fmt: skip
        counts = {len(part) for part in (labels, means, lows, highs, differences)}
        if len(counts) != 1 or not labels:
            raise ValueError(f"an EffectsDisplay needs as many labels, means, lows and highs. Got {sorted(counts)}.")
        self.labels, self.means, self.lows, self.highs, self.differences = labels, means, lows, highs, differences
        self.quantity = quantity

    def plot(self, ax=None, *, style: FigureStyle | str | None = None) -> EffectsDisplay:
        """Draw into `ax`, or into a new figure; it has no legend. For `style` see the other Displays."""
        import matplotlib.pyplot as plt
        import numpy as np

        with self._drawing(style) as style:
            if ax is None:
                size = (style.width or TEXT_WIDTH, style.points(0.6 + 0.3 * len(self.labels)))
                _, ax = plt.subplots(figsize=size, layout="constrained")
            ax.axvline(0, color="#bdbdbd", linewidth=0.8, zorder=1)
            for row, values in enumerate(self.differences):
                marks = {"color": style.class_colour(1), "markersize": style.markers(6), "zorder": 2}
                ax.plot(values, [row] * len(values), "|", **marks)
            rows = range(len(self.labels))
            ax.hlines(rows, self.lows, self.highs, color=style.class_colour(0), linewidth=1.2, zorder=3)
            ax.plot(self.means, rows, "o", color=style.class_colour(0), markersize=style.markers(4), zorder=4)
            ax.set_yticks(rows, [textwrap.fill(label, 46) for label in self.labels])
            show_as_text(*ax.get_yticklabels())
            ax.set_ylim(len(self.labels) - 0.4, -0.6)  # the first on top
            # An interval of two seeds may be wider than all that was measured: it runs out of the axes.
            reach = 1.5 * max(1.0, max(np.abs(values).max() for values in self.differences))
            ax.set_xlim(-reach, reach)
            ax.set_xlabel(f"difference of {self.quantity}, points")
            show_names_as_text(ax)
            ax.spines[["top", "right"]].set_visible(False)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def to_dataframe(self):
        """One row for each difference: ``effect``, its ``mean``, ``low``, ``high``, and ``difference``, in points."""
        effects = zip(self.labels, self.means, self.lows, self.highs, self.differences, strict=True)
        return frame_of_records([
            {"effect": label, "mean": mean, "low": low, "high": high, "difference": value}
            for label, mean, low, high, values in effects for value in values
        ])  # fmt: skip

    def __repr__(self) -> str:
        return f"EffectsDisplay({len(self.labels)} effects)"
