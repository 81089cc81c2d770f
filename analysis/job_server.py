"""Jobs of a pipeline forked from a process that has imported torch: three seconds less for each, on one machine.

`run_pipeline` starts a server beside Snakemake. The `tla` that a rule calls finds its address in the environment and
hands its arguments, directory, environment and open streams over; a fork of the server does the job, and `tla` waits
for its status. Without a server, or where one cannot be reached, a job runs in its own process as ever.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

ADDRESS = "TLA_JOB_SERVER"
KERNEL = "kernel"  # no command of `tla`: see `analysis.served_kernel`
SERVED = ("train", "extract", "evaluate", "project", "landscape", "notebooks", KERNEL)
# What the jobs and notebooks import; torch._dynamo belongs to the optimisers. Importing starts no thread while each
# library has one. pyplot is left out: it would choose the backend, which a kernel has another of.
_IMPORTS = (
    "torch", "torch._dynamo", "sklearn.decomposition", "openTSNE", "tla_core.training", "tla_core.evaluation",
    "analysis.accuracy", "analysis.extraction", "analysis.class_maps", "analysis.tsne_gradient", "analysis.landscape",
    "papermill", "ipykernel.kernelapp", "matplotlib.backends.backend_agg", "sklearn.covariance", "scipy.stats",
    "analysis.accuracy_tables", "analysis.sweep_tables", "analysis.paper_tables",
)  # fmt: skip


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
            listener.bind(address)
            listener.listen(64)
            command = [sys.executable, "-m", "analysis.job_server", str(listener.fileno())]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], env=environment)
        try:
            yield {ADDRESS: address}
        finally:
            server.stdin.close()  # which tells it to end; so does the death of this process
            server.wait()


def run_served(arguments: Sequence[str]) -> int | None:
    """Let the server named in the environment do a job; None where it is not to be asked, or does not answer.

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
            job = int.from_bytes(_receive(connection, 4), "big")
        except (OSError, EOFError):
            return None
        with _passed_on(job):
            try:
                return int.from_bytes(_receive(connection, 4), "big")
            except (OSError, EOFError):
                print("tla: error: the job was killed before it had a status.", file=sys.stderr)
                return 137


def serve(listener: socket.socket, run: Callable[[Sequence[str]], int], stop: int, imports: Sequence[str]) -> None:
    """Fork a process for each job that comes, until the file descriptor `stop` reaches its end; import at the first."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks: their status goes to `tla`
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is meant for the jobs; the end of the pipeline ends this
    while True:
        ready, _, _ = select.select([listener, stop], [], [])
        if listener not in ready:
            return
        connection, _ = listener.accept()
        for name in imports:
            import_module(name)  # after the first time a look into a table
        if os.fork() == 0:
            listener.close()
            os._exit(_do(connection, run))
        connection.close()


def _do(connection: socket.socket, run: Callable[[Sequence[str]], int]) -> int:
    """Become the process that asked: its streams, directory and environment; run the job and say its status."""
    for signum in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGCHLD else signal.default_int_handler)
    status = 1
    try:
        head, streams, _, _ = socket.recv_fds(connection, 4, 3)
        head += _receive(connection, 4 - len(head)) if len(head) < 4 else b""
        request = json.loads(_receive(connection, int.from_bytes(head, "big")))
        for descriptor, stream in enumerate(streams):
            os.dup2(stream, descriptor)
            os.close(stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["tla", *request["arguments"]]
        connection.sendall(os.getpid().to_bytes(4, "big"))
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        status = run(request["arguments"])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # the process ends here, whatever it is
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    with contextlib.suppress(OSError):
        connection.sendall((status & 0xFF).to_bytes(4, "big"))
    return status & 0xFF


def _end_with(connection: socket.socket) -> None:
    """End this process when the `tla` that waits for it is gone, as where it was killed."""
    with contextlib.suppress(OSError):
        while connection.recv(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


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


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _run(arguments: Sequence[str]) -> int:
    from analysis.cli import main
    from analysis.served_kernel import launch

    return launch(arguments[1:]) if arguments[0] == KERNEL else main(arguments)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), _run, sys.stdin.fileno(), _IMPORTS)
