"""What the Makefile does on machines with old, odd or no Pythons, and after an interruption; nothing is installed.

A copy of the Makefile runs in a folder of its own, with a PATH of the few tools it needs and of shell scripts that
pretend to be a Python: they answer the questions the Makefile asks, make a `.venv` of themselves, and write down
what pip was asked to do.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make")
TOOLS = ("sh", "cat", "cp", "echo", "grep", "ls", "mkdir", "rm", "sed", "touch", "uname")

PYTHON = """#!/bin/sh
case "$*" in
  --version) echo "Python {version}" ;;
  *'%d.%d.%d'*) echo {version} ;;
  *'print(sys.version_info'*) echo "({minor})" ;;
  *'sys.exit(sys.version_info'*) exit {too_old} ;;
  *'import ensurepip'*) exit {without_ensurepip} ;;
  '-m venv --clear .venv') rm -rf .venv; "$0" -m venv .venv ;;
  '-m venv .venv')
    echo "venv {version}" >> log
    mkdir -p .venv/bin .venv/lib/python3/site-packages; touch .venv/pyvenv.cfg; cp "$0" .venv/bin/python ;;
  -c*) ;;
  '-m pip '*) echo "$*" >> log; exit "$(cat pip-status)" ;;
  *) echo "$*" >> log ;;
