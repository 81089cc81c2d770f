"""Lists the run folders of a project: what each holds, how far it is, and whether its scale still wants it."""

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.scales.costs import size_of, size_text, total_steps
from analysis.scales.scale import Scale, load_scale
from analysis.tables import Column, Table
from tla_core.checkpoint import CheckpointError, read_metadata
from tla_core.config import TrainConfig
from tla_core.run_folder import RunFolder

MOVED_ASIDE = re.compile(r".+\.old-\d+")
_OF_A_RUN = ("config.json", "model.safetensors", "state.safetensors", "metrics.jsonl")


@dataclass(frozen=True)
class RunEntry:
    """A run folder, as `list_runs` shows it.

    Attributes
    ----------
    path : Path
        Below the root.
    method, dataset, identity : str
        The identity in full; all are empty where ``config.json`` cannot be read.
    state : str
        ``finished``, ``at step k of n``, or ``broken: why``.
    held_out : dict of str to float
        Accuracies on the held-out images, ``clean`` and ``robust``, of the weights that were selected.
    size : int
        Bytes of the folder.
    time : float or None
        When it was last trained, in seconds since 1970.
    standing : str
        ``current``: what the scale would train here. ``outdated``: the scale has other settings for it by now, or it
        was moved aside. ``foreign``: no scale knows such a run.
    """

    path: Path
    method: str
    dataset: str
    identity: str
    state: str
    held_out: dict[str, float]
    size: int
    time: float | None
    standing: str


def list_runs(root: Path | str, scale: str | None = None) -> Table:
    """All run folders below ``runs``, those that were moved aside included; links are not followed.

    Parameters
    ----------
    root : Path or str
        Root of the project.
    scale : str, optional
        Only the runs below ``runs/<scale>``.

    Returns
    -------
    Table

    Raises
    ------
    FileNotFoundError
        If there are no runs.
    """
    entries = run_entries(root, scale)
    if not entries:
        folder = Path(root, "runs", *([scale] if scale else []))
        raise FileNotFoundError(f"there are no runs in {folder}. Train one with `tla train`, or all by `make figures`.")
    rows = [
        {
            "path": entry.path.as_posix(),
            "method": entry.method or None,
            "dataset": entry.dataset or None,
            "identity": entry.identity[:8] or None,
            "state": entry.state,
            "clean": entry.held_out.get("clean"),
            "robust": entry.held_out.get("robust"),
            "size": size_text(entry.size),
            "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.time)) if entry.time else None,
            "wanted": entry.standing,
        }
        for entry in entries
    ]
    titles = {"path": "run", "method": "method", "dataset": "dataset", "identity": "identity", "state": "state"}
    columns = [Column(key, title, align="left") for key, title in titles.items()]
    columns += [Column(key, f"held-out {key}, %", digits=2, percent=True) for key in ("clean", "robust")]
    columns += [Column("size", "size"), Column("date", "last trained"), Column("wanted", "for its scale", align="left")]
    total = size_text(sum(entry.size for entry in entries))
    return Table(columns, rows, f"{len(entries)} run{'s' * (len(entries) > 1)}, {total}")


def run_entries(root: Path | str, scale: str | None = None) -> list[RunEntry]:
    """The same as records, by path."""
    root = Path(root)
    scales: dict[str, Scale | None] = {}
    return [_entry(folder, root, scales) for folder in sorted(run_folders(root, scale))]


def run_folders(root: Path, scale: str | None = None) -> Iterator[Path]:
    """The folders below ``runs`` that hold files of a training; hidden folders and links are passed over."""
    top = below(root, "runs", scale)
    for folder, folders, files in os.walk(top) if top else ():
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(name in files for name in _OF_A_RUN):
            folders.clear()
            yield Path(folder)


