"""The lock of a checkout: one pipeline at a time, and nothing is removed beside one."""

import contextlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tla_core.checkpoint import explained


class PipelineError(RuntimeError):
    """The pipeline failed, or another one is at work in the same checkout."""


@contextlib.contextmanager
def pipeline_lock(root: Path) -> Iterator[TextIO]:
    """Hold off every other pipeline of a project for the length of the block.

    Yields
    ------
    file
        Processes that inherit it hold the lock too, until the last of them ends; the operating system releases it.

    Raises
    ------
    PipelineError
        If a pipeline is at work; with its process, since when, and what it does.
    OSError
        If the folder cannot be written, or its disk keeps no locks.
    """
    import fcntl

    path = root / ".snakemake" / "tla.lock"
    with contextlib.ExitStack() as stack:
        with explained(path, advice=", or work in a copy of the project on a disk that keeps locks"):
            path.parent.mkdir(exist_ok=True)
            lock = stack.enter_context(path.open("a+", encoding="utf-8", errors="replace"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PipelineError(_refusal(root, lock)) from error
            lock.truncate(0)
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            since = time.strftime("%Y-%m-%d %H:%M")
            json.dump({"pid": os.getpid(), "host": platform.node(), "since": since, "command": command}, lock)
            lock.flush()
        yield lock


def _refusal(root: Path, lock: TextIO) -> str:
    """Who holds the lock, and what to do."""
    lock.seek(0)
    try:
        owner = json.load(lock)
        holder = f"process {owner['pid']} on {owner['host']}, since {owner['since']}: `{owner['command']}`"
        if owner["host"] == platform.node() and not _is_running(int(owner["pid"])):
            return f"{root} is busy: of {holder}, the jobs are still ending. Try again in a few seconds."
    except (ValueError, TypeError, KeyError):
        return f"another pipeline is at work in {root}. Wait for it, or end it."
    return f"another pipeline is at work in {root}: {holder}. Wait for it, or end it (`kill {owner['pid']}`)."


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
