"""What Displays of a single map have in common."""

from typing import Self

from analysis.display.style import FigureStyle, Styled
from analysis.display.texts import Legend


class Panel(Styled):
    """A map in axes of its own, with a legend beside it."""

    def plot(self, ax=None, *, style: FigureStyle | str | None = None, legend: Legend = True) -> Self:
        """Draw into `ax`, or into a new figure.

        Parameters
        ----------
        ax : Axes, optional
        style : FigureStyle or "rc", optional
            By default the one that it was drawn in before, which at first is the paper's; ``"rc"`` is what matplotlib
            is set to.
        legend : bool, str or mapping
            By default on the right of the axes; a place within them, such as ``"upper left"``, or keyword arguments for
            matplotlib's legend; False for none.
        """
        import matplotlib.pyplot as plt

        with self._drawing(style) as style:
            if ax is None:
                _, ax = plt.subplots(figsize=style.figure_size(3.4, 2.6), layout="constrained")
            self._draw_alone(ax, style, legend)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_alone(self, ax, style: FigureStyle, legend: Legend) -> None:
        raise NotImplementedError
