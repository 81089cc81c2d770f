"""How Displays are plotted: into axes of one's own, or into a new figure."""

from typing import Self

import numpy as np

from analysis.display.style import FigureStyle, Styled
from analysis.display.texts import Legend


class Panel(Styled):
    """A Display in a single pair of axes, which `_draw_alone` of a subclass fills."""

    _size = 3.4, 2.6  # of a new figure, in inches

    def plot(self, ax=None, *, style: FigureStyle | str | None = None, legend: Legend = True) -> Self:
        """Draw into `ax`, or into a new figure.

        Parameters
        ----------
        ax : Axes, optional
        style : FigureStyle or "rc", optional
            By default the one that it was drawn in before, which at first is the paper's; ``"rc"`` is what matplotlib
            is set to.
        legend : bool, str or mapping
            By default beside the axes or below them; a place within them, such as ``"upper left"``, or keyword
            arguments for matplotlib's legend; False for none. Of a landscape: whether there is a colour bar.
        """
        import matplotlib.pyplot as plt

        in_new_figure = ax is None
        with self._drawing(style) as style:
            if in_new_figure:
                _, ax = plt.subplots(figsize=style.figure_size(*self._size), layout="constrained")
            self._draw_alone(ax, style, legend, in_new_figure)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        raise NotImplementedError


class PanelGrid(Styled):
    """A Display in several axes, which `_new_axes` of a subclass makes and `_draw_all` fills."""

    def plot(self, axes=None, *, style: FigureStyle | str | None = None, legend: Legend = True) -> Self:
        """Draw into axes that are given, or into a new figure of text width.

        Parameters
        ----------
        axes : array of Axes, optional
            As many as `axes_` of a new figure would be.
        style : FigureStyle or "rc", optional
            By default the one that it was drawn in before, which at first is the paper's; ``"rc"`` is what matplotlib
            is set to.
        legend : bool, str or mapping
            By default below the axes; a place of matplotlib's such as ``"upper right"``, or keyword arguments for its
            legend; False for none. A figure with ``layout="constrained"`` makes room for it. Of landscapes: whether
            each column has a colour bar.
        """
        in_new_figure = axes is None
        with self._drawing(style) as style:
            axes = (self._new_axes(style) if in_new_figure else np.asarray(axes)).reshape(self._shape)
            self._draw_all(axes, style, legend, in_new_figure)
        self.axes_, self.figure_ = axes, axes.flat[0].get_figure(root=self._has_subfigures)
        return self

    _has_subfigures = False  # whether `_new_axes` makes some, in which the axes lie

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of `axes_`."""
        raise NotImplementedError

    def _new_axes(self, style: FigureStyle) -> np.ndarray:
        raise NotImplementedError

    def _draw_all(self, axes: np.ndarray, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        raise NotImplementedError


def map_axes(n_rows: int, n_columns: int, style: FigureStyle, legend_height: float) -> np.ndarray:
    """The axes of a new figure of square panels, with so many inches below them for a legend."""
    import matplotlib.pyplot as plt

    width = style.grid_width(n_columns)
    size = width, n_rows * width / max(n_columns, 2) + style.points(legend_height)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    return axes
