"""Figures 1 to 3: where the adversarial examples of a class go, one row per class, one column per model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.display.projection import finish_map, scatter_class
from analysis.display.style import CLEAN_COLOUR, TEXT_WIDTH, class_colour, class_marker, figure_style
from analysis.maps import ClassMap


@dataclass(repr=False)
class FalseClassPanel:
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

    def plot(self, ax=None) -> "FalseClassPanel":
        """Draw into `ax`, or into a new figure with a legend."""
        import matplotlib.pyplot as plt

        with figure_style():
            alone = ax is None
            if alone:
                _, ax = plt.subplots(figsize=(3.4, 2.6), layout="constrained")
            # What is rare must not be buried: large clean images below, small examples that keep their class on top of
            # them, and then the false classes from the most to the least frequent.
            classes, counts = np.unique(self.adv_predictions, return_counts=True)
            order = [int(k) for k in classes[np.argsort(-counts, kind="stable")] if k != self.true_class]
            ax.scatter(*self.clean_coords.T, s=5, c=CLEAN_COLOUR, linewidths=0, rasterized=True)
            self._scatter(ax, self.true_class, size=2)
            for k in order:
                self._scatter(ax, k, size=6)
            finish_map(ax)
            share = f"{self.false_share:.0%} false" if len(self.adv_predictions) else "no adversarial examples"
            ax.set_title(self.title or share, pad=2)
            if alone:
                handles, labels = legend_entries(self.class_names, classes)
                ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _scatter(self, ax, k: int, size: float) -> None:
        scatter_class(ax, self.adv_coords[self.adv_predictions == k], k, size=size)

    def __repr__(self) -> str:
        name = self.class_names[self.true_class]
        return f"FalseClassPanel({name!r}, {len(self.adv_coords)} adversarial examples, {self.false_share:.1%} false)"


class FalseClassesDisplay:
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

    def plot(self, axes=None) -> "FalseClassesDisplay":
        """Draw into a grid of axes (rows x columns), or into a new figure of text width with a legend below."""
        import matplotlib.pyplot as plt

        n_rows, n_columns = len(self.rows), len(self.column_titles)
        with figure_style():
            if axes is None:
                width = TEXT_WIDTH if n_columns > 1 else TEXT_WIDTH / 2
                panel = width / max(n_columns, 2)
                figure, axes = plt.subplots(
                    n_rows, n_columns, figsize=(width, n_rows * panel + 0.75), squeeze=False, layout="constrained"
                )
                figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
                classes = np.unique(np.concatenate([p.adv_predictions for row in self.rows for p in row]))
                handles, labels = legend_entries(self.rows[0][0].class_names, classes)
                figure.legend(
                    handles, labels, loc="outside lower center", ncols=min(len(labels), 6), handletextpad=0.1,
                    columnspacing=1.2, title="adversarial examples by predicted class", title_fontsize=6.5,
                )  # fmt: skip
            axes = np.asarray(axes).reshape(n_rows, n_columns)
            for row, row_axes in zip(self.rows, axes, strict=True):
                for panel, ax in zip(row, row_axes, strict=True):
                    panel.plot(ax)
                row_axes[0].set_ylabel(row[0].class_names[row[0].true_class], fontsize=8, fontweight="bold")
            for title, ax in zip(self.column_titles, axes[0], strict=True):
                ax.set_title(f"{title}\n{ax.get_title()}", pad=2, linespacing=1.4)
        self.axes_, self.figure_ = axes, axes[0, 0].figure
        return self

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

    def __repr__(self) -> str:
        return f"FalseClassesDisplay({len(self.rows)} classes x {len(self.column_titles)} models)"


def legend_entries(class_names: Sequence[str], classes: np.ndarray) -> tuple[list, list[str]]:
    """Handles and labels: the clean images, and each class with its colour and marker."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="", marker="o", ms=3.5, mfc=CLEAN_COLOUR, mec="none")]
    handles += [Line2D([], [], ls="", marker=class_marker(k), ms=4, mfc=class_colour(k), mec="none") for k in classes]
    return handles, ["clean images", *(class_names[k] for k in classes)]
