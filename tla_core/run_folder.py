"""The folder of one training: which files it holds, who may write there, and how an old run is kept."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tla_core.checkpoint import CheckpointError, load_tensors, save_tensors, write_atomic, write_json


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
            If the file cannot be read as JSON.
        """
        try:
            return json.loads(self.config_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointError(f"{self.config_path} is damaged: {error}. Move the folder aside.") from error

    @contextmanager
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
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def move_aside(self) -> Path:
        """Rename the folder to the first free ``<name>.old-<k>`` beside it, and return that path.

        A pipeline deletes declared outputs before it repeats a job: a model that is gone is written again from the
        state of its run, so that what is moved aside is whole.
        """
        if self.state_path.exists() and not self.model_path.exists():
            self.restore_model()
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        os.rename(self.path, aside)
        return aside

    def restore_model(self) -> bool:
        """Write ``model.safetensors`` again from the state of a finished run; False if the run was not finished."""
        tensors, metadata = load_tensors(self.state_path)
        if not metadata["finished"]:
            return False
        selected = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
        save_tensors(self.model_path, selected, {**metadata["run"], "kind": "model", "selected": metadata["selected"]})
        return True

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

    def start(self, record: dict[str, Any]) -> None:
        """Write ``config.json`` of a new run, or check that it is the same run as before.

        Raises
        ------
        RunConflictError
            If the folder holds a run with another identity; the message names the fields that differ.
        """
        before = self.record()
        if before is None:
            write_json(self.config_path, record)
        elif before.get("identity") != record["identity"]:
            raise RunConflictError(
                f"{self.path} holds a run with another configuration: {describe_differences(before, record)}. Use another"
                " folder, or replace the old run, which moves it aside (`tla train --replace`)."
            )


def describe_differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the fields in which two run records differ, with both values."""
    flat_before, flat_now = _flat(before), _flat(now)
    keys = [key for key in sorted(set(flat_before) | set(flat_now)) if key.startswith(("config.", "data.", "start."))]
    different = [key for key in keys if flat_before.get(key) != flat_now.get(key)]
    return "; ".join(f"{key} was {flat_before.get(key)!r}, is {flat_now.get(key)!r}" for key in different) or "unknown"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf for key, inner in value.items() for path, leaf in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()
    }
