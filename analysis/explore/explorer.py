"""`EmbeddingExplorer`: a widget in a notebook, one file for a browser, or a table for other tools."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compared import as_representations
from analysis.explore.columns import collect_columns
from analysis.explore.images import collect_images, png, write_images
from analysis.explore.items import MOST_MODELS, MOST_STEPS, match_items
from analysis.explore.maps import collect_maps
from analysis.explore.measures import measure
from analysis.explore.payload import Contents, pack
from analysis.explore.view import ViewRules
from analysis.projection import METHODS
from tla_core.validation import check_one_of, check_whole

# A reader may choose to see this many neighbours, and the page compares models by all of them.
_FEWEST_STORED = 10
_FULL_IMAGES = ("none", "page", "beside")


class EmbeddingExplorer:
    """Look into the clean and adversarial representations of models of the same images.

    Parameters
    ----------
    sets : dict of str to RepresentationSet, model, Path or str
        A path is the folder of a run, or a file of representations; models and runs are shown the images of the first
        set, or what `images`, `labels` and `attack` say: see `as_representations`. One to six, by the name of the
        model; of the same images, in any order. Those without an adversarial part show clean points.
    images : array_like of shape (N, c, h, w), optional
        The N clean images of the first set; by default those of the dataset that its ``meta`` names, if it is there.
    labels, attack : optional
        Of `images`, for models and runs.
    adv_images : dict of str to array_like, optional
        Adversarial images by model; by default those of its set.
    projections : dict, optional
        ``{model: {method: (2N, 2)}}``, clean rows first ((N, 2) without an adversarial part). What is missing is made:
        some seconds for t-SNE of 2,000 points, and 15 s for the first UMAP of a process.
    maps_file : Path or str, optional
        Where maps that are made are kept (.safetensors): one that it has of the same representations is not made again.
    methods : sequence of {"tsne", "umap", "pca"}
        The maps that a reader can switch between.
    columns : dict of str to sequence of length N, optional
        Numbers or words to colour, filter and sort by, in the row order of the first set. None and nan are not known.
    steps : bool
        The sets are up to 60 steps of one model, such as ``{"eps 0": ..., "eps 2/255": ...}`` or checkpoints. One panel
        with a slider shows their points moving; a map that is made is made of all steps together.
    full_images : {"none", "page", "beside"}
        Images of more than 96 pixels a side are thumbnails in the page. A click shows one in full size, which lies
        nowhere, in the page, or in a folder that `to_html` writes beside it. A widget asks its kernel.
    k : int
        Nearest neighbours that are shown of a query at first.
    max_points : int
        The most points of a panel, an image with its adversarial example being two. Above, images are sampled by
        class, and the page says so.
    random_state : int
        Seeds that sample.
    progress : bool
        Show a progress bar while maps are made.

    Attributes
    ----------
    selection : ndarray of int64
        Indices (as in `RepresentationSet.indices`) of the selected images. Can be set, to images that are shown; a
        widget follows, and a file that is written opens with them selected.
    view : dict
        Map, colours, filters, pinned image, zoom and so on, by the names that the guide lists; a name that is missing
        keeps the page's default. Can be set; a widget follows, and a file opens with it.
    indices : ndarray of int64
        Indices of the images that are shown.
    notes : tuple of str
        What the page tells its reader about the data: sampling, missing parts.

    Raises
    ------
    ValueError
        For sets that do not belong together (naming the images that are missing), NaN, or arguments out of range; for
        a view that these data cannot show.

    Notes
    -----
    Neighbours are the exact nearest *clean* images in the representation space, by angular distance, among those shown,
    for the clean and for the adversarial representation; an image's own clean one is never among them. Distances to
    classes, and with them r' of a selection, are to all clean images, shown or not: see `measures.Measures`.

    Examples
    --------
    >>> explorer = EmbeddingExplorer({"UM": um, "TLA": tla})  # doctest: +SKIP
    >>> explorer.to_html("explorer.html")  # doctest: +SKIP
    """

    def __init__(
        self,
        sets: Mapping[str, Any],
        *,
        images=None,
        labels=None,
        attack=None,
        adv_images: Mapping[str, np.ndarray] | None = None,
        projections: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        maps_file: Path | str | None = None,
        methods: Iterable[str] = METHODS,
        columns: Mapping[str, Any] | None = None,
        steps: bool = False,
        full_images: str = "none",
        k: int = 5,
        max_points: int = 2000,
        random_state: int = 0,
        progress: bool = True,
    ) -> None:
        # Arguments.
        check_whole("k", k, 1)
        check_whole("max_points", max_points, 1)
        check_one_of("full_images", full_images, _FULL_IMAGES)
        # What the page shows: images, the reader's columns, maps, and what is measured of each model.
        limit = MOST_STEPS if steps else MOST_MODELS
        if isinstance(sets, Mapping) and any(isinstance(one, (str, Path)) or callable(one) for one in sets.values()):
            sets = as_representations(sets, images, labels, attack=attack, limit=max_points // 2)
        items = match_items(sets, max_points=max_points, random_state=random_state, most_sets=limit)
        clean, adversarial, notes = collect_images(items, images, adv_images)
        own_columns = collect_columns(items, columns)
        maps_path = None if maps_file is None else Path(maps_file)
        self.maps, texts = collect_maps(
            items, projections, tuple(methods), maps_path=maps_path, joint=steps, progress=progress
        )
        n_neighbours = min(max(k, _FEWEST_STORED), len(items.rows) - 1)
        measures = {name: measure(reps, items.rows, n_neighbours) for name, reps in items.sets.items()}
        self._contents = Contents(
            items,
            self.maps,
            texts,
            measures,
            clean,
            adversarial,
            own_columns,
            min(k, n_neighbours),
            notes,
            full_images,
            steps,
        )
        # What a reader, or a caller, may choose.
        shown_indices = set(self.indices.tolist())
        self._rules = ViewRules(
            tuple(self.maps), self.models, len(items.first.class_names), n_neighbours, shown_indices, own_columns
        )
        self._selection, self._view = np.empty(0, np.int64), {}
        self._widgets: list = []

    @property
    def _items(self):
        return self._contents.items

    @property
    def indices(self) -> np.ndarray:
        return self._items.first.indices[self._items.rows]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._items.sets)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._items.notes, *self._contents.notes)

    @property
    def selection(self) -> np.ndarray:
        return self._selection.copy()

    @selection.setter
    def selection(self, indices: Iterable[int]) -> None:
        values = np.asarray(list(indices))
        if values.size and values.dtype.kind not in "iu":
            raise ValueError(f"selection must be integers, indices of images. Got {values.dtype}.")
        values = np.unique(values).astype(np.int64)
        if len(missing := np.setdiff1d(values, self.indices)):
            raise ValueError(f"selection must be of images that are shown. Got index {missing[0]}; see .indices.")
        self._selection = values
        for widget in self._widgets:
            widget.selection = values.tolist()

    @property
    def view(self) -> dict[str, Any]:
        return dict(self._view)

    @view.setter
    def view(self, view: Mapping[str, Any]) -> None:
        self._view = self._rules.check(view)
        for widget in self._widgets:
            widget.view = self._view

    @cached_property
    def payload(self) -> bytes:
        """What the page is given: see `payload.pack`."""
        return pack(self._contents)

    def widget(self):
        """A widget for JupyterLab, whose selection and view are those of the explorer.

        Raises
        ------
        ImportError
            Where anywidget is not installed.
        """
        from analysis.explore.widget import make_widget

        widget = make_widget(self.payload, self._selection.tolist(), self._view, self._full_image, self._picture)
        self._widgets.append(widget)
        widget.observe(self._follow, names=("selection", "view"))
        return widget

    def _follow(self, change) -> None:
        setattr(self, change["name"], change["new"])

    def _picture(self) -> bytes:
        """The first map of every model as PNG, clean and attacked points alike by their class."""
        import matplotlib.pyplot as plt

        from analysis.display.projection import ProjectionDisplay
        from analysis.display.style import FigureStyle

        reps, rows = self._items.first, self._items.rows
        (method, coords_by_model), *_ = self.maps.items()
        content = io.BytesIO()
        with FigureStyle().applied():
            figure, axes = plt.subplots(1, len(coords_by_model), figsize=(3 * len(coords_by_model), 3), squeeze=False)
            for (name, coords), ax in zip(coords_by_model.items(), axes[0], strict=True):
                labels = np.tile(reps.labels[rows], len(coords) // len(rows))
                ProjectionDisplay(coords, labels, reps.class_names, f"{name}, {method}").plot(ax, legend=False)
            figure.savefig(content, format="png", dpi=110)
            plt.close(figure)
        return content.getvalue()

    def _sheet(self, number: int) -> np.ndarray | None:
        """Images as the page numbers them: 0 the clean ones, m + 1 the adversarial ones of model m."""
        return self._contents.images if number == 0 else self._contents.adv_images.get(self.models[number - 1])

    def _full_image(self, sheet: int, row: int) -> bytes | None:
        """An image in full size as PNG; None if there is none."""
        if not (0 <= sheet <= len(self.models) and 0 <= row < len(self._items.rows)):
            return None
        pixels = self._sheet(sheet)
        return None if pixels is None else png(pixels[row])

    def to_html(self, path: Path | str, *, title: str = "Embedding explorer") -> Path:
        """Write one file that needs no server and no network; with ``full_images="beside"``, a folder of images too.

        Raises
        ------
        OSError
            If it cannot be written; what was there before is unchanged.
        """
        from analysis.explore.page import html_page
        from tla_core.checkpoint import write_atomic

        path = Path(path)
        folder = None
        if self._contents.full_images == "beside":
            folder = path.with_name(f"{path.stem}_images")
            write_images(folder, self.indices, [self._sheet(number) for number in range(len(self.models) + 1)])
        page = html_page(
            self.payload, self._selection.tolist(), self._view, title, images=None if folder is None else folder.name
        )
        write_atomic(path, page.encode())
        return path

    def to_parquet(self, path: Path | str) -> Path:
        """Write a table with a row for each point of each model, with images, for Embedding Atlas or jupyter-scatter.

        Columns: ``model``, ``kind`` (clean or adversarial), ``index``, ``label``, ``prediction`` (names),
        ``confidence``, ``outcome``, ``moved``, ``class_distance``, ``tsne_x``, ``tsne_y`` and so on, one's own columns,
        and ``image`` (a struct of PNG ``bytes`` and ``path``, as Hugging Face's datasets have it).

        Raises
        ------
        ImportError
            Where pyarrow is not installed.
        """
        from analysis.explore.parquet import write_parquet

        path = Path(path)
        write_parquet(path, self._contents)
        return path

    def __repr__(self) -> str:
        total, count = len(self._items.first), len(self._items.rows)
        total_words = "" if total == count else f" of {total}"
        maps = ", ".join(self.maps)
        return f"EmbeddingExplorer({', '.join(self.models)}; {count}{total_words} images; maps {maps})"
