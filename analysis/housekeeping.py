"""Finds what may go (moved-aside and outdated runs, stale results, leftovers of what was killed), and removes it."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.inventory_costs import size_of, size_text
from analysis.removal import TEMPORARY, committed_files, foreign_files, remove_from, without_pipeline
from analysis.run_inventory import MOVED_ASIDE, below, run_entries, run_folders, user_of
from analysis.scales import results_dir
from tla_core.checkpoint import CheckpointError, file_sha256, read_metadata
from tla_core.run_folder import RunFolder
from tla_core.run_repair import read_intact

# Outdated runs are finished trainings more often than not: they go only where they are named.
CATEGORIES = ("moved-aside", "stale-results", "leftovers", "outdated")
DEFAULT_CATEGORIES = CATEGORIES[:3]
# What may still be written is younger.
LEFT_FOR_SECONDS = 3600.0
_RESULTS = re.compile(
    r"(representations|class-maps|pair-maps)-.+\.safetensors|landscapes\.safetensors|accuracy-\w+\.(safetensors|json)"
    r"|evaluation-.+\.json"
)
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
    why : str
    size : int
        Bytes.
    kept : str
        Why it stays nevertheless; empty if it goes.
    """

    category: str
    path: Path
    why: str
    size: int
    kept: str = ""


@dataclass(frozen=True)
class CleanReport:
    """What `clean` found.

    Attributes
    ----------
    removals : tuple of Removal
        Those that were removed, or would be.
    kept : tuple of Removal
        Those that stay, with the reason.
    removed : bool
        False if this is a list only.
    """

    removals: tuple[Removal, ...]
    kept: tuple[Removal, ...]
    removed: bool

    @property
    def freed(self) -> int:
        """Bytes that were freed, or would be."""
        return sum(removal.size for removal in self.removals)

    def __str__(self) -> str:
        lines = []
        for category in CATEGORIES:
            if found := [removal for removal in self.removals if removal.category == category]:
                lines.append(f"{category}: {len(found)}, {size_text(sum(removal.size for removal in found))}")
                lines += [f"  {size_text(each.size):>9}  {each.path.as_posix()}: {each.why}" for each in found]
        if self.kept:
            lines.append("kept:")
            lines += [f"  {size_text(each.size):>9}  {each.path.as_posix()}: {each.kept}" for each in self.kept]
        verb = "Removed" if self.removed else "Nothing was removed. What is listed to go:"
        return "\n".join([*lines, f"{verb} {len(self.removals)} files or folders, {size_text(self.freed)}."])


