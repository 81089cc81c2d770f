"""The lock of a checkout: one pipeline at a time, and nothing is removed beside one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


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
        If a pipeline is at work.
    """
    import fcntl

    state = root / ".snakemake"
    state.mkdir(exist_ok=True)
    with (state / "tla.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(f"another pipeline is at work in {root}. Wait for it, or end it.") from error
        yield lock
