"""A projection as one scatter plot, coloured by class."""

from dataclasses import dataclass

import numpy as np

from analysis.display.panel import Panel
from analysis.display.style import FigureStyle
from analysis.display.texts import Legend, add_legend, show_names_as_text
from analysis.frames import names_of, points

_MOST_LINES_OF_A_LEGEND = 18


@dataclass(repr=False)
class ProjectionDisplay(Panel):
    """Points of a projection, coloured and shaped by class.

    Parameters
    ----------
    coords : ndarray, (n, 2)
    labels : ndarray, (n,), int
    class_names : tuple of str
    title : str

    Attributes
    ----------
    figure_, ax_
        Set by `plot`.
    """

    coords: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    title: str = ""

    @classmethod
    def from_projection(cls, projection, labels, class_names, *, title: str = "") -> "ProjectionDisplay":
        """Take the coordinates of a `Projection`.

        Raises
        ------
        ValueError
            If there are not as many labels as points.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(projection.coords),):
            raise ValueError(f"labels must have the shape ({len(projection.coords)},). Got {labels.shape}.")
        return cls(projection.coords, labels, tuple(class_names), title)

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        classes = np.unique(self.labels)
        handles = [scatter_class(ax, self.coords[self.labels == k], int(k), style, size=6) for k in classes]
        finish_map(ax)
        ax.set_title(self.title)
        show_names_as_text(ax)
        add_legend(
            ax, handles, [self.class_names[k] for k in classes], legend, loc="center left", bbox_to_anchor=(1, 0.5),
            markerscale=1.6, handletextpad=0.2, ncols=-(-len(classes) // _MOST_LINES_OF_A_LEGEND) or 1,
        )  # fmt: skip

    def to_dataframe(self):
        """One row for each point: ``class``, ``x``, ``y``."""
        return points(self.coords, **{"class": names_of(self.labels, self.class_names)})

    def __repr__(self) -> str:
        return f"ProjectionDisplay({len(self.coords)} points, {len(np.unique(self.labels))} classes)"


def scatter_class(ax, coords: np.ndarray, k: int, style: FigureStyle, *, size: float):
    """Points of class k, rasterised: a vector file with a thousand markers in each of forty panels opens slowly."""
    return ax.scatter(
        coords[:, 0], coords[:, 1], s=style.area(size), c=style.class_colour(k), marker=style.class_marker(k),
        linewidths=0, alpha=0.85, rasterized=True,
    )  # fmt: skip


def finish_map(ax) -> None:
    """A map has no units: no ticks, and a margin so that no marker is cut."""
    ax.set(xticks=[], yticks=[])
    ax.margins(0.05)