def clean(
    root: Path | str,
    *,
    categories: Sequence[str] = DEFAULT_CATEGORIES,
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
        ``moved-aside``: old runs beside the new ones, ``<run>.old-<k>``. ``stale-results``: results of a run that is
        gone, or of weights that it has no more. ``leftovers``: ``.failed.ipynb``, ``.running.ipynb`` and temporary
        files. ``outdated``: runs for which their scale has other settings by now; not among the default.
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
    committed = committed_files(root)
    gone, kept = [], []
    goes: set[Path] = set()
    with without_pipeline(root) if remove else contextlib.nullcontext():
        for removal in _candidates(root, set(categories), scale, goes):
            if not removal.kept and any(path.is_relative_to(removal.path) for path in committed):
                removal = replace(removal, kept="it is committed, or holds what is")
            if remove and not removal.kept:
                removal = replace(removal, kept=remove_from(root, removal.path))
            (kept if removal.kept else gone).append(removal)
            goes |= set() if removal.kept else {root / removal.path}
    return CleanReport(tuple(gone), tuple(kept), remove)


def _candidates(root: Path, categories: set[str], scale: str | None, goes: set[Path]) -> Iterator[Removal]:
    """All that the categories name, runs first; what is in use says so. `goes` is filled by who takes them."""
    for entry in run_entries(root, scale):
        aside = MOVED_ASIDE.fullmatch(entry.path.name)
        category = "moved-aside" if aside else "outdated" if entry.wanted == "outdated" else None
        if category not in categories:
            continue
        user = user_of(RunFolder(root / entry.path)) or foreign_files(root / entry.path)
        why = f"{entry.state}, {'moved aside' if aside else 'its scale has other settings'}"
        yield Removal(category, entry.path, why, entry.size, user)
    if "stale-results" in categories:
        yield from _stale_results(root, scale, goes)
    if "leftovers" in categories:
        yield from _leftovers(root, scale)


def _stale_results(root: Path, scale: str | None, goes: set[Path]) -> Iterator[Removal]:
    run_of = {results_dir(folder): folder for folder in run_folders(root, scale)}
    checksums: dict[Path, str] = {}
    for path in _files(root, ("results",), scale):
        found = _checkpoint_of(path) if _RESULTS.fullmatch(path.name) else None
        if found is None:  # not of a run, or it does not say of which weights
            continue
        run = run_of.get(path.parent)
        why = ""
        if run is None:
            why = "" if _may_be_there(root, path.parent) else "its run is gone"
        elif run in goes:
            why = "its run goes"
        else:
            if run not in checksums:  # none of weights that are damaged, and may be restored
                model = RunFolder(run).model_path
                checksums[run] = file_sha256(model) if read_intact(model, "model")[0] else ""
            why = "its run has other weights by now" if checksums[run] not in ("", found) else ""
        if why:
            user = user_of(RunFolder(run)) if run else ""
            yield Removal("stale-results", path.relative_to(root), why, size_of(path), user and f"its run is {user}")


def _may_be_there(root: Path, results: Path) -> bool:
    """Whether the run of these results has just begun, or would lie behind a link, where it is not looked for."""
    place = root / "runs" / results.relative_to(root / "results")
    return place.exists() or any(
        folder.is_symlink() for folder in (place, *place.parents) if folder.is_relative_to(root / "runs")
    )


def _leftovers(root: Path, scale: str | None) -> Iterator[Removal]:
    for path in _files(root, ("runs", "results", "figures"), scale, temporary_folders=True):
        temporary, notebook = TEMPORARY.fullmatch(path.name), _UNFINISHED_NOTEBOOK.fullmatch(path.name)
        if temporary:
            why = "a file that was not written to its end"
        elif notebook and path.parent.name == "notebooks" and path.is_relative_to(root / "figures"):
            why = "a notebook that failed" if notebook[1] == "failed" else "a notebook that was interrupted"
        else:
            continue
        user = user_of(RunFolder(path.parent)) if temporary else ""
        done = notebook and notebook[1] == "failed"
        if not user and not done and time.time() - path.lstat().st_mtime < LEFT_FOR_SECONDS:
            user = "less than an hour old, it may still be written"
        yield Removal("leftovers", path.relative_to(root), why, size_of(path), user)


def _files(root: Path, tops: Sequence[str], scale: str | None, *, temporary_folders: bool = False) -> Iterator[Path]:
    """Files below some folders of the root, by path; links are neither followed nor returned."""
    for top in tops:
        start = below(root, top, scale)
        for folder, folders, files in os.walk(start) if start else ():
            here = Path(folder)
            half_removed = [name for name in folders if TEMPORARY.fullmatch(name)]
            folders[:] = sorted(set(folders) - set(half_removed))
            names = files + half_removed if temporary_folders else files
            yield from (here / name for name in sorted(names) if not (here / name).is_symlink())


def _checkpoint_of(path: Path) -> str | None:
    """The checksum of the weights that a result was made with; None if it does not say."""
    with contextlib.suppress(CheckpointError, OSError, ValueError):
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
        else:
            found = read_metadata(path)
        if isinstance(found, dict):
            inner = found.get("meta")
            return (inner if isinstance(inner, dict) else found).get("checkpoint_sha256")
    return None
