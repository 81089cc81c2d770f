"""Removes files and run folders without harm to what is committed, in use, or behind a link."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from analysis.pipeline import PipelineError
from analysis.run_inventory import user_of
from tla_core.run_folder import RunFolder

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
# What a training, and a look at its files, leaves in the folder of a run.
_OF_A_RUN = re.compile(r"(config\.json|metrics\.jsonl|(state|model)\.safetensors|lock|process\.json|tensorboard)")


def remove_from(root: Path, path: Path) -> str:
    """Remove a file or folder below runs, results or figures, and the folders above it that are empty then.

    Parameters
    ----------
    root : Path
        Resolved.
    path : Path
        Below the root.

    Returns
    -------
    str
        Why it stays; empty if it is gone.
    """
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
        hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with FileLock(path / "lock", timeout=0):
                if user := user_of(RunFolder(path)) or foreign_files(path):
                    return user
                os.rename(path, hidden)
        except Timeout:
            return "in use by another process"
        shutil.rmtree(hidden)
    tops = [root / name for name in ("runs", "results", "figures")]
    for folder in path.parents:
        if folder in tops or any(folder.iterdir()):
            break
        folder.rmdir()
    return ""


def foreign_files(run: Path) -> str:
    """Why a run folder stays: what lies in it that no training writes, such as notes; empty if there is nothing."""
    names = [path.name for path in sorted(run.iterdir()) if not _OF_A_RUN.fullmatch(path.name)]
    foreign = [name for name in names if not TEMPORARY.fullmatch(name)]
    return f"it holds {', '.join(foreign)}, which no training writes" if foreign else ""


@contextlib.contextmanager
def without_pipeline(root: Path) -> Iterator[None]:
    """Hold off the pipeline of a project: none is at work, and none begins.

    Raises
    ------
    PipelineError
        If one is at work.
    """
    import fcntl

    state = root / ".snakemake"
    if not state.is_dir():
        yield
        return
    with (state / "tla.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(f"a pipeline is at work in {root}. Wait for it, or end it, and clean then.") from error
        yield


def committed_files(root: Path) -> set[Path]:
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
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(
            f"git cannot say which files of {root} are committed ({error}), so nothing is listed or removed. Make"
            f" `git -C {root} ls-files` work."
        ) from error
    return {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
