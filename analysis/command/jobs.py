"""Jobs of a pipeline forked from a process that has imported torch: three seconds less for each, on one machine.

`run_pipeline` starts a server beside Snakemake. The `tla` that a rule calls finds its address in the environment and
hands its arguments, directory, environment and open streams over; a fork of the server does the job, and `tla` waits
for its status. Without a server, or where one cannot be reached, a job runs in its own process as ever.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "TLA_JOB_SERVER"
KERNEL = "kernel"  # no command of `tla`: see `analysis.command.served_kernel`
SERVED = ("train", "extract", "evaluate", "project", "landscape", "notebooks", KERNEL)


@contextmanager
def job_server() -> Iterator[dict[str, str]]:
    """Start a server for the length of the block, on Linux without an NVIDIA GPU; elsewhere do nothing.

    Yields
    ------
    dict of str to str
        What the environment of the jobs must hold to reach it; empty where there is none.
    """
    # Other systems' libraries do not bear a fork, nor does CUDA, which an import might wake.
    if not sys.platform.startswith("linux") or any(Path("/dev").glob("nvidia[0-9]*")):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="tla-jobs-") as folder:
        address = str(Path(folder, "socket"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(address)
            except OSError:  # the path of the temporary folder is too long for a socket
                yield {}
                return
            listener.listen(64)
            # Not in the process group of a terminal: Ctrl+C reaches a job once, by the `tla` that waits for it.
            server = subprocess.Popen(
                [sys.executable, "-m", "analysis.command.job_server", str(listener.fileno())],
                stdin=subprocess.PIPE, pass_fds=[listener.fileno()], env={**os.environ, "OMP_NUM_THREADS": "1"},
                process_group=0,
            )  # fmt: skip
        try:
            yield {ADDRESS: address}
        finally:
            server.stdin.close()  # which tells it to end; so does the death of this process
            server.wait()


def run_served(arguments: Sequence[str]) -> int | None:
    """Let the server named in the environment do a job, and return its status.

    None if no server is named, if it does not do such jobs, or if it does not answer.

    Only jobs with one thread are handed over: the server's libraries were started with one.
    """
    address = os.environ.get(ADDRESS)
    if not address or not arguments or arguments[0] not in SERVED or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    request = json.dumps(
        {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
    ).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address)
            socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
            connection.sendall(request)
            job = int.from_bytes(receive(connection, 4), "big")
        except (OSError, EOFError):
            return None
        with _passed_on(job):
            try:
                return int.from_bytes(receive(connection, 4), "big")
            except (OSError, EOFError):
                print("tla: error: the job was killed before it had a status.", file=sys.stderr)
                return 137


@contextmanager
def _passed_on(job: int) -> Iterator[None]:
    """Signals that are to end this process end the job."""
    before = {
        signum: signal.signal(signum, lambda received, _: os.kill(job, received))
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes of a connection; EOFError if it ends before."""
    parts = []
    while size:
        part = connection.recv(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