esac
"""

pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")


class Checkout:
    """A folder with the Makefile, and a PATH to try it with."""

    def __init__(self, folder, tools):
        self.folder, self.tools = folder, tools
        folder.mkdir()
        tools.mkdir()
        for name in TOOLS:
            (tools / name).symlink_to(shutil.which(name))
        shutil.copy(ROOT / "Makefile", folder)
        for name in ("pyproject.toml", "constraints.txt", "requirements-oracles.txt"):
            (folder / name).touch()
        self.pip_ends_with(0)

    def script(self, name, text):
        path = self.tools / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def python(self, name, version, *, ensurepip=True):
        minor = tuple(int(part) for part in version.split(".")[:2])
        return self.script(
            name,
            PYTHON.format(
                version=version,
                minor="{}, {}".format(*minor),
                too_old=int(minor < (3, 11)),
                without_ensurepip=int(not ensurepip),
            ),
        )

    def pip_ends_with(self, status):
        (self.folder / "pip-status").write_text(f"{status}\n")

    def make(self, *arguments):
        return subprocess.run(
            [MAKE, *arguments],
            cwd=self.folder,
            env={"PATH": str(self.tools), "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def log(self):
        """What was asked of venv and pip since the last call."""
        path = self.folder / "log"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text

    @property
    def packages(self):
        return self.folder / ".venv" / "lib" / "python3" / "site-packages"

    def has(self, path):
        return (self.folder / path).exists()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "a checkout", tmp_path / "tools")


# --- finding a Python --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", ["env", "test", "figures", "lint"])
def test_an_old_python_is_refused_in_words(checkout, goal):
    checkout.python("python3", "3.9.18")
    checkout.python("python", "2.7.18")
    result = checkout.make(goal)
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "python3 is Python 3.9.18, python is Python 2.7.18" in result.stderr
    assert f"make PYTHON=/path/to/python3.12 {goal}" in result.stderr
    assert not checkout.has(".venv")


def test_no_python_at_all_is_said(checkout):
    result = checkout.make("env")
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "no Python that runs" in result.stderr
    assert not checkout.has(".venv")


def test_a_python_that_does_not_run_counts_as_none(checkout):
    # pyenv leaves such a shim for each version it knows but has not selected.
    checkout.script("python3.12", "#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n")
    result = checkout.make("env")
    assert result.returncode != 0
    assert "no Python that runs" in result.stderr


def test_an_old_python3_is_passed_over_for_a_newer_name(checkout):
    checkout.python("python3", "3.9.18")
    checkout.python("python3.12", "3.12.1")
    assert checkout.make("env").returncode == 0
    assert checkout.log().startswith("venv 3.12.1\n")


def test_a_tried_version_goes_before_a_newer_one(checkout):
    checkout.python("python3", "3.15.0")
    checkout.python("python3.11", "3.11.2")
    assert checkout.make("env").returncode == 0
    assert checkout.log().startswith("venv 3.11.2\n")


def test_a_newer_version_is_taken_with_a_word_when_there_is_no_other(checkout):
    checkout.python("python3", "3.15.0")
    result = checkout.make("env")
    assert result.returncode == 0
    assert "newer than what constraints.txt was tried with" in result.stdout
    assert checkout.log().startswith("venv 3.15.0\n")


def test_a_python_without_ensurepip_is_explained(checkout):
    checkout.python("python3", "3.11.2", ensurepip=False)
    result = checkout.make("env")
    assert result.returncode != 0
    assert "python3 is Python 3.11.2, but its module ensurepip is missing" in result.stderr
    assert "apt-get install python3.11-venv" in result.stderr
    assert not checkout.has(".venv")


def test_python_named_on_the_command_line_is_the_only_one_tried(checkout, tmp_path):
    checkout.python("python3", "3.12.1")
    chosen = shutil.move(checkout.python("chosen", "3.13.0"), tmp_path / "a python")
    assert checkout.make("env", f"PYTHON={chosen}").returncode == 0
    assert checkout.log().startswith("venv 3.13.0\n")

    missing = tmp_path / "missing"
    result = checkout.make("env", f"PYTHON={missing}")
    assert result.returncode != 0
    assert f"Looked at PYTHON={missing}. Found: no Python that runs." in result.stderr


# --- installing --------------------------------------------------------------------------------------------------


@pytest.fixture
def with_python(checkout):
    checkout.python("python3", "3.12.1")
    return checkout


def test_env_installs_once_and_test_adds_to_it(with_python):
    assert with_python.make("env").returncode == 0
    log = with_python.log()
    assert "install -qq --no-compile --no-warn-conflicts -c constraints.txt -e .[cpu,pipeline]" in log
    assert "uninstall" not in log
    assert with_python.make("env").returncode == 0
    assert with_python.log() == ""

    assert with_python.make("test", "PYTEST_ARGS=-k nothing").returncode == 0
    log = with_python.log()
    assert "-e .[cpu,pipeline]\n" not in log
    assert "-c constraints.txt -e .[cpu,pipeline,robustness,dev]\n" in log
    assert "install -qq --no-compile --no-deps -r requirements-oracles.txt\n" in log
    assert log.endswith("-m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -k nothing\n")
    assert with_python.make("test").returncode == 0
    assert with_python.log() == "-m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder\n"


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(with_python, changed):
    with_python.make("env")
    with_python.log()
    later = (with_python.folder / ".venv" / ".stamp-run").stat().st_mtime + 10
    os.utime(with_python.folder / changed, (later, later))
    assert with_python.make("env").returncode == 0
    assert "-e .[cpu,pipeline]" in with_python.log()


def test_a_failed_installation_is_taken_up_by_the_next_call(with_python):
    with_python.pip_ends_with(1)
    assert with_python.make("env").returncode != 0
    assert not with_python.has(".venv/.stamp-run")
    with_python.log()

    # What SIGKILL leaves in the middle of a package: its metadata without RECORD; beside it one that is complete.
    packages = with_python.packages
    for folder, name in [("half-1.0.dist-info", "METADATA"), ("whole-1.0.dist-info", "RECORD"), ("~alf", "x.py")]:
        (packages / folder).mkdir()
        (packages / folder / name).touch()
    with_python.pip_ends_with(0)
    assert with_python.make("env").returncode == 0
    assert "venv" not in with_python.log()  # the folder itself was good
    assert with_python.has(".venv/.stamp-run")
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_a_venv_whose_python_is_gone_is_made_anew(with_python):
    with_python.make("env")
    with_python.log()
    (with_python.folder / ".venv" / "bin" / "python").unlink()
    result = with_python.make("env")
    assert result.returncode == 0
    assert "making it anew" in result.stdout
    assert with_python.log().startswith("venv 3.12.1\n")


def test_a_moved_checkout_gets_a_new_venv(with_python, tmp_path):
    with_python.make("env")
    with_python.log()
    with_python.folder = with_python.folder.rename(tmp_path / "moved")
    assert with_python.make("env").returncode == 0
    assert with_python.log().startswith("venv 3.12.1\n")
    assert with_python.make("env").returncode == 0
    assert with_python.log() == ""


def test_another_python_asked_for_gives_a_new_venv(with_python):
    with_python.make("env")
    with_python.log()
    assert with_python.make("env", "PYTHON=python3").returncode == 0
    assert with_python.log() == ""
    with_python.python("python3.13", "3.13.0")
    assert with_python.make("env", "PYTHON=python3.13").returncode == 0
    assert with_python.log().startswith("venv 3.13.0\n")


# --- choosing FAISS ----------------------------------------------------------------------------------------------


def machine(checkout, system="Linux", processor="x86_64", gpus="GPU 0: NVIDIA H100"):
    (checkout.tools / "uname").unlink()
    checkout.script("uname", f"#!/bin/sh\ncase $1 in -s) echo {system} ;; -m) echo {processor} ;; esac\n")
    checkout.script("nvidia-smi", f"#!/bin/sh\necho '{gpus}'\n")


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, "gpu"),
        ({"gpus": "NVIDIA-SMI has failed because it could not communicate with the driver"}, "cpu"),
        ({"gpus": ""}, "cpu"),
        ({"processor": "aarch64"}, "cpu"),
        ({"system": "Darwin"}, "cpu"),
    ],
)
def test_faiss_follows_the_machine(with_python, properties, expected):
    machine(with_python, **properties)
    assert with_python.make("env").returncode == 0
    assert f"-e .[{expected},pipeline]" in with_python.log()


def test_faiss_can_be_said_and_is_remembered(with_python):
    machine(with_python)
    assert with_python.make("env", "FAISS=cpu").returncode == 0
    assert "-e .[cpu,pipeline]" in with_python.log()
    assert with_python.make("test").returncode == 0
    assert "-e .[cpu,pipeline,robustness,dev]" in with_python.log()


def test_the_other_faiss_goes_first(with_python):
    with_python.make("env", "FAISS=cpu")
    with_python.log()
    installed = with_python.packages / "faiss_cpu-1.15.1.dist-info"
    installed.mkdir()
    (installed / "RECORD").touch()
    assert with_python.make("env", "FAISS=gpu").returncode == 0
    removed, installed = with_python.log().splitlines()
    assert removed.endswith("uninstall -qq -y faiss-cpu faiss-gpu")
    assert installed.endswith("-e .[gpu,pipeline]")


def test_a_switch_of_faiss_that_fails_is_not_forgotten(with_python):
    with_python.make("env", "FAISS=gpu")
    (with_python.packages / "faiss_gpu-1.15.1.dist-info").mkdir()
    (with_python.packages / "faiss_gpu-1.15.1.dist-info" / "RECORD").touch()
    with_python.pip_ends_with(1)
    assert with_python.make("env", "FAISS=cpu").returncode != 0
    with_python.log()
    with_python.pip_ends_with(0)
    assert with_python.make("env").returncode == 0
    assert "-e .[cpu,pipeline]" in with_python.log()


def test_an_unknown_faiss_is_refused(with_python):
    result = with_python.make("env", "FAISS=tpu")
    assert result.returncode != 0
    assert "FAISS is cpu or gpu. Got 'tpu' instead." in result.stderr
    assert not with_python.has(".venv")


# --- the commands ------------------------------------------------------------------------------------------------


def test_figures_calls_the_pipeline(with_python):
    with_python.make("env")
    tla = with_python.folder / ".venv" / "bin" / "tla"
    tla.write_text('#!/bin/sh\necho "$* MPLBACKEND=$MPLBACKEND PATH=$PATH"\n')
    tla.chmod(0o755)
    result = with_python.make("figures", "SCALE=small", "CORES=3", "SNAKEMAKE_ARGS=-n")
    assert result.returncode == 0
    *_, said = result.stdout.splitlines()
    assert said.startswith("figures --scale small --cores 3 --snakemake-args=-n MPLBACKEND=Agg ")
    assert f"PATH={with_python.folder}/.venv/bin:" in said
    *_, said = with_python.make("figures", "PROFILE=slurm").stdout.splitlines()
    assert said.startswith("figures --scale mini --profile slurm --snakemake-args= "), "a profile has its own cores"


def test_make_alone_says_what_there_is(checkout):
    result = checkout.make()
    assert result.returncode == 0
    assert all(f"make {goal}" in result.stdout for goal in ("figures", "status", "site", "test", "env"))
    assert not checkout.has(".venv")
