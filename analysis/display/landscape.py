"""Figure 8: the loss around images, one row per model, one column per image with one colour scale for its models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.display.panel import Panel, PanelGrid
from analysis.display.style import TEXT_WIDTH, FigureStyle
from analysis.display.surfaces import surface_bundle, surfaces
from analysis.display.texts import Legend, points_of, show_as_text, show_names_as_text, wrapped
from analysis.frames import stacked
from analysis.loss_grid import LossGrid

if TYPE_CHECKING:  # torch and plotly take seconds to import, and drawing needs neither
    import plotly.graph_objects as go

    from analysis.landscape import Landscape

CONTOUR_COLOUR = "white"
BROKEN_COLOUR = "#d0d0d0"
_UNITS = {"input": "pixel units", "weights": "filter norms"}
_BESIDE = 0.45  # inches, of the labels on the left of a grid


@dataclass(repr=False)
class LandscapeDisplay(Panel, LossGrid):
    """The loss over a plane as a heat map with contour lines; a cross marks the centre.

    Parameters
    ----------
    loss : ndarray, (n, n)
        ``loss[i, j]`` is drawn at ``(axis[i], axis[j])``; what is not finite is grey.
    axis : ndarray, (n,)
        Symmetric about 0, in `unit`.
    centre_loss : float
    unit : str
        What the axes are measured in: "eps", "pixel units", "filter norms".
    title : str
        By default how far the highest loss lies above that of the centre.
    scale : (float, float), optional
        Values of the lowest and the highest colour; by default those of this panel.
    relative : bool
        Draw by how much the loss exceeds that of the centre, which may be far from another model's.

    Attributes
    ----------
    figure_, ax_, image_, contours_
        Set by `plot`; `contours_` is None for a flat landscape.

    Raises
    ------
    ValueError
        If the losses are no square grid over the axis.
    """

    loss: np.ndarray
    axis: np.ndarray
    centre_loss: float
    unit: str = "pixel units"
    title: str = ""
    scale: tuple[float, float] | None = None
    relative: bool = False

    _size = 3.05, 2.4

    def __post_init__(self) -> None:
        n = len(self.axis)
        if np.shape(self.loss) != (n, n) or n < 2:
            raise ValueError(f"loss must have the shape ({n}, {n}), that of the axis. Got {np.shape(self.loss)}.")

    @classmethod
    def from_landscape(
        cls,
        landscape: Landscape,
        *,
        eps: float | None = None,
        title: str = "",
        scale: tuple[float, float] | None = None,
        relative: bool = False,
    ) -> LandscapeDisplay:
        """Take the grid of a `Landscape`, in units of `eps` if it is given.

        Raises
        ------
        ValueError
            If eps is not above 0, or given for the weights of a model.
        """
        if eps is None:
            unit, length = _UNITS[landscape.space], 1.0
        elif landscape.space != "input" or not 0 < eps < math.inf:
            raise ValueError(f"eps must be above 0, and of an attack on an image. Got {eps!r} for {landscape!r}.")
        else:
            unit, length = "eps", eps
        return cls(landscape.loss, landscape.axis / length, landscape.centre_loss, unit, title, scale, relative)

    @property
    def values(self) -> np.ndarray:
        """What is drawn: the losses, or how far they lie above that of the centre."""
        return self.loss - self.centre_loss if self.relative else self.loss

    @property
    def quantity(self) -> str:
        return "rise of cross-entropy" if self.relative else "cross-entropy"

    @property
    def rise_text(self) -> str:
        return f"loss rises by {self.rise:.3g}"

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        scale = self.scale or _scale_of([self])
        self.image_, self.contours_ = self._draw(ax, style, scale, self.title or self.rise_text)
        ax.set(xlabel=f"first direction ({self.unit})", ylabel=f"second direction ({self.unit})")
        if legend:
            _add_colour_bar([ax], scale, "right", self.quantity)

    def _draw(self, ax, style: FigureStyle, scale: tuple[float, float], title: str, **title_options) -> tuple:
        """The image, and the contours where the landscape is not flat."""
        from matplotlib import colormaps

        low, high = scale
        edge = self.axis[-1] + (self.axis[1] - self.axis[0]) / 2
        # The first direction runs to the right; a point's colour fills the square around it.
        values = np.ma.masked_invalid(np.asarray(self.values, dtype=np.float64).T)
        image = ax.imshow(
            values, origin="lower", extent=(-edge, edge, -edge, edge), vmin=low, vmax=high, interpolation="nearest",
            cmap=colormaps[style.colour_map].with_extremes(bad=BROKEN_COLOUR),
        )  # fmt: skip
        levels = [level for level in contour_levels(low, high) if values.min() < level < values.max()]
        contours = None
        if levels:
            contours = ax.contour(self.axis, self.axis, values, levels, colors=CONTOUR_COLOUR, linewidths=0.5)
        ax.plot(0, 0, marker="+", ms=style.markers(4), mew=0.7, color=CONTOUR_COLOUR)
        radius = round(float(self.axis[-1]), 6)
        ax.set(xticks=[-radius, 0, radius], yticks=[-radius, 0, radius])
        for along in (ax.xaxis, ax.yaxis):
            along.set_major_formatter("{x:.3g}")
        ax.tick_params(length=2, pad=1.5)
        ax.grid(False)  # which a style may have: lines over an image
        ax.set_title(title, pad=3, **title_options)
        show_names_as_text(ax)
        return image, contours

    def __repr__(self) -> str:
        n = len(self.axis)
        return f"LandscapeDisplay({n} x {n} points to {self.axis[-1]:.4g} {self.unit}, {self.rise_text})"


class LandscapesDisplay(PanelGrid):
    """A grid of `LandscapeDisplay`, one row per model and one column per image, with one colour bar for each column.

    Parameters
    ----------
    rows : mapping of str to sequence of LandscapeDisplay
        The model's name -> its panels, one for each column. The panels of a column must have one axis; they are drawn
        with one colour scale, whatever their own.
    column_titles : sequence of str
        Such as the class of each image.
    images : sequence of ndarray (c, h, w), optional
        What lies at the centre of each column, uint8 or float in [0, 1]: drawn small above it.

    Attributes
    ----------
    figure_, axes_
        Set by `plot`.

    Raises
    ------
    ValueError
        If the rows are not equally long, the panels of a column differ in their axes, or there are not as many images.
    """

    def __init__(
        self,
        rows: Mapping[str, Sequence[LandscapeDisplay]],
        column_titles: Sequence[str],
        *,
        images: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.rows = {name: list(row) for name, row in rows.items()}
        self.column_titles = list(column_titles)
        self.images = None if images is None else [np.asarray(image) for image in images]
        n_columns = len(self.column_titles)
        lengths = [len(row) for row in self.rows.values()]
        if not self.rows or not n_columns or any(length != n_columns for length in lengths):
            raise ValueError(f"each row must have {n_columns} panels, one for each column title. Got {lengths}.")
        if self.images is not None and len(self.images) != n_columns:
            raise ValueError(f"images must be {n_columns}, one for each column. Got {len(self.images)}.")
        for title, column in zip(self.column_titles, self._columns(), strict=True):
            first = column[0]
            kinds = {(panel.unit, panel.relative) for panel in column}
            if len(kinds) > 1 or any(not np.array_equal(panel.axis, first.axis) for panel in column):
                raise ValueError(f"the panels of column {title!r} must have one axis, to be compared. Got {column}.")
        self.scales = [_scale_of(column) for column in self._columns()]

    @classmethod
    def from_landscapes(
        cls,
        landscapes: Mapping[str, Sequence[Landscape]],
        column_titles: Sequence[str],
        *,
        eps: float | None = None,
        images: Sequence[np.ndarray] | None = None,
        relative: bool = False,
    ) -> LandscapesDisplay:
        """Take the grids of each model, one for each column, with axes in units of `eps` if it is given."""
        rows = {
            name: [LandscapeDisplay.from_landscape(landscape, eps=eps, relative=relative) for landscape in row]
            for name, row in landscapes.items()
        }
        return cls(rows, column_titles, images=images)

    @property
    def _shape(self) -> tuple[int, ...]:
        return len(self.rows), len(self.column_titles)

    def _draw_all(self, axes: np.ndarray, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        has_header = in_new_figure and self.images is not None
        for place, ((name, row), row_axes) in enumerate(zip(self.rows.items(), axes, strict=True)):
            has_titles = place == 0 and not has_header
            for panel, scale, ax, title in zip(row, self.scales, row_axes, self.column_titles, strict=True):
                own = self._wrapped(f"{name}: {panel.rise_text}", style)
                head = {"title": own}
                if has_titles:
                    head = {"title": f"{self._wrapped(title, style)}\n{own}", "linespacing": 1.4}
                panel._draw(ax, style, scale, **head)
                ax.tick_params(labelbottom=ax in axes[-1], labelleft=ax is row_axes[0])
            row_axes[0].set_ylabel(f"second direction ({row[0].unit})", labelpad=1)
        for column, scale, column_axes in zip(self._columns(), self.scales, axes.T, strict=True):
            column_axes[-1].set_xlabel(f"first direction ({column[0].unit})", labelpad=1)
            if legend:
                _add_colour_bar(list(column_axes), scale, "bottom", column[0].quantity)

    def surface(self) -> go.Figure:
        """The same grid as surfaces to turn by hand: height and colour are the loss, with one range for each column.

        Returns
        -------
        plotly.graph_objects.Figure
            As HTML it takes about 7 bytes for each point. Pass ``config=SURFACE_CONFIG`` to ``show`` or ``write_html``:
            nothing is sent anywhere then, and nothing fetched if plotly.js is embedded.

        Raises
        ------
        ValueError
            For more than 16 panels, of which a browser would show the last 16.
        """
        return surfaces(self.rows, self.column_titles, self.scales, self.style)

    def show_surface(self) -> None:
        """Show `surface` below a notebook's cell, and a picture of it for pages that run no code of plotly's."""
        from IPython.display import display

        display(surface_bundle(self.surface(), self.rows, self.column_titles, self.scales, self.style), raw=True)

    def numbers(self) -> list[dict[str, Any]]:
        """What the figure shows, as records: for each panel its losses, its axes, and the scale of its colours."""
        return [
            {
                "model": name,
                "column": title.splitlines()[0],
                "centre_loss": panel.centre_loss,
                "lowest_loss": panel.range[0],
                "highest_loss": panel.range[1],
                "rise": panel.rise,
                "radius": float(panel.axis[-1]),
                "unit": panel.unit,
                "points": len(panel.axis) ** 2,
                "points_not_finite": int((~np.isfinite(panel.loss)).sum()),
                "colour_scale": list(scale),
            }
            for name, row in self.rows.items()
            for title, panel, scale in zip(self.column_titles, row, self.scales, strict=True)
        ]

    def to_dataframe(self):
        """The points of all panels, as `LandscapeDisplay.to_dataframe` has them, behind ``model`` and ``column``."""
        return stacked(
            ({"model": name, "column": title.splitlines()[0]}, panel.to_dataframe())
            for name, row in self.rows.items()
            for title, panel in zip(self.column_titles, row, strict=True)
        )

    def _columns(self) -> list[list[LandscapeDisplay]]:
        return [list(column) for column in zip(*self.rows.values(), strict=True)]

    def _panel_width(self, style: FigureStyle) -> float:
        """Inches of a panel in a new figure."""
        return min(((style.width or TEXT_WIDTH) - _BESIDE) / len(self.column_titles), style.width or 1.8)

    def _wrapped(self, title: str, style: FigureStyle) -> str:
        return wrapped(title, self._panel_width(style), points_of("axes.titlesize"))

    def _new_axes(self, style: FigureStyle) -> np.ndarray:
        """The axes of the panels; above them the images are drawn, with the titles."""
        import matplotlib.pyplot as plt

        n_rows, n_columns = len(self.rows), len(self.column_titles)
        n_headers = int(self.images is not None)
        panel, line = self._panel_width(style), style.points(0.17)
        height = (panel + line) * n_rows + (0.32 * panel + line) * n_headers + style.points(0.65)
        figure, axes = plt.subplots(
            n_headers + n_rows, n_columns, figsize=(_BESIDE + n_columns * panel, height), squeeze=False,
            layout="constrained", height_ratios=[0.32] * n_headers + [1] * n_rows,
        )  # fmt: skip
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        if self.images is None:
            return axes
        for image, title, ax in zip(self.images, self.column_titles, axes[0], strict=True):
            pixels = image.transpose(1, 2, 0) if image.shape[0] > 1 else image[0]
            ax.imshow(pixels, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
            ax.set_axis_off()
            show_as_text(ax.set_title(self._wrapped(title, style), pad=3, linespacing=1.4))
        return axes[1:]

    def __repr__(self) -> str:
        return f"LandscapesDisplay({', '.join(self.rows)} x {len(self.column_titles)} images)"


def contour_levels(low: float, high: float) -> list[float]:
    """Round losses strictly between the two, of which there are at most five."""
    from matplotlib.ticker import MaxNLocator

    return [float(level) for level in MaxNLocator(5).tick_values(low, high) if low < level < high]


def _scale_of(panels: Sequence[LandscapeDisplay]) -> tuple[float, float]:
    """Lowest and highest finite value; 1 apart where there is but one, and 0 to 1 without any."""
    finite = [values for panel in panels if len(values := panel.values[np.isfinite(panel.values)])]
    low = min((float(values.min()) for values in finite), default=0.0)
    high = max((float(values.max()) for values in finite), default=1.0)
    return (low, high) if low < high else (low, low + 1)


def _add_colour_bar(axes: list, scale: tuple[float, float], location: str, quantity: str) -> None:
    """Beside axes of one scale; its ticks are the levels of their contour lines."""
    levels = contour_levels(*scale)
    inches = axes[-1].get_position(original=True).width * axes[-1].figure.get_figure(root=True).get_figwidth()
    # Axes get a third wider when the layout is solved.
    crowded = location == "bottom" and len(levels) * 3.5 * points_of("xtick.labelsize") > 1.35 * 72 * inches
    bar = axes[-1].figure.colorbar(
        axes[-1].images[0], ax=axes, location=location, ticks=levels[:: 2 if crowded else 1], aspect=22, pad=0.01,
        fraction=0.05,
    )  # fmt: skip
    for level in levels:
        line = bar.ax.axvline if location == "bottom" else bar.ax.axhline
        line(level, color=CONTOUR_COLOUR, linewidth=0.5)
    bar.ax.tick_params(length=2, pad=1.5)
    bar.outline.set_linewidth(0.4)
    bar.set_label(quantity, labelpad=1)
