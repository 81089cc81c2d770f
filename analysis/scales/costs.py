"""What runs and results cost, as measured: time stamps of trainings, Snakemake's records of jobs, sizes of files."""

import base64
import binascii
import contextlib
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis.scales.plan import Item
from analysis.scales.scale import Scale
from analysis.scales.variants import split_variant
from tla_core.checkpoint import CheckpointError, read_metadata
from tla_core.config import TrainConfig
from tla_core.run_folder import RunFolder

# Between two lines of metrics.jsonl; what took longer than so many times the median was an interruption.
PAUSE = 10


class Costs:
    """Time and disk that the items of one scale take, as measured on those that are there.

    A training takes the time per step of another of the same method, variants included, on the same dataset. Any
    other job takes what Snakemake recorded for the same kind of job on the same dataset, of the same method where
    there is one. What was never measured at this scale is unknown.

    Parameters
    ----------
    scale : Scale
    items : iterable of Item
        See `scale_items`.
    """

    def __init__(self, scale: Scale, items: Iterable[Item]) -> None:
        self.scale = scale
        self._images: dict[str, int] = {}
        self._rates: dict[tuple, list[float]] = defaultdict(list)
        self._jobs: dict[tuple, list[float]] = defaultdict(list)
        self._sizes: dict[tuple, list[int]] = defaultdict(list)
        recorded = job_seconds(scale.root)
        for item in items:
            if item.kind == "model":
                self._measure_training(item)
            elif item.path in recorded:
                for key in _keys(item):
                    self._jobs[key].append(recorded[item.path])
            if (scale.root / item.path).is_file():
                self._sizes[_size_key(item)].append(size_of(self.place(item)))

    def place(self, item: Item) -> Path:
        """The file of an item, or the whole folder of a training."""
        path = self.scale.root / item.path
        return path.parent if item.kind == "model" else path

    def seconds(self, item: Item, todo: set[str]) -> float | None:
        """What making an item takes, of an unfinished training the rest of it; None if nothing like it was measured.

        Parameters
        ----------
        item : Item
        todo : set of str
            Paths of all items that are to be made.
        """
        if item.kind == "model":
            return self._training_seconds(item)
        together = item.kind == "pair maps" and item.path.replace("pair-maps", "class-maps") in todo
        keys = _keys(replace(item, kind="class maps") if together else item)
        found = next((self._jobs[key] for key in keys if self._jobs[key]), None)
        if found is None:
            return None
        return 0.0 if together else statistics.fmean(found)  # one command makes both maps, and is counted once

    def bytes(self, item: Item) -> int | None:
        """What an item takes on the disk, by files of the same kind."""
        found = self._sizes.get(_size_key(item))
        return round(statistics.fmean(found)) if found else None

    def _measure_training(self, item: Item) -> None:
        run = RunFolder(self.place(item))
        with contextlib.suppress(CheckpointError, KeyError, OSError):
            if record := run.record():
                self._images[item.dataset] = record["data"]["images"]
            if rate := seconds_per_step(run.metrics()):
                self._rates[item.dataset, split_variant(item.method)[0]].append(rate)

    def _training_seconds(self, item: Item) -> float | None:
        config = self.scale.config(item.dataset, item.method, item.seed)
        rates, images = self._rates[item.dataset, split_variant(item.method)[0]], self._images.get(item.dataset)
        if not rates or not (images or config.iterations):
            return None
        return statistics.median(rates) * (total_steps(config, images or 0) - self._steps_done(item, config))

    def _steps_done(self, item: Item, config: TrainConfig) -> int:
        run = RunFolder(self.place(item))
        with contextlib.suppress(CheckpointError, FileNotFoundError, KeyError):
            if (record := run.record()) is not None and record["config_identity"] == config.identity:
                return read_metadata(run.state_path)["step"]
        return 0


def seconds_per_step(metrics: list[dict[str, Any]]) -> float | None:
    """What a step of a training took, its share of the evaluations on held-out images included.

    Intervals of more than `PAUSE` times the median are interruptions and left out. None where fewer than two lines
    have a time stamp.
    """
    stamps = [(record["step"], record["time"]) for record in metrics if "time" in record]
    intervals = [(later - step, then - now) for (step, now), (later, then) in pairwise(stamps) if later > step]
    if not intervals:
        return None
    longest = PAUSE * statistics.median(seconds / steps for steps, seconds in intervals)
    kept = [(steps, seconds) for steps, seconds in intervals if seconds / steps <= longest]
    return sum(seconds for _, seconds in kept) / sum(steps for steps, _ in kept)


def total_steps(config: TrainConfig, images: int) -> int:
    """Steps of a training on so many images, those that are held out included."""
    return config.iterations or config.epochs * ((images - config.holdout) // config.batch_size)


def job_seconds(root: Path) -> dict[str, float]:
    """Path of an output -> what the job that made it took, by the records that Snakemake keeps in the project.

    Their format is Snakemake's own; a record that does not look as expected is passed over.
    """
    folder, found = root / ".snakemake" / "metadata", {}
    for file in folder.rglob("*") if folder.is_dir() else ():
        name = "".join(part.removeprefix("@") for part in file.relative_to(folder).parts)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, binascii.Error):
            record = json.loads(file.read_text(encoding="utf-8"))
            path = base64.b64decode(name, altchars=b"-_", validate=True).decode()
            if not record["incomplete"] and record["endtime"] >= record["starttime"]:
                found[path] = record["endtime"] - record["starttime"]
    return found


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed, and what is not there has none."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if path.exists() or path.is_symlink() else 0
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # a temporary file that is gone by now
                total += Path(folder, name).lstat().st_size
    return total


def size_text(size: float | None) -> str:
    """``21.4 MB``; ``unknown`` for None."""
    if size is None:
        return "unknown"
    unit = next((unit for unit in ("GB", "MB", "kB") if size >= _UNITS[unit]), "B")
    return f"{size / _UNITS[unit]:.1f} {unit}" if unit != "B" else f"{size:.0f} B"


def duration_text(seconds: float | None) -> str:
    """``40 s``, ``12 min`` or ``3.5 h``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1}


def _keys(item: Item) -> list[tuple]:
    """By what a job is found again, the closest first."""
    if not item.method:
        return [(item.path,)]
    kind = (item.kind, item.dataset, "--only" in item.command)  # one column takes less than the whole table
    return [(*kind, split_variant(item.method)[0]), kind]


def _size_key(item: Item) -> tuple:
    return (item.kind, item.dataset) if item.method else (item.path,)
