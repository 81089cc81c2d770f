"""When the process that the user started is gone, nothing that it began is left, and what was begun can go on."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tiny import REPOSITORY, project_folder

from analysis.scales.lock import PipelineError, pipeline_lock

pytest.importorskip("snakemake")

# A training that takes a while to save its state when it is told to end, and notes how often it was told.
TLA = """#!/bin/sh
trap 'echo told >> told-$$' TERM INT
echo $$ > "begun-$$"
while [ ! -e "told-$$" ]; do sleep 0.05; done
sleep 0.5
echo saved >> "told-$$"
exit 143
"""
STARTED = """
import signal, sys
sys.executable, *sys.argv = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit that it is ignored
from analysis.command.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def project(tmp_path):
    """A project whose trainings never end by themselves."""
    project_folder(tmp_path, notebooks=["table3_distance_ratios"])
    shutil.copy(REPOSITORY / "workflow" / "Snakefile", tmp_path / "workflow")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(REPOSITORY / "notebooks" / "table3_distance_ratios.ipynb", tmp_path / "notebooks")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tla").write_text(TLA)
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in (tmp_path / "bin").iterdir():
        program.chmod(0o755)
    return tmp_path


def wait_until(condition, what):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_free(root):
    try:
        with pipeline_lock(root):
            return True
    except PipelineError:
        return False


@pytest.fixture
def figures(project):
    """`tla figures` at work on two trainings, and every process that belongs to it."""
    with (project / "out.log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-c", STARTED, str(project / "bin" / "python"), "tla", "figures", "--cores", "2"],
            env={**os.environ, "TLA_ROOT": str(project)}, cwd=project, stdout=log, stderr=log, process_group=0,
        )  # fmt: skip
    everything = []
    try:
        wait_until(lambda: len(list(project.glob("begun-*"))) == 2, "two trainings begin")
        everything += psutil.Process(started.pid).children(recursive=True)
        yield started, everything
    finally:
        started.kill()
        started.wait()
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_its_jobs_save_their_state_and_end_with_it(signum, figures, project):
    started, everything = figures
    busy = rf"process {started.pid} on .*, since 20.*: `tla figures --cores 2`.*or end it \(`kill {started.pid}`\)"
    with pytest.raises(PipelineError, match=busy), pipeline_lock(project):
        pass
    # As a terminal does: the whole group of a command gets its Ctrl+C.
    (os.killpg if signum == signal.SIGINT else os.kill)(started.pid, signum)
    assert started.wait(120) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    assert psutil.wait_procs(everything, timeout=120)[1] == []
    told = [path.read_text().split() for path in project.glob("told-*")]
    assert told == [["told", "saved"]] * 2  # each once
    assert not any((project / ".snakemake" / "locks").glob("*")) and is_free(project)
    assert "Traceback" not in (project / "out.log").read_text()


def test_a_snakemake_that_is_killed_takes_its_jobs_along(figures, project):
    started, everything = figures
    next(each for each in everything if "analysis.command.snakemake_process" in each.cmdline()).kill()
    assert started.wait(120) == 1 and "Snakemake's status -9" in (project / "out.log").read_text()
    assert psutil.wait_procs(everything, timeout=120)[1] == []


def test_the_lock_of_one_that_is_gone_and_whose_jobs_still_end(tmp_path):
    with pipeline_lock(tmp_path):
        path = tmp_path / ".snakemake" / "tla.lock"
        owner = json.loads(path.read_text())
        assert owner["pid"] == os.getpid()
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        path.write_text(json.dumps({**owner, "pid": child.pid}))
        with pytest.raises(PipelineError, match=r"the jobs are still ending. Try again in a few seconds"):
            with pipeline_lock(tmp_path):
                pass


def test_a_disk_without_locks_is_named_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with pytest.raises(OSError, match=r"tla.lock: No locks available.*a disk that keeps locks"):
        with pipeline_lock(tmp_path):
            pass