def below(root: Path, top: str, scale: str | None) -> Path | None:
    """``<root>/<top>``, or the folder of a scale below it; None where a link leads there.

    Raises
    ------
    ValueError
        If the scale is no plain name.
    """
    if scale is not None and (scale in ("", ".", "..") or Path(scale).name != scale):
        raise ValueError(f"scale must be the name of a folder in {root / top}. Got {scale!r}.")
    folder = root.joinpath(top, *([scale] if scale else []))
    return None if (root / top).is_symlink() or folder.is_symlink() else folder


def wanted_config(folder: Path, root: Path, scales: dict[str, Scale | None]) -> TrainConfig | None:
    """What the scale would train in a folder; None if it is not one of ``<scale>/<dataset>/<method>/seed<n>``.

    Parameters
    ----------
    folder, root : Path
    scales : dict
        Scales that were read before; filled.
    """
    parts = folder.relative_to(root / "runs").parts
    if len(parts) != 4 or not re.fullmatch(r"seed\d+", parts[3]):
        return None
    if parts[0] not in scales:
        try:
            scales[parts[0]] = load_scale(parts[0], root)
        except ValueError:
            scales[parts[0]] = None
    scale = scales[parts[0]]
    if scale is None or parts[1] not in scale.datasets:
        return None
    try:
        return scale.config(parts[1], parts[2], int(parts[3].removeprefix("seed")))
    except ValueError:  # an unknown method or variant
        return None


def user_of(run: RunFolder) -> str:
    """Which living process holds a run folder, as text; empty if none does.

    A process on another machine counts as living: only there can one tell.
    """
    try:
        owner = json.loads((run.path / "process.json").read_text(encoding="utf-8"))
        if owner["host"] != platform.node():
            return f"in use by process {owner['pid']} on {owner['host']}, unless that was killed"
        os.kill(owner["pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except PermissionError:
        pass  # it lives, and is another user's
    except (ValueError, KeyError, TypeError, RecursionError):
        return "in use by a process that has just begun"
    return f"in use by process {owner['pid']}"


def progress_text(run: RunFolder, record: dict[str, Any]) -> str:
    """How far a training without a model is: ``at step 120 of 282``.

    Raises
    ------
    CheckpointError
        If its state cannot be read.
    """
    step = read_metadata(run.state_path)["step"] if run.state_path.exists() else 0
    total = total_steps(TrainConfig.from_dict(record["config"]), record["data"]["images"])
    return f"at step {step:,} of {total:,}"


def _entry(folder: Path, root: Path, scales: dict[str, Scale | None]) -> RunEntry:
    run, place = RunFolder(folder), folder.relative_to(root)
    method = dataset = identity = ""
    held_out: dict[str, float] = {}
    standing = "foreign"
    try:
        record = run.record()
        if record is None:
            raise CheckpointError("there is no config.json")
        identity, config = record["identity"], TrainConfig.from_dict(record["config"])
        method, dataset = config.method, config.dataset
        if MOVED_ASIDE.fullmatch(folder.name):
            standing = "outdated"
        elif (config_now := wanted_config(folder, root, scales)) is not None:
            standing = "current" if config_now.identity == record["config_identity"] else "outdated"
        if run.model_path.exists():
            state, holder = "finished", run.model_path
        else:
            state, holder = progress_text(run, record), run.state_path
        if holder.exists():
            selected = read_metadata(holder)["selected"]
            held_out = {key: selected[key] for key in ("clean", "robust") if key in selected}
    except (CheckpointError, ValueError, KeyError, TypeError, OSError) as error:
        state = f"broken: {error if not isinstance(error, KeyError) else f'a file lacks {error}'}"
    if user := user_of(run):
        state += f", {user}"
    return RunEntry(place, method, dataset, identity, state, held_out, size_of(folder), _last_trained(run), standing)


def _last_trained(run: RunFolder) -> float | None:
    """By the time stamps of its metrics, which copying a folder leaves as they are; else by the time of its files."""
    stamps = [record["time"] for record in run.metrics() if "time" in record]
    files = [path for path in (run.model_path, run.state_path, run.config_path) if path.exists()]
    return stamps[-1] if stamps else next((path.stat().st_mtime for path in files), None)
