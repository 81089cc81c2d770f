"""Figure 7: the nearest clean images of an image and of the adversarial example made from it, one row per model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.display.panel import PanelGrid
from analysis.display.style import TEXT_WIDTH, FigureStyle
from analysis.display.texts import Legend, add_legend, show_names_as_text, wrapped
from analysis.frames import frame_of_records

if TYPE_CHECKING:
    from analysis.retrieval import RetrievalResult, RetrievedNeighbours

_WRONG_COLOUR = "#cc3311"  # Paul Tol's red; the cross says the same to those who do not see it
_WRONG = "of another class than the query"
_BLOCKS = ("clean", "adversarial")


@dataclass(frozen=True, repr=False, eq=False)
class RetrievalStrip:
    """A query and its neighbours, as images.

    Parameters
    ----------
    images : ndarray, (1 + k, c, h, w), uint8 or float in [0, 1]
        The query, then its neighbours, the nearest first; c is 1 or 3.
    labels : ndarray, (1 + k,), int
        Their true classes.
    rows : ndarray, (1 + k,), int
        Their rows in the `RepresentationSet`.
    distances : ndarray, (k,)
        From the query to its neighbours.

    Raises
    ------
    ValueError
        If there is not one label, row and distance for each image, or the images are neither grey nor colour.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    distances: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise ValueError(f"images must have the shape (n, 1 or 3, h, w). Got {self.images.shape}.")
        n = len(self.images)
        lengths = len(self.labels), len(self.rows), len(self.distances)
        if lengths != (n, n, n - 1):
            raise ValueError(f"labels, rows and distances of {n} images must number {(n, n, n - 1)}. Got {lengths}.")

    @property
    def wrong(self) -> np.ndarray:
        """Which neighbours are of another class than the query: bool (k,)."""
        return self.labels[1:] != self.labels[0]


