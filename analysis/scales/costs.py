"""Seconds of trainings, by the time stamps of metrics.jsonl, and bytes of files; as text for people."""

import contextlib
import os
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from tla_core.config import TrainConfig

# An interval between two lines of metrics.jsonl that is longer than so many times the median was an interruption.
PAUSE = 10


def seconds_per_step(metrics: list[dict[str, Any]]) -> float | None:
    """Seconds that a step of a training took, with its share of the evaluations on held-out images.

    Intervals of more than `PAUSE` times the median are interruptions and left out. None where fewer than two lines
    have a time stamp.
    """
    stamps = [(record["step"], record["time"]) for record in metrics if "time" in record]
    intervals = [(later - step, then - now) for (step, now), (later, then) in pairwise(stamps) if later > step]
    if not intervals:
        return None
    limit = PAUSE * statistics.median(seconds / steps for steps, seconds in intervals)
    steady_intervals = [(steps, seconds) for steps, seconds in intervals if seconds / steps <= limit]
    return sum(seconds for _, seconds in steady_intervals) / sum(steps for steps, _ in steady_intervals)


def total_steps(config: TrainConfig, images: int) -> int:
    """Steps of a training on so many images, those that are held out included."""
    return config.iterations or config.epochs * ((images - config.holdout) // config.batch_size)


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
