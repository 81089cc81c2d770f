"""The server that jobs are forked from: imports once what they need. See `analysis.command.jobs` for who asks it."""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module

from analysis.command.jobs import KERNEL, receive

# What the jobs and notebooks import; torch._dynamo belongs to the optimisers. Importing starts no thread while each
# library has one. pyplot is left out: it would choose the backend, which a kernel has another of.
_IMPORTS = (
    "torch", "torch._dynamo", "sklearn.decomposition", "openTSNE", "tla_core.training", "tla_core.evaluation",
    "analysis.extraction", "analysis.maps", "analysis.tsne_gradient", "analysis.landscape",
    "analysis.scales.accuracy",
    "papermill", "ipykernel.kernelapp", "matplotlib.backends.backend_agg", "sklearn.covariance", "scipy.stats",
    "analysis.paper.accuracy_tables", "analysis.paper.sweep_tables", "analysis.paper.neighbour_tables",
)  # fmt: skip


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
        connection.sendall(os.getpid().to_bytes(4, "big"))  # first, so that a status is never taken for it
        head, streams, _, _ = socket.recv_fds(connection, 4, 3)
        head += receive(connection, 4 - len(head)) if len(head) < 4 else b""
        request = json.loads(receive(connection, int.from_bytes(head, "big")))
        for descriptor, stream in enumerate(streams):
            os.dup2(stream, descriptor)
            os.close(stream)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["tla", *request["arguments"]]
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


def _run(arguments: Sequence[str]) -> int:
    from analysis.command.main import main
    from analysis.command.served_kernel import launch

    return launch(arguments[1:]) if arguments[0] == KERNEL else main(arguments)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), _run, sys.stdin.fileno(), _IMPORTS)
