"""Jobs that a server forks behave like processes of their own: streams, folder, environment, status, and their end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from analysis.command import jobs
from analysis.command.notebook_runner import run_notebook

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or any(Path("/dev").glob("nvidia[0-9]*")),
    reason="a server is started on Linux without an NVIDIA GPU only",
)
# A `tla` whose jobs are small, and its server, started as `run_pipeline` starts it but with other jobs.
JOBS = """
import os, sys, time
def run(arguments):
    what = arguments[1]
    if what == "say":
        print(os.getcwd(), os.environ["SAID"], sys.argv, sys.stdin.read(), flush=True)
        print("on the other", file=sys.stderr)
        return 0
    if what == "fail":
        return 3
    if what == "raise":
        raise RuntimeError("broken here")
    if what == "read":
        print("reads", flush=True)
        return len(sys.stdin.read())
    if what == "exit":
        sys.exit(4)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
CLIENT = """
import sys
from analysis.command.jobs import run_served
status = run_served(sys.argv[1:])
sys.exit(99 if status is None else status)
"""


@pytest.fixture
def server(tmp_path):
    """The environment of a client, and what reaches the server's end."""
    import socket

    (tmp_path / "jobs.py").write_text(
        JOBS + "from analysis.command.job_server import serve\nimport socket\n"
        "serve(socket.socket(fileno=int(sys.argv[1])), run, sys.stdin.fileno(), ['json', 'textwrap'])\n"
    )
    address = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "jobs.py"), str(listener.fileno())],
            stdin=subprocess.PIPE, pass_fds=[listener.fileno()],
        )  # fmt: skip
    yield {**os.environ, jobs.ADDRESS: address, "OMP_NUM_THREADS": "1", "SAID": "a word", "SERVER": str(process.pid)}
    process.stdin.close()
    assert process.wait(20) in (0, -signal.SIGKILL)


def call(environment, *arguments, **settings):
    command = [sys.executable, "-c", CLIENT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **settings)


def test_a_job_has_the_streams_folder_environment_and_arguments_of_its_caller(server, tmp_path):
    done = call(server, "train", "say", "x y", cwd=tmp_path, input="given")
    assert done.returncode == 0 and done.stderr == "on the other\n"
    assert done.stdout == f"{tmp_path} a word ['tla', 'train', 'say', 'x y'] given\n"


@pytest.mark.parametrize(("what", "status", "said"), [("fail", 3, ""), ("raise", 1, "broken here"), ("exit", 4, "")])
def test_the_status_is_that_of_the_job(server, what, status, said):
    done = call(server, "evaluate", what)
    assert done.returncode == status and said in done.stderr


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        ({}, ("figures", "say")),
        ({}, ()),
        ({"OMP_NUM_THREADS": "2"}, ("train", "say")),
        ({jobs.ADDRESS: "/nowhere"}, ("train", "say")),
        ({jobs.ADDRESS: ""}, ("train", "say")),
    ],
)
def test_what_is_not_served_is_left_to_the_caller(server, change, arguments):
    assert call(server | change, *arguments).returncode == 99


def is_there(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(pid):
    deadline = time.monotonic() + 20
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_there(pid)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_job_ends_with_its_caller(server, signum):
    caller = subprocess.Popen(
        [sys.executable, "-c", CLIENT, "extract", "wait"], env=server, stdout=subprocess.PIPE, text=True
    )
    job = int(caller.stdout.readline())
    assert job != caller.pid and is_there(job)
    caller.send_signal(signum)
    assert caller.wait(20) != 0
    caller.stdout.close()
    wait_until_gone(job)


def test_a_server_that_is_killed_leaves_its_jobs_alone_and_later_ones_to_their_callers(server):
    caller = subprocess.Popen(
        [sys.executable, "-c", CLIENT, "train", "read"], env=server, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert caller.stdout.readline() == "reads\n"
    os.kill(int(server["SERVER"]), signal.SIGKILL)
    assert call(server, "train", "fail").returncode == 99
    caller.communicate("12345", timeout=20)
    assert caller.returncode == 5


def test_a_kernel_ends_with_the_notebook_that_started_it(server):
    """Jupyter starts kernels in a session of their own."""
    kernel = [sys.executable, "-m", "analysis.command.served_kernel", "wait"]
    notebook = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({kernel}, start_new_session=True)"],
        env=server, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    job = int(notebook.stdout.readline())
    assert is_there(job)
    notebook.kill()
    notebook.communicate()  # until nobody holds its output any more
    wait_until_gone(job)


def test_a_temporary_folder_of_a_long_path_means_jobs_without_a_server(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 120)))
    (tmp_path / ("x" * 120)).mkdir()
    with jobs.job_server() as address:
        assert address == {}


def test_a_job_that_is_killed_is_said_to_be(server):
    caller = subprocess.Popen(
        [sys.executable, "-c", CLIENT, "extract", "wait"], env=server, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.kill(int(caller.stdout.readline()), signal.SIGKILL)
    _, said = caller.communicate(timeout=20)
    assert caller.returncode == 137 and "killed before it had a status" in said


def test_a_job_that_cannot_begin_says_its_status_and_not_that_as_a_process(server):
    request = json.dumps({"arguments": ["extract", "x"], "folder": "/not/there", "environment": {}}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(server[jobs.ADDRESS])
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        process, status = (int.from_bytes(jobs.receive(connection, 4), "big") for _ in range(2))
    assert process > 1 and status == 1


@pytest.fixture(scope="module")
def of_a_pipeline():
    """The server of a pipeline, which imports torch and more at its first job: seconds, so it is started once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")  # as the Makefile has it: the server's, not the kernel's
        with jobs.job_server() as address:
            yield address
    assert not os.path.exists(address[jobs.ADDRESS])


def test_the_server_of_a_pipeline_does_what_tla_does(tmp_path, of_a_pipeline):
    tla = [sys.executable, "-m", "analysis.command", "extract", str(tmp_path / "nowhere")]
    alone = subprocess.run(tla, capture_output=True, text=True, timeout=120)
    assert list(of_a_pipeline) == [jobs.ADDRESS]
    environment = {**os.environ, **of_a_pipeline, "OMP_NUM_THREADS": "1"}
    served = subprocess.run(tla, env=environment, capture_output=True, text=True, timeout=120)
    assert (served.returncode, served.stderr) == (alone.returncode, alone.stderr) == (1, alone.stderr)


def test_a_kernel_is_a_fork_that_has_imported_torch_and_draws_into_the_notebook(tmp_path, monkeypatch, of_a_pipeline):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    said = "import os, sys; print('torch' in sys.modules, os.environ['TLA_COMMAND'], SCALE)"
    cells = [new_code_cell('SCALE = "mini"', metadata={"tags": ["parameters"]}), new_code_cell(said)]
    cells += [new_code_cell("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "mine.ipynb")
    for served in (True, False):
        with monkeypatch.context() as patch:
            for name, value in {**(of_a_pipeline if served else {}), "OMP_NUM_THREADS": "1"}.items():
                patch.setenv(name, value)
            target = tmp_path / f"{served}.ipynb"
            run_notebook(tmp_path / "mine.ipynb", target, parameters={"SCALE": "small"}, root=tmp_path)
        *_, told, drawn = nbformat.read(target, as_version=4).cells
        assert told.outputs[0].text == f"{served} tla notebooks mine --scale small small\n"
        assert "image/png" in drawn.outputs[0].data
