"""Snakemake as a child of `tla figures`: it says what its jobs do, and ends them when that process is gone.

A socket leads there. It reaches its end when that process ends, whatever ended it; nothing has to be polled or known.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any, BinaryIO

# Seconds that a job is given to save its state.
GRACE = 30.0
# What Snakemake asks of SLURM, which is how it ends jobs there.
_OF_SLURM = {"sbatch", "scancel", "scontrol", "sinfo", "squeue"}
# Snakemake's event -> what is said of it.
_TOLD = {
    "run_info": ("stats",),
    "job_info": ("jobid", "rule_name", "output", "log"),
    "job_finished": ("job_id",),
    "job_error": ("jobid", "rule_name", "output", "log", "shellcmd"),
}


@contextlib.contextmanager
def started(
    arguments: Sequence[str], *, environment: dict[str, str], inherited: Sequence[int], output: BinaryIO | None
) -> Iterator[tuple[Popen, Iterator[dict[str, Any] | None]]]:
    """Run Snakemake for the length of the block; when the block is left before it has ended, its jobs are ended.

    Parameters
    ----------
    arguments : sequence of str
        Of the command ``snakemake``.
    environment : dict
    inherited : sequence of int
        File descriptors that it keeps.
    output : file, optional
        In place of this process's own streams.

    Yields
    ------
    Popen
    iterator
        Of what it says of its jobs, with None at least once a second, until it ends.
    """
    ours, its = socket.socketpair()
    # In a process group of its own, so that a Ctrl+C in the terminal reaches its jobs once: by this process.
    process = Popen(
        [sys.executable, "-m", "analysis.command.snakemake_process", str(its.fileno()), *arguments],
        env=environment, stdin=DEVNULL, stdout=output, stderr=output, process_group=0,
        pass_fds=[its.fileno(), *inherited],
    )  # fmt: skip
    its.close()
    try:
        with ours:
            yield process, _events(ours)
    finally:
        _end(process)


def _events(channel: socket.socket) -> Iterator[dict[str, Any] | None]:
    channel.settimeout(1)
    rest = b""
    while True:
        try:
            part = channel.recv(1 << 16)
        except TimeoutError:
            yield None
            continue
        except OSError:
            return
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from map(json.loads, lines)


def _end(process: Popen) -> None:
    """Wait for Snakemake, which is ending its jobs, and for what outlives it where it is killed."""
    try:
        process.wait(2 * GRACE)
    except (TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
    end = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):  # of its process group nothing is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < end:
            time.sleep(0.1)
            os.killpg(process.pid, 0)
        os.killpg(process.pid, signal.SIGKILL)


def _end_jobs() -> None:
    """Tell each job on this machine once to end, wait for them, and kill those that do not."""
    import psutil

    told, end = set(), time.monotonic() + GRACE
    while children := psutil.Process().children():
        late = time.monotonic() > end
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                if late:
                    for process in [*child.children(recursive=True), child]:
                        process.kill()
                elif child not in told:
                    # Not the shell around a job: Snakemake would not wait for the job then.
                    inside = child.children() if child.name().endswith("sh") else []
                    for process in inside or [child]:
                        if process.name() not in _OF_SLURM:
                            process.terminate()
                    told.add(child)
        if late:
            return
        time.sleep(0.1)


def _tell(channel: socket.socket, record: logging.LogRecord) -> bool:
    """Say what a record of Snakemake's is about, as one line of JSON."""
    event = str(getattr(record, "event", None) or "")
    if event in _TOLD:
        line = {"event": event, **{key: getattr(record, key, None) for key in _TOLD[event]}}
        with contextlib.suppress(OSError):  # nobody listens any more
            channel.sendall(json.dumps(line, default=str).encode() + b"\n")
    return True


def _end_with(channel: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while channel.recv(1):
            pass
    # As Ctrl+C: it starts nothing more, and cancels what it has submitted to a cluster.
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    _end_jobs()
    # On a cluster its jobs are cancelled by then, and it waits for its next look at the queue.
    time.sleep(2 * GRACE / 3)
    os._exit(1)


def _guess_no_account() -> None:
    """Where the profile names no account, leave it to SLURM, which knows the user's own.

    The executor would ask `sacct`, which fails where no accounts are kept; its release 2.8 hands over a pipe as an
    argument, and fails everywhere.
    """
    with contextlib.suppress(ImportError):
        import snakemake_executor_plugin_slurm

        snakemake_executor_plugin_slurm.get_account = lambda logger: None


def _main() -> None:
    channel = socket.socket(fileno=int(sys.argv.pop(1)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which `make figures &` has taken away
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    from snakemake.cli import main
    from snakemake.logging import logger

    logger.addFilter(lambda record: _tell(channel, record))
    _guess_no_account()
    main()


if __name__ == "__main__":
    _main()
