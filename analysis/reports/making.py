"""`report`: measures what an attack does to models, part by part, and writes one page and its numbers."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from analysis.errors import is_ours
from analysis.reports import measure
from analysis.reports.accuracies import Measurement, main_attack
from analysis.reports.contents import Contents, Findings, Report
from analysis.reports.inputs import checked_subjects, chosen_images, named_models
from analysis.reports.trust import judge
from analysis.reports.writing import write_report
from tla_core.checkpoint import check_writable
from tla_core.masking import MaskingWarning
from tla_core.validation import check_number, check_whole


def report(
    models: Any,
    images: Any,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    eps: float,
    out: Path | str,
    norm: str = "linf",
    n_images: int = 1000,
    minutes: float | None = None,
    layer: str = "penultimate",
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    autoattack: int | None = None,
    explorer: bool = True,
    batch_size: int = 256,
    command: str = "",
    progress: bool = False,
) -> Report:
    """Write one page on what an attack does to the accuracy and the representations of one to six models.

    Parameters
    ----------
    models : nn.Module, path of a run, mapping of str to these, or list of these or of pairs (name, model)
        Any classifiers of images in [0, 1]; see `tla_core.wrap`. Evaluated in eval mode and left as they were found.
    images : Tensor, ndarray, list, ImageDataset or a dataset, (n, c, h, w)
        uint8, or floats in [0, 1]; see `tla_core.evaluate`. The same for all models.
    labels : Tensor, ndarray or list of int, (n,), optional
        True classes; by default those of the dataset.
    eps : float
        Radius of the attacks, above 0, in pixel units: 8/255 for bytes.
    out : Path or str
        Folder: report.html, report.json, explorer.html, and parts/, by which an interrupted report goes on.
    norm : {"linf", "l2"}
    n_images : int, 4 or more
        At most so many, of each class as large a share as of the others.
    minutes : float, optional
        No further part is begun after so many; what was left out is said. A later call goes on.
    layer : str
        What the report calls the representation; see `extract`.
    class_names : tuple of str, or dict of int to str, optional
        By default those of the dataset.
    autoattack : int, optional
        Images for AutoAttack; by default what a bounded number of operations allows, at most 100, and 0 is none.
    explorer : bool
        Write the embedding explorer beside the page.
    batch_size : int
        Images forwarded at once.
    command : str
        What the page says that it was made by; by default this function.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        Before any attack runs: for bad images or labels, fewer than two classes of two images, an eps that is out of
        range, models without names, two of one name, more than six, NaN or infinite outputs, outputs that are not the
        classes, or a layer that cannot be read.
    OSError
        If the folder cannot be written to.

    Examples
    --------
    >>> analysis.report({"AT": model}, images, labels, eps=8 / 255, out="report")  # doctest: +SKIP
    """
    # Check everything that can be wrong, before anything takes time.
    started = time.monotonic()
    out = Path(out)
    check_number("eps", eps, 0.0, open_low=True)
    if minutes is not None:
        check_number("minutes", minutes, 0.0, open_low=True)
    if autoattack is not None:
        check_whole("autoattack", autoattack, 0)
    check_whole("batch_size", batch_size, 1)
    attack = main_attack(norm.lower() if isinstance(norm, str) else norm, eps)
    sources = named_models(models)
    data = chosen_images(images, labels, n_images=n_images, class_names=class_names)
    check_writable(out / "report.json")
    has_names = data.class_names != tuple(map(str, range(len(data.class_names))))
    subjects, n_outputs = checked_subjects(sources, data, out, has_names=has_names)
    if not has_names:
        data = replace(data, class_names=tuple(map(str, range(n_outputs))))
    for subject in subjects:
        measure.read_layers(subject, data, layer)

    # Measure, in the order of importance, and write.
    contents = Contents(data, attack, layer, [Findings(subject) for subject in subjects], [], command)
    run = _Run(contents, started, minutes, batch_size, progress)
    run.measure(autoattack)
    if explorer:
        run.step("the explorer", lambda: run.write_explorer(out))
    contents.seconds = time.monotonic() - started
    return write_report(contents, out)


class _Run:
    """Measures the parts of a report one after the other, all models before the next part, as long as time allows."""

    def __init__(
        self, contents: Contents, started: float, minutes: float | None, batch_size: int, progress: bool
    ) -> None:
        self.contents, self.batch_size, self.progress = contents, batch_size, progress
        self.minutes, self.ends = minutes, None if minutes is None else started + 60 * minutes
        self.bar = tqdm(desc="report", unit="part", disable=not progress)

    def may_go_on(self) -> bool:
        return self.ends is None or time.monotonic() < self.ends

    def step(self, name: str, make: Callable[[], None], model: str = "") -> None:
        """Do a part, unless the time is over or the data do not allow it; then that is said.

        That the data do not allow it is what our own checks say; any other ValueError is a fault, and ends the report.
        """
        part = f"{name} of {model}" if model else name
        if not self.may_go_on():
            self.contents.left_out.append(f"{part}: the {self.minutes:g} minutes were over")
            return
        self.bar.set_postfix_str(part)
        try:
            make()
        except ValueError as error:
            if not is_ours(error):
                raise
            self.contents.left_out.append(f"{part}: {error}")
        self.bar.update()

    def measure(self, autoattack: int | None) -> None:
        """Measure all; what the masking checks warn of stands in the first lines of the page."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MaskingWarning)
            self._measure(autoattack)

    def _measure(self, autoattack: int | None) -> None:
        contents, models = self.contents, self.contents.models
        data, attack = contents.data, contents.attack
        runs = {each.name: Measurement(each.subject, data, attack, batch_size=self.batch_size) for each in models}
        for each in models:  # without any accuracy there is no report: the first attack always runs
            runs[each.name].all_images(self.may_go_on)
        for each in models:
            self.step("representations", lambda each=each: self._represent(each), each.name)
        for each in models:
            if each.reps is not None:
                self.step("detection", lambda each=each: self._detect(each), each.name)
        represented = [each for each in models if each.reps is not None]
        if represented:
            self._choose(represented)
        curves: dict[str, dict] = {each.name: {} for each in models}
        for each in models:
            run = runs[each.name]
            self.step("the curve over eps", lambda each=each, run=run: curves[each.name].update(run.curve()), each.name)
        for each in models:
            self.step("the loss landscape", lambda each=each: self._landscapes(each), each.name)
        for each in represented:
            self.step("maps", lambda each=each: self._maps(each, represented), each.name)
        for each in models:
            run = runs[each.name]
            self.step("AutoAttack", lambda run=run: run.part_by_autoattack(autoattack), each.name)
            each.accuracies = run.result(curves[each.name])
            each.trust = judge(each.accuracies)
            contents.left_out += [f"{reason}, of {each.name}" for reason in each.accuracies.left_out]

    def _represent(self, each: Findings) -> None:
        contents = self.contents
        result = measure.represented(
            each.subject, contents.data, contents.attack, contents.layer, batch_size=self.batch_size,
            progress=self.progress,
        )  # fmt: skip
        each.reps, each.depth = result.reps, result.depth
        each.destinations, each.moves = measure.destinations(result.reps), measure.moves_of(result.reps)
        each.ratios = measure.ratios_of(result.reps, contents.data.n_given)
        each.retrieval = measure.retrieval_of(result.reps)

    def _detect(self, each: Findings) -> None:
        each.detection = measure.detection_of_images(each.reps)

    def _choose(self, represented: list[Findings]) -> None:
        """Which images are shown of all models: the worst retrievals, and landscapes of what all classify correctly."""
        retrievals = [each.retrieval for each in represented if each.retrieval is not None]
        if retrievals:
            moves = [each.moves for each in represented if each.retrieval is not None]
            self.contents.worst = measure.worst_cases(retrievals, moves)
        right = np.all([each.reps.predictions == each.reps.labels for each in represented], axis=0)
        self.contents.landscape_rows_are_right = bool(right.any())
        self.contents.landscape_rows = (np.flatnonzero(right) if right.any() else np.arange(len(right)))[:2].tolist()

    def _landscapes(self, each: Findings) -> None:
        contents = self.contents
        unit = measure.landscape_unit(contents.attack.eps, contents.attack.norm, contents.data.images[0])
        rows = contents.landscape_rows or [0]
        each.landscapes = measure.landscapes_of(each.subject, contents.data, rows, measure.LANDSCAPE_RADIUS * unit)

    def _maps(self, each: Findings, represented: list[Findings]) -> None:
        order, pair = measure.most_mistaken([other.destinations for other in represented])
        each.maps = measure.class_maps(each.subject, each.reps, order[: measure.MAPPED_CLASSES])
        if pair is not None:
            each.pair = measure.pair_map(each.subject, each.reps, pair)

    def write_explorer(self, out: Path) -> None:
        from analysis.explore.explorer import EmbeddingExplorer

        sets = {each.name: each.reps for each in self.contents.models if each.reps is not None}
        if not sets:
            raise ValueError("there are no representations to show.")
        explorer = EmbeddingExplorer(
            sets, images=self.contents.data.images.numpy(), maps_file=out / "parts" / "explorer.maps.safetensors",
            methods=("tsne", "pca"), progress=False,
        )  # fmt: skip
        self.contents.explorer = explorer.to_html(out / "explorer.html", title=", ".join(sets))
