"""Figures 4 to 6: two classes, and what an attack makes of one to pass for the other, one panel per model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.display.panel import Panel, PanelGrid, map_axes
from analysis.display.projection import finish_map
from analysis.display.style import FigureStyle
from analysis.display.texts import Legend, add_legend, columns_that_fit, points_of, show_names_as_text, wrapped
from analysis.frames import names_of, points, stacked
from analysis.maps import PairMap

# Blue, green and red of Paul Tol's scheme "bright", told apart by colour-blind readers; the shapes do the same work.
# Of the first class, the second, and what is taken for the second.
_COLOURS, _MARKERS = ("#4477aa", "#228833", "#ee6677"), ("o", "s", "^")


@dataclass(repr=False)
class ClassPairPanel(Panel):
    """One model's map of a pair of classes.

    Parameters
    ----------
    clean_coords : ndarray, (n, 2)
    clean_labels : ndarray, (n,), int
    adv_coords : ndarray, (m, 2)
        Adversarial examples of the first class that the model takes for the second.
    classes : (int, int)
    class_names : tuple of str
    mistaken_share : float
        Share of the first class's adversarial examples that is taken for the second.
    title : str

    Attributes
    ----------
    figure_, ax_
        Set by `plot`.
    """

    clean_coords: np.ndarray
    clean_labels: np.ndarray
    adv_coords: np.ndarray
    classes: tuple[int, int]
    class_names: tuple[str, ...]
    mistaken_share: float
    title: str = ""

    @classmethod
    def from_map(cls, pair_map: PairMap, class_names: Sequence[str], *, title: str = "") -> "ClassPairPanel":
        """Take the points of a `PairMap`, as `map_pair` makes it."""
        return cls(
            pair_map.clean_coords, pair_map.clean_labels, pair_map.adv_coords, pair_map.classes, tuple(class_names),
            pair_map.mistaken_share, title,
        )  # fmt: skip

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        self._draw(ax, style, self.title or self.share_text)
        handles, names = pair_legend(self.classes, self.class_names, style)
        add_legend(ax, handles, names, legend, loc="center left", bbox_to_anchor=(1, 0.5))

    def _draw(self, ax, style: FigureStyle, title: str, **title_options) -> None:
        points = [self.clean_coords[self.clean_labels == k] for k in self.classes] + [self.adv_coords]
        looks = zip(points, (5, 5, 9), _pair_colours(style), _MARKERS, (0.8, 0.8, 0.9), strict=True)
        for coords, size, colour, marker, alpha in looks:
            ax.scatter(
                *coords.T, s=style.area(size), c=colour, marker=marker, linewidths=0, alpha=alpha, rasterized=True
            )
        finish_map(ax)
        ax.set_title(title, pad=2, **title_options)
        show_names_as_text(ax)
        self.ax_, self.figure_ = ax, ax.figure

    @property
    def share_text(self) -> str:
        """What stands above the panel: how much of the first class is taken for the second."""
        if not len(self.adv_coords):
            return "none mistaken"
        return f"{self.mistaken_share:.1%} mistaken"

    def to_dataframe(self):
        """One row for each point: ``kind`` (``"clean"`` or ``"adversarial"``), ``class``, ``x``, ``y``."""
        clean = points(self.clean_coords, **{"class": names_of(self.clean_labels, self.class_names)})
        adversarial = points(self.adv_coords, **{"class": self.class_names[self.classes[0]]})
        return stacked([({"kind": "clean"}, clean), ({"kind": "adversarial"}, adversarial)])

    def __repr__(self) -> str:
        first, second = (self.class_names[k] for k in self.classes)
        return f"ClassPairPanel({first!r} to {second!r}, {len(self.adv_coords)} adversarial examples)"


class ClassPairDisplay(PanelGrid):
    """A row of `ClassPairPanel` of one pair of classes, one for each model, with one legend.

    Parameters
    ----------
    panels : sequence of ClassPairPanel
    column_titles : sequence of str
        What is said above each panel: the model, and its robust accuracy.

    Attributes
    ----------
    figure_, axes_
        Set by `plot`.

    Raises
    ------
    ValueError
        Without panels, for another number of titles, or panels of different pairs.
    """

    def __init__(self, panels: Sequence[ClassPairPanel], column_titles: Sequence[str]) -> None:
        self.panels, self.column_titles = list(panels), list(column_titles)
        if not self.panels or len(self.panels) != len(self.column_titles):
            lengths = len(self.panels), len(self.column_titles)
            raise ValueError(f"expected panels, and one title for each. Got {lengths[0]} and {lengths[1]}.")
        if len({panel.classes for panel in self.panels}) != 1:
            raise ValueError(f"the panels must show one pair of classes. Got {[p.classes for p in self.panels]}.")

    @classmethod
    def from_panels(cls, panels: Sequence[ClassPairPanel], column_titles: Sequence[str]) -> "ClassPairDisplay":
        """The constructor by the name that Displays have."""
        return cls(panels, column_titles)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self.panels),)

    def _new_axes(self, style: FigureStyle) -> np.ndarray:
        return map_axes(1, len(self.panels), style, legend_height=0.6)

    def _draw_all(self, axes: np.ndarray, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        width = style.grid_width(len(axes))
        panel_width = width / max(len(axes), 2)
        handles, names = pair_legend(self.panels[0].classes, self.panels[0].class_names, style)
        add_legend(
            axes[0].figure, handles, names, legend, loc="outside lower center", handletextpad=0.1,
            columnspacing=1.2, ncols=columns_that_fit(names, width, style.points(6.5), limit=3),
        )  # fmt: skip
        for panel, title, ax in zip(self.panels, self.column_titles, axes, strict=True):
            head = wrapped(title, panel_width, points_of("axes.titlesize"))
            panel._draw(ax, style, f"{head}\n{panel.title or panel.share_text}", linespacing=1.4)

    def numbers(self) -> list[dict]:
        """What the figure shows, as records: for each panel the points and the share that is mistaken."""
        return [
            {
                "column": title.partition("\n")[0],
                "attacked": panel.class_names[panel.classes[0]],
                "mistaken_for": panel.class_names[panel.classes[1]],
                "clean_points": len(panel.clean_coords),
                "adversarial_points": len(panel.adv_coords),
                "mistaken_share": panel.mistaken_share,
            }
            for panel, title in zip(self.panels, self.column_titles, strict=True)
        ]

    def to_dataframe(self):
        """The points of all panels, as `ClassPairPanel.to_dataframe` has them, behind the ``model``."""
        titles = [title.partition("\n")[0] for title in self.column_titles]
        panels = zip(titles, self.panels, strict=True)
        return stacked(({"model": title}, panel.to_dataframe()) for title, panel in panels)

    def __repr__(self) -> str:
        return f"ClassPairDisplay({self.panels[0]!r} x {len(self.panels)} models)"


def _pair_colours(style: FigureStyle) -> list[str]:
    colours = style.colours(_COLOURS)
    return [colours[place % len(colours)] for place in range(3)]


def pair_legend(classes: tuple[int, int], class_names: Sequence[str], style: FigureStyle) -> tuple[list, list[str]]:
    """Handles and labels: clean images of both classes, and the adversarial examples."""
    from matplotlib.lines import Line2D

    first, second = (class_names[k] for k in classes)
    handles = [
        Line2D([], [], ls="", marker=marker, ms=style.markers(4), mfc=colour, mec="none")
        for colour, marker in zip(_pair_colours(style), _MARKERS, strict=True)
    ]
    return handles, [f"{first}, clean", f"{second}, clean", f"{first}, adversarial, taken for {second}"]
