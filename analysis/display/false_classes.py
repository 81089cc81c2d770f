"""Figures 1 to 3: where the adversarial examples of a class go, one row per class, one column per model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.display.panel import Panel, PanelGrid, map_axes
from analysis.display.projection import finish_map, scatter_class
from analysis.display.style import CLEAN_COLOUR, FigureStyle
from analysis.display.texts import Legend, add_legend, columns_that_fit, points_of, show_names_as_text, wrapped
from analysis.frames import names_of, points, stacked
from analysis.maps import ClassMap


@dataclass(repr=False)
class FalseClassPanel(Panel):
    """Clean and adversarial examples of one class in one model's map, embedded together.

    Parameters
    ----------
    clean_coords : ndarray, (n, 2)
    adv_coords : ndarray, (m, 2)
    adv_predictions : ndarray, (m,), int
        What the model takes each adversarial example for.
    true_class : int
    class_names : tuple of str
    title : str

    Attributes
    ----------
    figure_, ax_
        Set by `plot`.
    """

    clean_coords: np.ndarray
    adv_coords: np.ndarray
    adv_predictions: np.ndarray
    true_class: int
    class_names: tuple[str, ...]
    title: str = ""

    def __post_init__(self) -> None:
        if len(self.adv_predictions) != len(self.adv_coords):
            raise ValueError(
                f"adv_predictions must have one entry for each of the {len(self.adv_coords)} adversarial points."
                f" Got {len(self.adv_predictions)}."
            )

    @classmethod
    def from_map(cls, class_map: ClassMap, class_names: Sequence[str], *, title: str = "") -> "FalseClassPanel":
        """Take the points of a `ClassMap`, as `map_class` makes it."""
        return cls(
            class_map.clean_coords, class_map.adv_coords, class_map.adv_predictions, class_map.true_class,
            tuple(class_names), title,
        )  # fmt: skip

    @property
    def false_share(self) -> float:
        """Share of the adversarial examples that are taken for a false class."""
        return float((self.adv_predictions != self.true_class).mean()) if len(self.adv_predictions) else float("nan")

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        self._draw(ax, style, self.panel_title)
        handles, names = legend_entries(self.class_names, np.unique(self.adv_predictions), style)
        add_legend(ax, handles, names, legend, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)

    @property
    def panel_title(self) -> str:
        """What stands above the panel: its title, or which share is false."""
        share = f"{self.false_share:.0%} false" if len(self.adv_predictions) else "no adversarial examples"
        return self.title or share

    def _draw(self, ax, style: FigureStyle, title: str, **title_options) -> None:
        # What is rare must not be buried: large clean images below, small examples that keep their class on top of
        # them, and then the false classes from the most to the least frequent.
        classes, counts = np.unique(self.adv_predictions, return_counts=True)
        order = [int(k) for k in classes[np.argsort(-counts, kind="stable")] if k != self.true_class]
        ax.scatter(*self.clean_coords.T, s=style.area(5), c=CLEAN_COLOUR, linewidths=0, rasterized=True)
        for k, size in ((self.true_class, 2), *((k, 6) for k in order)):
            scatter_class(ax, self.adv_coords[self.adv_predictions == k], k, style, size=size)
        finish_map(ax)
        ax.set_title(title, pad=2, **title_options)
        show_names_as_text(ax)
        self.ax_, self.figure_ = ax, ax.figure

    def to_dataframe(self):
        """One row for each point: ``class``, ``kind`` (``"clean"`` or ``"adversarial"``), ``predicted`` (of adversarial
        examples), ``x``, ``y``."""
        clean = points(self.clean_coords, predicted=None)
        adversarial = points(self.adv_coords, predicted=names_of(self.adv_predictions, self.class_names))
        own = {"class": self.class_names[self.true_class]}
        return stacked([({**own, "kind": "clean"}, clean), ({**own, "kind": "adversarial"}, adversarial)])

    def __repr__(self) -> str:
        name = self.class_names[self.true_class]
        return f"FalseClassPanel({name!r}, {len(self.adv_coords)} adversarial examples, {self.false_share:.1%} false)"


class FalseClassesDisplay(PanelGrid):
    """A grid of `FalseClassPanel`, one row per true class and one column per model, with one legend.

    Parameters
    ----------
    rows : sequence of sequences of FalseClassPanel
        Panels of one row have the same true class.
    column_titles : sequence of str
        What is said above each column: the model, and its robust accuracy.

    Attributes
    ----------
    figure_, axes_
        Set by `plot`.

    Raises
    ------
    ValueError
        If the rows are not equally long, or a row mixes true classes.
    """

    def __init__(self, rows: Sequence[Sequence[FalseClassPanel]], column_titles: Sequence[str]) -> None:
        self.rows = [list(row) for row in rows]
        self.column_titles = list(column_titles)
        if not self.rows or any(len(row) != len(self.column_titles) for row in self.rows):
            lengths = [len(row) for row in self.rows]
            raise ValueError(f"each row must have {len(self.column_titles)} panels, one for each title. Got {lengths}.")
        for row in self.rows:
            if len({panel.true_class for panel in row}) != 1:
                raise ValueError(f"the panels of a row must have one true class. Got {[p.true_class for p in row]}.")

    @classmethod
    def from_panels(
        cls, rows: Sequence[Sequence[FalseClassPanel]], column_titles: Sequence[str]
    ) -> "FalseClassesDisplay":
        """The constructor by the name that Displays have."""
        return cls(rows, column_titles)

    @property
    def _shape(self) -> tuple[int, ...]:
        return len(self.rows), len(self.column_titles)

    def _new_axes(self, style: FigureStyle) -> np.ndarray:
        return map_axes(*self._shape, style, legend_height=0.75)

    def _draw_all(self, axes: np.ndarray, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        n_columns = len(self.column_titles)
        width = style.grid_width(n_columns)
        panel_width = width / max(n_columns, 2)
        classes = np.unique(np.concatenate([p.adv_predictions for row in self.rows for p in row]))
        handles, names = legend_entries(self.rows[0][0].class_names, classes, style)
        add_legend(
            axes[0, 0].figure, handles, names, legend, loc="outside lower center", handletextpad=0.1, columnspacing=1.2,
            ncols=columns_that_fit(names, width, style.points(6.5), limit=6),
            title="adversarial examples by predicted class", title_fontsize=style.points(6.5),
        )  # fmt: skip
        for place, (row, row_axes) in enumerate(zip(self.rows, axes, strict=True)):
            for panel, ax, title in zip(row, row_axes, self.column_titles, strict=True):
                head = "" if place else f"{wrapped(title, panel_width, points_of('axes.titlesize'))}\n"
                panel._draw(ax, style, f"{head}{panel.panel_title}", **({"linespacing": 1.4} if head else {}))
            name = wrapped(row[0].class_names[row[0].true_class], panel_width, style.points(8))
            row_axes[0].set_ylabel(name, fontsize=style.points(8), fontweight="bold")

    def numbers(self) -> list[dict]:
        """What the figure shows, as records: for each panel the share and the counts of the predicted classes."""
        return [
            {
                "true_class": panel.class_names[panel.true_class],
                "column": title.splitlines()[0],
                "clean_points": len(panel.clean_coords),
                "adversarial_points": len(panel.adv_coords),
                "false_share": panel.false_share,
                "predicted_as": {
                    panel.class_names[k]: int((panel.adv_predictions == k).sum())
                    for k in np.unique(panel.adv_predictions)
                },
            }
            for row in self.rows
            for title, panel in zip(self.column_titles, row, strict=True)
        ]

    def to_dataframe(self):
        """The points of all panels, as `FalseClassPanel.to_dataframe` has them, behind the ``model``."""
        titles = [title.splitlines()[0] for title in self.column_titles]
        return stacked(
            ({"model": title}, panel.to_dataframe())
            for row in self.rows
            for title, panel in zip(titles, row, strict=True)
        )

    def __repr__(self) -> str:
        return f"FalseClassesDisplay({len(self.rows)} classes x {len(self.column_titles)} models)"


def legend_entries(class_names: Sequence[str], classes: np.ndarray, style: FigureStyle) -> tuple[list, list[str]]:
    """Handles and labels: the clean images, and each class with its colour and marker."""
    from matplotlib.lines import Line2D

    looks = [("o", 3.5, CLEAN_COLOUR), *((style.class_marker(k), 4, style.class_colour(k)) for k in classes)]
    handles = [
        Line2D([], [], ls="", marker=marker, ms=style.markers(size), mfc=colour, mec="none")
        for marker, size, colour in looks
    ]
    return handles, ["clean images", *(class_names[k] for k in classes)]
