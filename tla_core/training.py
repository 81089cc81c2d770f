"""Starts or resumes a training in the folder of its run, and loads the weights that a run has selected."""

import contextlib
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tla_core.checkpoint import CheckpointError
from tla_core.config import TrainConfig
from tla_core.datasets import ImageDataset, load_dataset
from tla_core.distributed import first_says, process_group, rank_and_size
from tla_core.given import as_dataset
from tla_core.layers import model_device
from tla_core.memory_layout import layout_kept, to_channels_last
from tla_core.models import build_model
from tla_core.run_folder import RunConflictError, RunFolder, run_record
from tla_core.run_records import describe_network_differences
from tla_core.run_repair import is_finished, mend
from tla_core.runtime import derive_seed, pick_device
from tla_core.training_loop import TrainingLoop
from tla_core.validation import scale_images
from tla_core.wrapping import as_classifier, normalization_inside, see_through, wrap


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies, and the records of its ``metrics.jsonl``: of some steps, and of the held-out images."""

    run_dir: Path
    metrics: list[dict[str, Any]]

    def __repr__(self) -> str:
        held_out = [record["holdout"] for record in self.metrics if record.get("holdout")]
        best = max((h.get("robust", h["clean"]) for h in held_out), default=None)
        return f"TrainResult({str(self.run_dir)!r}" + (f", best held-out accuracy {best:.3f})" if held_out else ")")


def train(
    config: TrainConfig,
    out_dir: Path | str,
    *,
    model: nn.Module | None = None,
    dataset: ImageDataset | None = None,
    init_from: Path | str | None = None,
    device: str | torch.device = "auto",
    resume: bool = True,
    replace: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
) -> TrainResult:
    """Train a model, or go on with a training that was interrupted.

    Started by ``torchrun``, the processes share each batch: batch norm has the statistics of each process's share, the
    negatives are sought in one pool, and gradients are averaged. All of them see the same `out_dir`.

    Parameters
    ----------
    config : TrainConfig
    out_dir : Path or str
        Folder of the run. If it holds an unfinished run of the same settings, that one is resumed; a finished one is
        returned as it is.
    model : nn.Module, optional
        Any classifier of images in [0, 1] (see `wrap`), trained in place of the preset's network from the weights that
        it has. It ends with the weights of the last step; `load_model` gives the selected ones. Of the network, a run's
        identity holds the layout only: train other initial weights in another folder.
    dataset : ImageDataset, DataLoader or a dataset, optional
        In place of the configuration's training set; see `tla_core.given.given_images`.
    init_from : Path or str, optional
        Run folder whose weights the training starts from.
    device : str or torch.device
        No part of the run's identity.
    resume : bool
        False moves a run of the same settings aside and starts again.
    replace : bool
        True moves a run with another configuration, data or start aside; otherwise it is refused.
    progress : bool
        Show a progress bar.
    tensorboard : bool
        Write what ``metrics.jsonl`` gets also for TensorBoard, into ``out_dir/tensorboard``.

    Returns
    -------
    TrainResult

    Raises
    ------
    FileNotFoundError
        If `init_from` holds no finished run.
    ValueError
        If the configuration says `fine_tune` and there is no `init_from`; if a GPU is asked for where there is none; if
        the weights of `init_from` are those of another network or number of classes; if `tensorboard` is not
        installed.
    torch.OutOfMemoryError
        With the batch size to try. The last state stays.
    RankError
        If another process of a `torchrun` stopped, with its message.
    RunConflictError
        If the folder holds a run with another configuration, or another process trains there.
    OSError
        If the folder cannot be written, unless it holds the finished run, of which it is only read.
    TrainingDivergedError
        If the loss is not finite. The last good state stays.
    DatasetError, CheckpointError
        If the data or a stored state cannot be trusted.

    Warns
    -----
    UserWarning
        Of what was damaged and restored, and where a run goes on on another machine or number of processes.
    """
    device = pick_device(device)
    if config.fine_tune and init_from is None:
        raise ValueError(
            "these settings fine-tune another run (fine_tune): name it, init_from=RUN or `tla train --init-from RUN`."
        )
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("TensorBoard is not installed: `pip install tensorboard`, or leave the option out.")
    with process_group(device):
        dataset = load_dataset(config.dataset, "train") if dataset is None else as_dataset(dataset)
        model = None if model is None else see_through(model)
        folder = RunFolder(out_dir)
        record = run_record(config, dataset, model, init_from, device)
        first = rank_and_size()[0] == 0
        # Nothing is written, so that it can be looked at on a full disk.
        if resume and first_says(first and is_finished(folder, record["identity"])):
            return TrainResult(folder.path, folder.metrics())
        with _started(folder, record, replace, resume) if first else contextlib.nullcontext():
            if first_says(folder.model_path.exists()):
                return TrainResult(folder.path, folder.metrics())
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(derive_seed(config.seed, "init"))
                # A user's network may return something else in training mode, such as auxiliary logits.
                model = _fresh_model(config, dataset) if model is None else wrap(model)
                if init_from is not None:
                    _load_weights(model, *RunFolder(init_from).weights(), init_from, record)
                model = model.to(device)
                with layout_kept(model):
                    example = scale_images(dataset.images[:2].to(device))
                    model = as_classifier(model, example)
                    to_channels_last(model, example)  # see benchmarks/
                    TrainingLoop(config, folder, record, model, dataset, device, tensorboard).run(progress)
    return TrainResult(folder.path, folder.metrics())


def load_model(run_dir: Path | str, *, device: str | torch.device = "cpu", model: nn.Module | None = None) -> nn.Module:
    """Load the selected weights of a run.

    Parameters
    ----------
    run_dir : Path or str
    device : str or torch.device
    model : nn.Module, optional
        The user's own network, for a run that trained one.

    Returns
    -------
    nn.Module
        In eval mode, images in [0, 1] -> logits.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no finished run, or its file cannot be trusted.
    ValueError
        If the run trained a network of the user's and `model` was not passed, or is another one.
    """
    weights, metadata = RunFolder(run_dir).weights()
    if model is None:
        if metadata["start"]["network"] != "preset":
            raise ValueError(
                f"{run_dir} trained a network of the user's. Pass it: load_model(run_dir, model=...). On the command"
                f" line, name what makes it: file.py:function --weights {run_dir} --data DATA."
            )
        data = metadata["data"]
        settings = TrainConfig.from_dict(metadata["config"])
        model = build_model(
            settings.network, width=settings.width, blocks=settings.blocks, normalization=settings.normalization,
            in_channels=data["channels"], image_size=data["image_size"], n_classes=data["classes"],
        )  # fmt: skip
    model = see_through(model)
    _load_weights(model, weights, metadata, run_dir)
    model = model.to(pick_device(device)).eval()
    _lay_out(model, metadata["data"])
    return model


def _lay_out(model: nn.Module, data: dict[str, Any]) -> None:
    """As `train` lays the model out, if it takes an image of the size that the record of the run has."""
    example = torch.rand(1, data["channels"], data["image_size"], data["image_size"], generator=torch.Generator())
    with contextlib.suppress(RuntimeError, ValueError):  # images that are not square; it is a matter of speed alone
        to_channels_last(as_classifier(model, example), example.to(model_device(model)))


@contextlib.contextmanager
def _started(folder: RunFolder, record: dict[str, Any], replace: bool, resume: bool):
    """Hold the folder, with the record of this run in it, whatever was there before."""
    folder.check_copy(record)
    began = any(path.exists() for path in (folder.config_path, folder.state_path, folder.model_path))
    try:
        with folder.locked():
            for line in mend(folder, record["identity"]):
                warnings.warn(line, stacklevel=5)
            folder.start(record)
        aside = began and not resume
    except (CheckpointError, RunConflictError):
        if not replace:
            raise
        aside = True
    if aside:
        folder.move_aside()
    with folder.locked():
        folder.start(record)
        yield


def _fresh_model(config: TrainConfig, dataset: ImageDataset) -> nn.Module:
    _, channels, height, width = dataset.images.shape
    if height != width:
        raise ValueError(f"the preset's network takes square images. Got {height} x {width}; crop, or pass model=.")
    sizes = {"in_channels": channels, "image_size": height, "n_classes": len(dataset.class_names)}
    return build_model(
        config.network, width=config.width, blocks=config.blocks, normalization=config.normalization, **sizes
    )


def _load_weights(
    model: nn.Module, weights: dict[str, Tensor], trained: dict[str, Any], run_dir: Path | str,
    record: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Put the weights of a run into a model, which `record` describes; ValueError if they do not fit.

    They do not fit either where `tla_core.wrap` had put another normalisation inside, though their shapes do.
    """
    normalization = trained["start"].get("normalization")
    if normalization is not None and normalization != normalization_inside(model):
        raise ValueError(
            f"{run_dir} trained a model with the normalisation {normalization} inside, and this one has"
            f" {normalization_inside(model) or 'none'}: pass tla.wrap(model, mean=..., std=...)."
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        differences = describe_network_differences(trained, record) if record else ""
        first = " ".join(str(error).split("\n\t")[:2])[:300]  # of the tensors that torch lists
        raise ValueError(f"the weights of {run_dir} are those of another network: {differences}{first}") from error
