"""Processes that are forked from one that has imported everything: a start takes no seconds of torch's imports.

They are processes of their own all the same, with their own signals, environment and exit status. One server for
each process of pytest; it ends with it.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

# What trainings import when they begin; the modules of the functions that are called come with the first call.
IMPORTS = ("torch", "torch._dynamo", "torch.distributed.nn", "tla_core.training", "tla_core.evaluation", "analysis")


class Fork:
    """A process that calls a function; with the part of subprocess.Popen's interface that tests need."""

    def __init__(self, server, pid: int, log: Path):
        self.server, self.pid, self.log, self.returncode = server, pid, log, None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask(self.server, {"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.03)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def said(self) -> str:
        """What it wrote to both of its streams."""
        return self.log.read_text(errors="replace")


def call_in_fork(function: str, *arguments: str, log: Path, environment: dict[str, str] | None = None) -> Fork:
    """Call ``module:function`` with these words in a process of its own, with more in its environment."""
    request = {"call": function, "arguments": list(map(str, arguments)), "log": str(log), "folder": os.getcwd()}
    request["environment"] = {**os.environ, **(environment or {})}
    return Fork(_server(), _ask(_server(), request), log)


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )  # fmt: skip
    atexit.register(lambda: (server.stdin.close(), server.wait(20)))
    return server


def _ask(server, request):
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve() -> None:
    for name in IMPORTS:
        import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            import_module(request["call"].partition(":")[0])
            answer = os.fork()
            if not answer:
                os._exit(_do(request))
        print(json.dumps(answer), flush=True)


def _do(request) -> int:
    """In the fork: its streams, folder and environment, and then the function; the exit status."""
    with open(request["log"], "ab") as log, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module, _, name = request["call"].partition(":")
    status = 1
    try:
        status = getattr(sys.modules[module], name)(*request["arguments"]) or 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def tla(*words: str) -> int:
    """What the command `tla` does with these words."""
    from analysis.command.main import main

    return main(list(words))


if __name__ == "__main__":
    _serve()
