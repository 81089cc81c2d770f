"""Where the results of a model go that a user names, and what they say of themselves."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis.command.arguments import MODEL_AS_IT_IS, OWN_DATA, DataOptions, ModelOptions
from analysis.command.model_names import is_run, model_names
from analysis.command.opening import OpenedModel, check_fits, open_model
from analysis.command.opening_data import open_data
from analysis.extraction import extract
from analysis.scales.run_results import different_settings, is_current, run_config
from analysis.scales.scale import project_root
from analysis.scales.targets import results_dir
from tla_core.checkpoint import CheckpointError, check_writable, read_metadata
from tla_core.config import TrainConfig
from tla_core.datasets import ImageDataset
from tla_core.probe import agrees_with_stored, probe
from tla_core.protocol import analysis_attack
from tla_core.run_folder import RunFolder
from tla_core.wrapping import as_classifier


@dataclass(frozen=True)
class NamedSubject:
    """A model on images, neither of which need be the project's own.

    Attributes
    ----------
    opened : OpenedModel
    data : ImageDataset
    config : TrainConfig
        Whose dataset, and for images of the user's whose attack, says how it is attacked.
    split : str
    folder : Path
        Where its results go.
    """

    opened: OpenedModel
    data: ImageDataset
    config: TrainConfig
    split: str
    folder: Path

    def __str__(self) -> str:
        images = f"{self.data.name} {self.split}: {len(self.data):,} images (sha256 {self.data.checksum[:12]})"
        return f"{self.opened.name} (sha256 {self.opened.digest[:12]}) on {images}"

    @property
    def identity(self) -> dict[str, Any]:
        """What its results must say: the model, the images, and their digests."""
        model = {"name": self.opened.name, "weights_sha256": self.opened.weights_digest, **self.opened.settings}
        return {
            "checkpoint_sha256": self.opened.digest, "model": model, "data_name": self.data.name,
            "data": self.data.source, "data_sha256": self.data.checksum,
        }  # fmt: skip

    def check_function(self, *, keep: bool = False) -> None:
        """See that results in its folder are of the same function, which the digest of a model does not tell.

        That is of the state, and of the file that is named; not of what that file imports or reads.

        Parameters
        ----------
        keep : bool
            Store what the function is known by, if nothing of it is stored yet.

        Raises
        ------
        ValueError
            If the model of the stored results returned something else for these images.
        """
        if self.opened.run is not None:
            return
        name = f"probe-{self.opened.digest[:8]}-{self.data.checksum[:8]}.safetensors"
        current = probe(as_classifier(self.opened.model, self.data.images, self.data.labels), self.data.images)
        if not agrees_with_stored(self.folder / name, current, keep=keep):
            raise ValueError(
                f"{self.opened.spec} has the weights and the source of the model of the results in {self.folder}, but"
                " returns other outputs: something that it imports or reads has changed. Choose another --out, or"
                " remove that folder."
            )


def is_own(spec: str, model: ModelOptions, images: DataOptions, out: Path | None) -> bool:
    """Whether it is a run on its own dataset, as it is: only then are results those of the run."""
    if not is_run(spec) or out is not None or model != MODEL_AS_IT_IS:
        return False
    return images == OWN_DATA or images == DataOptions(data=run_config(spec).dataset)


def config_for(spec: str, data: str | None) -> TrainConfig:
    """The settings that say how a model is attacked: a run's own, or the defaults, for the images that are named."""
    config = run_config(spec) if is_run(spec) else TrainConfig()
    return config if data is None else replace(config, dataset=data)


def open_subject(
    spec: str, model: ModelOptions, images: DataOptions, *, split: str = "test", out: Path | None = None,
    device: str = "auto",
) -> NamedSubject:  # fmt: skip
    """Open a model and the images that it is to be shown, and see that they fit together.

    Parameters
    ----------
    spec : str
        See `analysis.command.opening.open_model`.
    model : ModelOptions
    images : DataOptions
    split : {"test", "train", "holdout"}
    out : Path, optional
        Folder of the results. By default ``results/MODEL-DIGEST/DATA-DIGEST`` below the project, or the working
        directory outside one; of a run ``on-DATA-DIGEST`` among its results.
    device : str

    Raises
    ------
    ValueError, OSError, ImportError
        As `open_model`, `open_data` and `check_fits`; and for images that the run was trained on.
    """
    data = None if images.data is None else open_data(images, split=split)
    opened = open_model(spec, model, n_classes=None if data is None else len(data.class_names), device=device)
    data = open_data(images, opened, split=split) if data is None else data
    if split == "test":
        refuse_trained_on(opened, data)
    check_fits(opened, data)
    if out is None:
        own = opened.run is not None and images.data is None and not opened.settings
        out = results_dir(opened.run) if own else _default_folder(opened, data)
    subject = NamedSubject(opened, data, config_for(spec, data.name), split, out)
    subject.check_function()
    return subject


