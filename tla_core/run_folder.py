"""The folder of one training: which files it holds, who may write there, and how an old run is kept."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from tla_core.checkpoint import (
    CheckpointError,
    file_sha256,
    load_tensors,
    read_metadata,
    save_tensors,
    write_atomic,
    write_json,
)
from tla_core.config import TrainConfig, identity_of
from tla_core.dataset_download import OTHER_COPIES
from tla_core.datasets import ImageDataset
from tla_core.runtime import environment_record
from tla_core.wrapping import core


class RunConflictError(RuntimeError):
    """A folder that holds another run, or one that another process is training."""


class RunFolder:
    """``config.json``, ``metrics.jsonl``, ``state.safetensors`` (resumable), ``model.safetensors`` (the result).

    Parameters
    ----------
    path : Path or str
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.state_path = self.path / "state.safetensors"
        self.model_path = self.path / "model.safetensors"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def record(self) -> dict[str, Any] | None:
        """What ``config.json`` says, or None where no run was started.

        Raises
        ------
        CheckpointError
            If the file cannot be read as JSON, or was not written by a training.
        """
        try:
            record = json.loads(self.config_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointError(f"{self.config_path} is damaged: {error}. Move the folder aside.") from error
        if not isinstance(record, dict) or "identity" not in record:
            raise CheckpointError(f"{self.config_path} is not that of a training. Use another folder.")
        return record

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the operating system lets go of it however the process ends.

        Raises
        ------
        RunConflictError
            If another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        owner = self.path / "process.json"
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "unknown"
            raise RunConflictError(
                f"{self.path} is being trained by another process ({who}). Wait for it, end it, or use another folder."
            ) from error
        try:
            owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
            for unfinished in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                unfinished.unlink(missing_ok=True)
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def move_aside(self) -> Path:
        """Rename the folder to the first free ``<name>.old-<k>`` beside it, and return that path.

        A pipeline deletes declared outputs before it repeats a job: a model that is gone is written again from the
        state of its run, so that what is moved aside is whole.

        Raises
        ------
        RunConflictError
            If another process trains there.
        """
        with self.locked():
            if self.state_path.exists() and not self.model_path.exists():
                with contextlib.suppress(CheckpointError):  # a damaged run can be moved aside all the same
                    self.restore_model()
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        os.rename(self.path, aside)
        return aside

    def restore_model(self) -> None:
        """Write ``model.safetensors`` again from the state, if that is the state of a finished run."""
        tensors, metadata = load_tensors(self.state_path)
        if metadata["finished"]:
            selected = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
            run = {**metadata["run"], "kind": "model", "selected": metadata["selected"]}
            save_tensors(self.model_path, selected, run)

    def finished_model(self) -> Path:
        """Path of ``model.safetensors``; FileNotFoundError if there is none."""
        if not self.model_path.is_file():
            raise FileNotFoundError(
                f"{self.path} holds no finished run: there is no {self.model_path.name}. Train it with `tla train`."
            )
        return self.model_path

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a line cut off by a crash is left out."""
        if not self.metrics_path.exists():
            return []
        records = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines after a step: a resumed run writes them again."""
        kept = [json.dumps(record) for record in self.metrics() if record["step"] <= step]
        write_atomic(self.metrics_path, "".join(line + "\n" for line in kept).encode())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def check_copy(self, record: dict[str, Any]) -> None:
        """Refuse to replace a run because its images are not here and another copy of them is.

        Parameters
        ----------
        record : dict
            Of the run that is to be trained here.

        Raises
        ------
        RunConflictError
            If the settings are those of the run that is here, and the images were taken in place of its own.
        """
        before, named, taken = self.record(), record["config"]["dataset"], record["data"]
        if (
            before is not None
            and (self.state_path.exists() or self.model_path.exists())
            and before["config_identity"] == record["config_identity"]
            and before["data"]["checksum"] != taken["checksum"]
            and taken["name"] == OTHER_COPIES.get(named)
        ):
            raise RunConflictError(
                f"{self.path} holds a run of these settings on {before['data']['source']}. Here {taken['source']} is"
                f" taken in place of {named}, another copy of the images: that is another run. Set TLA_DATA to where"
                f" {named} lies, or use another folder (`tla train --out`)."
            )

    def start(self, record: dict[str, Any]) -> None:
        """Write ``config.json`` of a new run, or check that all that is here is of the same run.

        Raises
        ------
        RunConflictError
            If the folder holds a run with another identity; the message names the fields that differ.
        CheckpointError
            If what is there cannot be read.
        """
        before = self.record()
        state = read_metadata(self.state_path).get("run", {}) if self.state_path.exists() else None
        model = read_metadata(self.model_path) if self.model_path.exists() else None
        if state is None and model is None:
            before = None  # a run that was refused, or ended before its first state: nothing is lost with it
        for stored in (before, state, model):
            if stored is not None and stored.get("identity") != record["identity"]:
                raise RunConflictError(
                    f"{self.path} holds a run with another configuration: {describe_differences(stored, record)}. Use"
                    " another folder, or replace the old run, which moves it aside (`tla train --replace`)."
                )
        if before is None:
            write_json(self.config_path, record)


def run_record(
    config: TrainConfig,
    dataset: ImageDataset,
    model: nn.Module | None,
    init_from: Path | str | None,
    device: torch.device,
) -> dict[str, Any]:
    """What ``config.json`` says of a run: its identity, what that is the hash of, and the machine.

    Parameters
    ----------
    config : TrainConfig
    dataset : ImageDataset
    model : nn.Module, optional
        The user's network; None for the preset's. Of its weights only names and shapes count.
    init_from : Path or str, optional
    device : torch.device

    Raises
    ------
    FileNotFoundError
        If `init_from` holds no finished run.
    """
    _, channels, image_size, _ = dataset.images.shape
    identified = {
        "config": config.to_dict(),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "checksum": dataset.checksum,
            "images": len(dataset.labels),
            "channels": channels,
            "image_size": image_size,
            "classes": len(dataset.class_names),
        },
        "start": {
            "network": "preset" if model is None else describe_model(model),
            "init_from": None if init_from is None else file_sha256(RunFolder(init_from).finished_model()),
        },
    }
    return {
        "format": 1,
        # Settings at their defaults are left out of it: a field that is added later leaves old runs what they were.
        "identity": identity_of({**identified, "config": config.identifying_fields()}),
        "config_identity": config.identity,
        **identified,
        "environment": environment_record(device),
    }


