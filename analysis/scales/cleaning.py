"""Finds and removes what nothing needs any more: runs that were moved aside, and unfinished files.

Nothing goes that is committed, in use, or behind a link.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from analysis.scales.costs import size_of, size_text
from analysis.scales.lock import pipeline_lock
from analysis.scales.runs import MOVED_ASIDE, below, run_entries, user_of
from tla_core.run_folder import RunFolder

CATEGORIES = ("moved-aside", "leftovers")
# A younger file may still be written.
LEFT_FOR_SECONDS = 3600.0
TEMPORARY = re.compile(r"\..+\.(\d+\.tmp|shards)")
# What a training, and a look at its files, leaves in the folder of a run.
_OF_A_RUN = re.compile(r"(config\.json|metrics\.jsonl|(state|model)\.safetensors|lock|process\.json|tensorboard)")
_UNFINISHED_NOTEBOOK = re.compile(r".+\.(failed|running)\.ipynb")


@dataclass(frozen=True)
class Removal:
    """A file or folder that may go.

    Attributes
    ----------
    category : str
        One of `CATEGORIES`.
    path : Path
        Below the root.
    reason : str
    size : int
        Bytes.
    obstacle : str
        Why it stays nevertheless; empty if it goes.
    """

    category: str
    path: Path
    reason: str
    size: int
    obstacle: str = ""


@dataclass(frozen=True)
class CleanReport:
    """What `clean` found.

    Attributes
    ----------
    removals : tuple of Removal
        Those that were removed, or would be.
    exceptions : tuple of Removal
        Those that stay, with the reason.
    removed : bool
        False if this is a list only.
    """

    removals: tuple[Removal, ...]
    exceptions: tuple[Removal, ...]
    removed: bool

    @property
    def freed(self) -> int:
        """Bytes that were freed, or would be."""
        return sum(removal.size for removal in self.removals)

    def __str__(self) -> str:
        lines = []
        for category in CATEGORIES:
            if removals := [removal for removal in self.removals if removal.category == category]:
                lines.append(f"{category}: {len(removals)}, {size_text(sum(removal.size for removal in removals))}")
                lines += [f"  {size_text(each.size):>9}  {each.path.as_posix()}: {each.reason}" for each in removals]
        if self.exceptions:
            lines.append("kept:")
            for each in self.exceptions:
                lines.append(f"  {size_text(each.size):>9}  {each.path.as_posix()}: {each.obstacle}")
        verb = "Removed" if self.removed else "Nothing was removed. What is listed to go:"
        return "\n".join([*lines, f"{verb} {len(self.removals)} files or folders, {size_text(self.freed)}."])


def clean(
    root: Path | str,
    *,
    categories: Sequence[str] = CATEGORIES,
    scale: str | None = None,
    remove: bool = False,
) -> CleanReport:
    """List what nothing needs any more below ``runs``, ``results`` and ``figures``; with `remove`, remove it.

    Nothing goes that git knows, that a living process holds, or that lies behind a link, and no run with files in its
    folder that no training writes; what a process may still be writing must be an hour old. Of the figures only
    unfinished notebooks and temporary files go.

    Parameters
    ----------
    root : Path or str
        Root of the project.
    categories : sequence of str
        ``moved-aside``: old runs beside the new ones, ``<run>.old-<k>``. ``leftovers``: ``.failed.ipynb``,
        ``.running.ipynb``, temporary files, and the batches of extractions that were interrupted.
    scale : str, optional
        Only what is below ``runs/<scale>`` and so on.
    remove : bool
        False only lists.

    Returns
    -------
    CleanReport

    Raises
    ------
    ValueError
        For an unknown category, or a scale that is no plain name.
    PipelineError
        If something is to be removed while a pipeline is at work in the project.
    RuntimeError
        If git cannot say which files are committed.
    """
    if unknown := sorted(set(categories) - set(CATEGORIES)):
        raise ValueError(f"categories must be of {', '.join(CATEGORIES)}. Got {', '.join(unknown)}.")
    root = Path(root).resolve()
    committed = _committed_files(root)
    removals, exceptions = [], []
    with pipeline_lock(root) if remove and (root / ".snakemake").is_dir() else contextlib.nullcontext():
        for removal in _candidates(root, set(categories), scale):
            if not removal.obstacle and any(path.is_relative_to(removal.path) for path in committed):
                removal = replace(removal, obstacle="it is committed, or holds what is")
            if remove and not removal.obstacle:
                removal = replace(removal, obstacle=_remove(root, removal.path))
            (exceptions if removal.obstacle else removals).append(removal)
    return CleanReport(tuple(removals), tuple(exceptions), remove)


def _candidates(root: Path, categories: set[str], scale: str | None) -> Iterator[Removal]:
    """All that the categories name, runs first; what is in use says so."""
    if "moved-aside" in categories:
        for entry in run_entries(root, scale):
            if MOVED_ASIDE.fullmatch(entry.path.name):
                user = user_of(RunFolder(root / entry.path)) or _foreign_files(root / entry.path)
                yield Removal("moved-aside", entry.path, f"{entry.state}, moved aside", entry.size, user)
    if "leftovers" in categories:
        yield from _leftovers(root, scale)


def _leftovers(root: Path, scale: str | None) -> Iterator[Removal]:
    for path in _files(root, scale):
        temporary, notebook = TEMPORARY.fullmatch(path.name), _UNFINISHED_NOTEBOOK.fullmatch(path.name)
        if temporary:
            reason = "a file that was not written to its end"
            if path.name.endswith(".shards"):
                reason = "batches of an extraction that was interrupted; the same command would go on from them"
        elif notebook and path.parent.name == "notebooks" and path.is_relative_to(root / "figures"):
            reason = "a notebook that failed" if notebook[1] == "failed" else "a notebook that was interrupted"
        else:
            continue
        user = user_of(RunFolder(path.parent)) if temporary else ""
        is_finished = notebook and notebook[1] == "failed"
        if not user and not is_finished and time.time() - path.lstat().st_mtime < LEFT_FOR_SECONDS:
            user = "less than an hour old, it may still be written"
        yield Removal("leftovers", path.relative_to(root), reason, size_of(path), user)


def _files(root: Path, scale: str | None) -> Iterator[Path]:
    """Files and temporary folders below runs, results and figures, by path; links are neither followed nor returned."""
    for top in ("runs", "results", "figures"):
        start = below(root, top, scale)
        for folder, folders, files in os.walk(start) if start else ():
            place = Path(folder)
            half_removed = [name for name in folders if TEMPORARY.fullmatch(name)]
            folders[:] = sorted(set(folders) - set(half_removed))
            yield from (place / name for name in sorted(files + half_removed) if not (place / name).is_symlink())


def _remove(root: Path, path: Path) -> str:
    """Remove a file or folder below the root, and the folders above it that are empty then; returns why it stays."""
    try:
        return _remove_unless_in_use(root, root / path)
    except OSError as error:
        return f"it could not be removed: {error}"


def _remove_unless_in_use(root: Path, path: Path) -> str:
    # The list may be old by now, and part of the way a link.
    if path.resolve() != path:
        return "it lies behind a link"
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif TEMPORARY.fullmatch(path.name):
        shutil.rmtree(path)
    else:
        # Renamed while its lock is held: who trains there next begins with an empty folder, and a removal that is
        # interrupted leaves what the next one takes for a leftover.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with FileLock(path / "lock", timeout=0):
                if user := user_of(RunFolder(path)) or _foreign_files(path):
                    return user
                os.rename(path, temporary)
        except Timeout:
            return "in use by another process"
        shutil.rmtree(temporary)
    tops = [root / name for name in ("runs", "results", "figures")]
    for folder in path.parents:
        if folder in tops or any(folder.iterdir()):
            break
        folder.rmdir()
    return ""


def _foreign_files(run: Path) -> str:
    """Why a run folder stays: what lies in it that no training writes, such as notes; empty if there is nothing."""
    names = [path.name for path in sorted(run.iterdir()) if not _OF_A_RUN.fullmatch(path.name)]
    foreign_names = [name for name in names if not TEMPORARY.fullmatch(name)]
    return f"it holds {', '.join(foreign_names)}, which no training writes" if foreign_names else ""


def _committed_files(root: Path) -> set[Path]:
    """Files below runs, results and figures that git knows, relative to the root; none where there is no repository.

    Raises
    ------
    RuntimeError
        If git cannot say.
    """
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return set()
    command = ["git", "-C", str(root), "ls-files", "-z", "runs", "results", "figures"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(
            f"git cannot say which files of {root} are committed ({error}), so nothing is listed or removed. Make"
            f" `git -C {root} ls-files` work."
        ) from error
    return {Path(os.fsdecode(name)) for name in listing.split(b"\0") if name}