def refuse_trained_on(opened: OpenedModel, data: ImageDataset) -> None:
    """ValueError for the images that a run was trained on: accuracies of these are none of the model's."""
    if opened.run is not None and RunFolder(opened.run).record()["data"]["checksum"] == data.checksum:
        raise ValueError(f"{opened.spec} was trained on these very images: {data}. Expected others to measure it on.")


def represent(
    subject: NamedSubject, eps: float | None, *, layers: Sequence[str], images: int | None = None,
    at_least: bool = False, progress: bool = True,
) -> list[Path]:  # fmt: skip
    """Extract and store representations, a file for each layer; what is stored already is not made again.

    Parameters
    ----------
    subject : NamedSubject
        Of test images clean and attacked ones are taken, of training images clean ones. The attacked ones are stored as
        bytes; what is extracted is of them as they were made.
    eps : float, optional
        By default that of the attack for these images.
    layers : sequence of str
        See `analysis.extract`.
    images : int, optional
        At the most, evenly spread; by default all.
    at_least : bool
        A stored file of more images is taken as it is.
    progress : bool

    Raises
    ------
    ValueError
        If there is a file of another model or of other images, or no such layer.
    OSError
        If a file cannot be written: before anything is extracted.
    """
    attack = analysis_attack(subject.config, eps) if subject.split == "test" else None
    kind = "train" if attack is None else f"eps{attack.eps:g}"
    settings = None if attack is None else attack.to_dict()
    paths, todo = {}, {}
    for layer in layers:
        suffix = "" if layer == "penultimate" else f"-{_plain(layer)}"
        paths[layer] = path = subject.folder / f"representations-{kind}{suffix}.safetensors"
        expected = {**subject.identity, "layer": layer, "attack": settings, "images": images, "split": subject.split}
        if not is_current(path, expected) and not (at_least and _has_more(path, expected)):
            refuse_others(path, expected)
            check_writable(path)
            todo[layer] = expected
    if todo:
        n = len(subject.data)
        rows = torch.arange(min(images or n, n)) * n // min(images or n, n)
        subset = subject.data.subset(rows)
        sets = extract(
            subject.opened.model, subset, layer=list(todo), attack=attack, indices=rows, keep_images="uint8",
            progress=progress,
        )  # fmt: skip
        subject.check_function(keep=True)
        for layer, expected in todo.items():
            meta = {**sets[layer].meta, **expected, "source": subject.data.source}
            replace(sets[layer], meta=meta).save(paths[layer])
    return list(paths.values())


def refuse_others(path: Path, expected: dict[str, Any]) -> None:
    """ValueError where a file holds results of another model or other images: they are not replaced."""
    try:
        metadata = read_metadata(path)
    except (FileNotFoundError, CheckpointError):  # what is damaged is made again
        return
    digests = {key: expected[key] for key in ("checkpoint_sha256", "data_sha256")}
    if different_settings(metadata.get("meta", metadata), digests):
        raise ValueError(f"{path} holds results of another model or of other images. Choose another folder with --out.")


def _has_more(path: Path, expected: dict[str, Any]) -> bool:
    """Whether a file holds what is expected, of more images."""
    if not is_current(path, {key: value for key, value in expected.items() if key != "images"}):
        return False
    stored = read_metadata(path)["meta"]["images"]
    return stored is None or stored >= (expected["images"] or stored + 1)


def _default_folder(opened: OpenedModel, data: ImageDataset) -> Path:
    images = f"{_plain(Path(data.name).name)}-{data.checksum[:8]}"
    if opened.run is not None:
        return results_dir(opened.run) / (f"on-{images}" + (f"-{opened.digest[:8]}" if opened.settings else ""))
    try:
        top = project_root()
    except FileNotFoundError:
        top = Path()
    return top / "results" / f"{_plain(opened.name)}-{opened.digest[:8]}" / images


def folder_for(out: Path | None, spec: str, specs: Sequence[str]) -> Path | None:
    """The folder that is asked for; with several models one in it for each."""
    return out if out is None or len(set(specs)) < 2 else out / _plain(model_names(tuple(dict.fromkeys(specs)))[spec])


def _plain(name: str) -> str:
    return re.sub(r"[^\w.@=-]+", "-", name).strip("-")
