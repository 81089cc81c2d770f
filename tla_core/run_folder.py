"""The folder of one training: which files it holds, who may write there, and how an old run is kept."""

import contextlib
import json
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from tla_core.checkpoint import (
    CheckpointError,
    explained,
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
from tla_core.naming import source_digest
from tla_core.run_records import check_numbers, check_record, describe_differences, record_of
from tla_core.runtime import environment_record
from tla_core.wrapping import core, normalization_inside


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
        if self.path.name in ("", ".."):  # the folder that one is in, which has to have a name to be moved aside
            self.path = Path(os.path.abspath(path))
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
            If the file is damaged, was edited, or was not written by a training; with what writes it again.
        """
        content = None
        try:
            content = json.loads(self.config_path.read_bytes())
            check_record(content)
            environment = content.get("environment")
            if not isinstance(environment, dict) or not isinstance(environment["versions"], dict):
                raise ValueError("was altered: it does not say on which machine the run was begun")
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            # A message of our own checks begins with a verb. Of other errors the user is told the reason alone.
            reason = str(error) if str(error).startswith(("was ", "is ")) else f"is damaged: {error}"
            raise CheckpointError(f"{self.config_path} {reason}{self._way_to_a_config(content)}") from error
        return content

    def _way_to_a_config(self, content: Any) -> str:
        """How it differs from what the weights or the state say, and how to write it again from them."""
        for path, kind in ((self.model_path, "model"), (self.state_path, "state")):
            with contextlib.suppress(CheckpointError, OSError):
                intact, differences = record_of(path, kind, read_metadata(path)), ""
                if isinstance(content, dict):
                    differences = f" ({describe_differences(intact, content)})"
                return f"{differences}. `tla repair {quote(str(self.path))}` writes it again from {path.name}."
        return ". Move the folder aside, as `tla train ... --replace` does, or use another folder."

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the operating system lets go of it however the process ends.

        Raises
        ------
        RunConflictError
            If another process holds it.
        """
        owner = self.path / "process.json"
        lock = FileLock(self.path / "lock")
        with explained(self.path / "lock", advice=", or use a folder (--out) on a disk that keeps locks"):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                process = owner.read_text(encoding="utf-8", errors="replace").strip() if owner.exists() else "unknown"
                raise RunConflictError(
                    f"{self.path} is being trained by another process ({process}). Wait for it, end it, or use another"
                    " folder."
                ) from error
        try:
            with explained(owner):
                owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
            for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
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
        while (target := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        os.rename(self.path, target)
        return target

    def restore_model(self) -> None:
        """Write ``model.safetensors`` again from the state, if that is the state of a finished run."""
        tensors, metadata = load_tensors(self.state_path)
        record_of(self.state_path, "state", metadata)
        if metadata["finished"]:
            selected = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
            check_numbers(self.state_path, selected, metadata["run"])
            run = {**metadata["run"], "kind": "model", "selected": metadata["selected"]}
            save_tensors(self.model_path, selected, run)

    def finished_model(self) -> Path:
        """Path of ``model.safetensors``, whose beginning and ``config.json`` say what was trained.

        Raises
        ------
        FileNotFoundError
            If there is none.
        CheckpointError
            If it is no file of weights, or ``config.json`` is damaged or that of other weights. The message says what
            ends that. That every weight is intact is verified when they are loaded.
        """
        if not self.model_path.is_file():
            raise FileNotFoundError(
                f"{self.path} holds no finished run: there is no {self.model_path.name}. Train it with `tla train`."
            )
        with self._way_out():
            trained = record_of(self.model_path, "model", read_metadata(self.model_path))
        self._check_config(trained)
        return self.model_path

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The selected weights of a finished run and its record, all verified; raises as `finished_model` does."""
        path = self.finished_model()
        with self._way_out():
            tensors, metadata = load_tensors(path)
            check_numbers(path, tensors, metadata)
        return tensors, metadata

    @contextlib.contextmanager
    def _way_out(self) -> Iterator[None]:
        """Add to an error about the weights what ends it."""
        try:
            yield
        except CheckpointError as error:
            way = self.train_again
            with contextlib.suppress(CheckpointError, OSError):
                record_of(self.state_path, "state", read_metadata(self.state_path))
                way = f"`tla repair {quote(str(self.path))}` restores it from {self.state_path.name} beside it."
            raise CheckpointError(f"{error} {way}") from error

    @property
    def train_again(self) -> str:
        """What is left to do where nothing can be restored."""
        return (
            "Nothing beside it can restore it: take a copy, or train it again with the settings that it had (`tla train"
            f" ... --out {quote(str(self.path))} --replace`), which moves this folder aside."
        )

    def _check_config(self, trained: dict[str, Any]) -> None:
        record = self.record()
        if record is not None and record["identity"] != trained["identity"]:
            raise CheckpointError(
                f"{self.config_path} contradicts {self.model_path.name}: {describe_differences(trained, record)}."
                f" `tla repair {quote(str(self.path))}` writes it again as the weights were trained."
            )

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; the last one is left out if a crash cut it off.

        Warns
        -----
        UserWarning
            Of every other line that cannot be read; those behind it are kept.
        """
        records, bad = self.metrics_lines()
        if bad:
            lines = ", ".join(str(number) for number in bad)
            warnings.warn(
                f"{self.metrics_path}: line {lines} cannot be read and is left out. `tla repair"
                f" {quote(str(self.path))}` removes it.",
                stacklevel=2,
            )
        return records

    def metrics_lines(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The lines that can be read, and the numbers of those that cannot, counted from 1."""
        if not self.metrics_path.exists():
            return [], []
        *lines, last = self.metrics_path.read_bytes().split(b"\n")
        records, bad = [], []
        for number, line in enumerate([*lines, last], 1):
            try:
                records.append(_metrics_record(line))
            except (ValueError, RecursionError):
                if number <= len(lines):  # else it was not written to its end
                    bad.append(number)
        return records, bad

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines after a step: a resumed run writes them again."""
        lines = [json.dumps(record) for record in self.metrics() if record["step"] <= step]
        write_atomic(self.metrics_path, "".join(line + "\n" for line in lines).encode())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line."""
        with explained(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
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
        dataset, data = record["config"]["dataset"], record["data"]
        try:
            old_record = self.record()
        except CheckpointError:  # told elsewhere
            return
        if (
            old_record is not None
            and (self.state_path.exists() or self.model_path.exists())
            and old_record["config_identity"] == record["config_identity"]
            and old_record["data"]["checksum"] != data["checksum"]
            and data["name"] == OTHER_COPIES.get(dataset)
        ):
            raise RunConflictError(
                f"{self.path} holds a run of these settings on {old_record['data']['source']}. Here {data['source']} is"
                f" taken in place of {dataset}, another copy of the images: that is another run. Set TLA_DATA to where"
                f" {dataset} lies, or use another folder (`tla train --out`)."
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
        old_records = []
        for path, kind in ((self.model_path, "model"), (self.state_path, "state")):
            # One of the two is intact: `mend` has seen to that.
            with contextlib.suppress(CheckpointError, FileNotFoundError):
                old_records.append(record_of(path, kind, read_metadata(path)))
        for old_record in old_records:
            self._refuse_another(old_record, record)
        # Without them a run was refused, or ended before its first state: nothing is lost with it.
        config_record = self.record() if old_records else None
        if config_record is not None:
            self._refuse_another(config_record, record)
        else:
            write_json(self.config_path, record)

    def _refuse_another(self, old_record: dict[str, Any], record: dict[str, Any]) -> None:
        if old_record["identity"] != record["identity"]:
            raise RunConflictError(
                f"{self.path} holds a run with another configuration: {describe_differences(old_record, record)}. Use"
                " another folder, or replace the old run, which moves it aside (`tla train --replace`)."
            )


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
            **({"step_sha256": source_digest(config.step)} if config.step else {}),
            **({"normalization": inside} if model is not None and (inside := normalization_inside(model)) else {}),
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


def _metrics_record(line: bytes) -> dict[str, Any]:
    """A line of the metrics; ValueError if no training wrote it."""
    record = json.loads(line)
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError("a line must be an object with a step")
    if not isinstance(record.get("time", 0), (int, float)):
        raise ValueError("a time must be a number")
    if not all(isinstance(record.get(part, {}), dict) for part in ("terms", "holdout", "triplets")):
        raise ValueError("what is measured must be an object")
    return record
