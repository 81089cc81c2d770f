"""A projection as one scatter plot, coloured by class."""

from dataclasses import dataclass

import numpy as np

from analysis.display.style import class_colour, class_marker, figure_style


@dataclass(repr=False)
class ProjectionDisplay:
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

    def plot(self, ax=None) -> "ProjectionDisplay":
        """Draw into `ax`, or into a new figure."""
        import matplotlib.pyplot as plt

        with figure_style():
            if ax is None:
                _, ax = plt.subplots(figsize=(3.4, 2.6), layout="constrained")
            for k in np.unique(self.labels):
                scatter_class(ax, self.coords[self.labels == k], int(k), label=self.class_names[k], size=6)
            finish_map(ax)
            ax.set_title(self.title)
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6, handletextpad=0.2)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def __repr__(self) -> str:
        return f"ProjectionDisplay({len(self.coords)} points, {len(np.unique(self.labels))} classes)"


def scatter_class(ax, coords: np.ndarray, k: int, *, size: float, label: str | None = None) -> None:
    """Points of class k, rasterised: a vector file with a thousand markers in each of forty panels opens slowly."""
    ax.scatter(
        coords[:, 0], coords[:, 1], s=size, c=class_colour(k), marker=class_marker(k), linewidths=0, alpha=0.85,
        label=label, rasterized=True,
    )  # fmt: skip


def finish_map(ax) -> None:
    """A map has no units: no ticks, and a margin so that no marker is cut."""
    ax.set(xticks=[], yticks=[])
    ax.margins(0.05)