def describe_model(model: nn.Module) -> str:
    """A user's network in one line: its class, and a hash of its parameters' names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return f"{type(core(model)).__qualname__} {identity_of(shapes)[:16]}"


def describe_differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the fields in which two run records differ, with both values."""
    # A record that was written before a field was added was made with what is now its default.
    defaults = _flat({"config": TrainConfig().to_dict()})
    flat_before, flat_now = defaults | _flat(before), defaults | _flat(now)
    keys = [key for key in sorted(flat_before | flat_now) if key.startswith(("config.", "data.", "start."))]
    different = [key for key in keys if flat_before.get(key) != flat_now.get(key)]
    return "; ".join(f"{key} was {flat_before.get(key)!r}, is {flat_now.get(key)!r}" for key in different) or "unknown"


def describe_network_differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name what two run records have in different sizes of all that shapes the weights: "10 classes, here 200; "."""
    defaults = _flat({"config": TrainConfig().to_dict()})
    there, here = defaults | _flat(there), defaults | _flat(here)
    parts = {
        "data.classes": "{} classes, here {}", "data.channels": "{} channels, here {}",
        "data.image_size": "images of {} pixels, here {}", "start.network": "the network {}, here {}",
        "config.network": "the network {}, here {}", "config.width": "width {:g}, here {:g}",
        "config.blocks": "blocks {}, here {}",
    }  # fmt: skip
    return "".join(f"{text.format(there[key], here[key])}; " for key, text in parts.items() if there[key] != here[key])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf for key, inner in value.items() for path, leaf in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()
    }