class RetrievalDisplay(PanelGrid):
    """One row per model: left a clean query and its neighbours, right the adversarial query and its neighbours.

    Neighbours of another class than the query have a red frame and a cross. Below each image stands its true class.

    Parameters
    ----------
    strips : mapping of str to (RetrievalStrip, RetrievalStrip)
        For each model what the clean and the adversarial query retrieve; equally many neighbours everywhere.
    class_names : sequence of str

    Attributes
    ----------
    figure_, axes_
        Set by `plot`; axes_ has a row for each model, 1 + k columns for the clean and 1 + k for the adversarial query.

    Raises
    ------
    ValueError
        If there are no models, or the numbers of neighbours differ.
    """

    def __init__(self, strips: Mapping[str, tuple[RetrievalStrip, RetrievalStrip]], class_names: Sequence[str]) -> None:
        self.strips, self.class_names = dict(strips), tuple(class_names)
        lengths = {len(strip.images) for pair in self.strips.values() for strip in pair}
        if len(lengths) != 1:
            raise ValueError(f"all strips must have one number of images. Got {sorted(lengths)}.")
        (self._n_images,) = lengths

    @classmethod
    def from_retrievals(
        cls,
        retrievals: Mapping[str, RetrievalResult],
        images: np.ndarray,
        adv_images: Mapping[str, np.ndarray],
        *,
        row: int,
        class_names: Sequence[str],
    ) -> RetrievalDisplay:
        """Take what `retrieve` found for one image.

        Parameters
        ----------
        retrievals : mapping of str to RetrievalResult
            For each model; with an adversarial part.
        images : array_like or Tensor, (n, c, h, w), uint8 or float in [0, 1]
            The clean images, row by row those of the `RepresentationSet`.
        adv_images : mapping of str to such images
            For each model the adversarial examples, `RepresentationSet.adv_images`.
        row : int
            Row of the query in the set.
        class_names : sequence of str

        Raises
        ------
        ValueError
            If the row was no query, or a model has no adversarial part or images.
        """
        strips = {}
        for name, retrieved in retrievals.items():
            if retrieved.adversarial is None or adv_images.get(name) is None:
                raise ValueError(f"{name} has no adversarial part; expected one. Pass attack= to analysis.extract.")
            strips[name] = (
                _strip(retrieved.clean, images, images, row),
                _strip(retrieved.adversarial, adv_images[name], images, row),
            )
        return cls(strips, class_names)

    _has_subfigures = True

    @property
    def _shape(self) -> tuple[int, ...]:
        return len(self.strips), 2 * self._n_images

    def _draw_all(self, axes: np.ndarray, style: FigureStyle, legend: Legend, in_new_figure: bool) -> None:
        names, name_size = self._fitted_names(style)
        figure = axes[0, 0].get_figure(root=True)
        add_legend(figure, [_mark(style)], [_WRONG], legend, loc="outside lower center", handletextpad=0.2)
        for (name, pair), row_axes in zip(self.strips.items(), axes, strict=True):
            for strip, block in zip(pair, np.split(row_axes, 2), strict=True):
                self._draw(strip, block, names, name_size, style)
            name = wrapped(name, self._cell(style), style.points(8))
            row_axes[0].set_ylabel(name, fontsize=style.points(8), fontweight="bold")
            show_names_as_text(row_axes[0])
        titles = [_ordinal(n) for n in range(1, self._n_images)]
        for kind, block in zip(_BLOCKS, np.split(axes[0], 2), strict=True):
            for ax, title in zip(block, [f"{kind}\nquery", *titles], strict=True):
                ax.set_title(title, pad=3, fontsize=style.points(6.5))

    def _new_axes(self, style: FigureStyle) -> np.ndarray:
        import matplotlib.pyplot as plt

        n_rows, n_columns = len(self.strips), self._n_images
        _, _, height, width = next(iter(self.strips.values()))[0].images.shape
        lines = max(name.count("\n") + 1 for name in self._fitted_names(style)[0].values())
        row = self._cell(style) * height / width + 0.03 + style.points(0.1) * lines
        size = style.width or TEXT_WIDTH, n_rows * row + style.points(0.75)
        figure = plt.figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
        # The left block is wider by the models' names.
        blocks = figure.subfigures(1, 2, width_ratios=(n_columns + 0.3, n_columns), wspace=0.03)
        for kind, block in zip(_BLOCKS, blocks, strict=True):
            block.suptitle(f"{kind} query and its neighbours".capitalize(), fontsize=style.points(7), fontweight="bold")
        return np.hstack([block.subplots(n_rows, n_columns, squeeze=False) for block in blocks])

    def _cell(self, style: FigureStyle) -> float:
        """Inches that an image and the gap beside it are wide, in a figure of text width."""
        return (style.width or TEXT_WIDTH) / (2 * self._n_images + 0.7)

    def _fitted_names(self, style: FigureStyle) -> tuple[dict[int, str], float]:
        """The names of the classes shown, in lines that fit under an image, and their font size in points."""
        characters = int(self._cell(style) / style.points(0.053))  # of 6.5 points, on average
        classes = {int(k) for pair in self.strips.values() for strip in pair for k in strip.labels}
        names = {k: textwrap.fill(self.class_names[k], characters, break_long_words=False) for k in sorted(classes)}
        longest = max(len(line) for name in names.values() for line in name.splitlines())
        return names, style.points(6.5) * min(1, characters / longest)

    def _draw(
        self, strip: RetrievalStrip, axes: np.ndarray, names: dict[int, str], name_size: float, style: FigureStyle
    ) -> None:
        for ax, image, label, wrong in zip(axes, strip.images, strip.labels, [False, *strip.wrong], strict=True):
            # Grey images are repeated over three channels: no colour map, and no range taken from the image.
            ax.imshow(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(names[int(label)], labelpad=1.5, fontsize=name_size)
            show_names_as_text(ax)
            if wrong:
                ax.spines[:].set(color=_WRONG_COLOUR, linewidth=1.6)
                mark = _mark(style)
                mark.set(xdata=[0.87], ydata=[0.87], transform=ax.transAxes)
                ax.add_artist(mark)

    def numbers(self) -> list[dict]:
        """What the figure shows, as records: for each model and query its neighbours, and which of them are right."""
        return [
            {
                "model": name,
                "query": kind,
                "row": int(strip.rows[0]),
                "true_class": self.class_names[strip.labels[0]],
                "neighbours": [
                    {"row": int(row), "class": self.class_names[label], "distance": float(distance), "correct": not bad}
                    for row, label, distance, bad in zip(
                        strip.rows[1:], strip.labels[1:], strip.distances, strip.wrong.tolist(), strict=True
                    )
                ],
            }
            for name, pair in self.strips.items()
            for kind, strip in zip(_BLOCKS, pair, strict=True)
        ]

    def to_dataframe(self):
        """One row for each neighbour shown: ``model``, ``query``, ``row``, ``class``, ``rank``, ``neighbour_row``,
        ``neighbour_class``, ``distance``, ``correct``."""
        return frame_of_records([
            {
                "model": record["model"], "query": record["query"], "row": record["row"], "class": record["true_class"],
                "rank": rank, "neighbour_row": each["row"], "neighbour_class": each["class"],
                "distance": each["distance"], "correct": each["correct"],
            }
            for record in self.numbers() for rank, each in enumerate(record["neighbours"], start=1)
        ])  # fmt: skip

    def __repr__(self) -> str:
        return f"RetrievalDisplay({', '.join(self.strips)}, {self._n_images - 1} neighbours)"


def _strip(retrieved: RetrievedNeighbours, queries, gallery, row: int) -> RetrievalStrip:
    places = np.flatnonzero(retrieved.rows == row)
    if not len(places):
        raise ValueError(f"row {row} was no query; expected one of the {len(retrieved.rows)} that were retrieved for.")
    place = places[0]
    neighbours = retrieved.indices[place]
    return RetrievalStrip(
        images=np.stack([_image(queries, row), *(_image(gallery, int(k)) for k in neighbours)]),
        labels=np.append(retrieved.labels[place], retrieved.neighbour_labels[place]),
        rows=np.append(row, neighbours),
        distances=retrieved.distances[place],
    )


def _image(images, row: int) -> np.ndarray:
    """Float in [0, 1], since clean images may be uint8 where adversarial ones are float."""
    image = np.asarray(images[row])
    return image / np.float32(255) if image.dtype == np.uint8 else image


def _mark(style: FigureStyle):
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", marker="X", markersize=style.markers(5.5), markerfacecolor=_WRONG_COLOUR,
        markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip


def _ordinal(n: int) -> str:
    ending = "th" if 10 < n % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
