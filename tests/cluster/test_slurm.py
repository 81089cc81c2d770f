"""The pipeline on a real SLURM: its jobs are cancelled, what submitted them is killed, and nothing is lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from PIL import Image
from slurm import cluster, why_not
from tiny import REPOSITORY, mnist_images, project_folder

from tla_core.checkpoint import CheckpointError, load_tensors, read_metadata

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.confirmation(of=("analysis/command", "workflow", "tests/cluster")),
]

METHODS = ("um", "tla")
PROFILE = Path("workflow", "profiles", "slurm", "config.yaml")
# What is put below the slurm profile, since the jobs take seconds.
ASK_OFTEN = """
slurm-init-seconds-before-status-checks: 1
seconds-between-status-checks: 1
"""
PATIENCE = 120  # seconds for a job to start on a busy machine


class Project:
    """A project of two trainings on a hundred digits, a notebook and its table, in a folder of its own."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        weak = {"steps": 1}
        short = {
            "width": 1 / 32,
            "epochs": 60,
            "batch_size": 20,
            "holdout": 20,
            "attack": weak,
            "selection_attack": weak,
        }
        project_folder(
            root, datasets=[{"digits": {"folder": "images", "like": "mnist"}}], notebooks=["table1_2_architectures"],
            methods=list(METHODS), overrides={"um": short, "tla": {**short, "pool_size": 20}},
        )  # fmt: skip
        digits = mnist_images(100, "train")
        for index, label in enumerate(digits.labels):
            for split in ("train", "test"):
                file = root / "images" / split / digits.class_names[label] / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(digits.images[index, 0].numpy()).save(file)
        shutil.copy(REPOSITORY / "workflow" / "Snakefile", root / "workflow")
        shutil.copytree(REPOSITORY / "workflow" / "profiles", root / "workflow" / "profiles")
        with (root / PROFILE).open("a") as profile:
            profile.write(ASK_OFTEN)
        shutil.copytree(REPOSITORY / "notebooks", root / "notebooks")
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
        settings = {"TLA_ROOT": str(root), "XDG_CACHE_HOME": str(root / "cache"), "OMP_NUM_THREADS": "1"}
        self.environment = {**environment, **settings, "PYTHONPATH": paths}
        self.root, self.calls = root, []

    def figures(self, *options: str) -> subprocess.Popen:
        """Start `tla figures`."""
        with (self.root / f"figures-{len(self.calls)}.log").open("w") as log:
            call = subprocess.Popen(
                [sys.executable, "-m", "analysis.command", "figures", *options],
                env=self.environment, cwd=self.root, stdout=log, stderr=log,
            )  # fmt: skip
        self.calls.append(call)
        return call

    def latest_words(self) -> str:
        """What the latest call has said."""
        return (self.root / f"figures-{len(self.calls) - 1}.log").read_text()

    def all_words(self) -> str:
        """What every call has said, and every job and its log on the node."""
        logs = sorted([*self.root.glob("*.log"), *(self.root / ".snakemake").glob("*s/**/*.log")])
        return "\n".join(f"--- {log.relative_to(self.root)}\n{log.read_text(errors='replace')}" for log in logs)

    def finish(self, call: subprocess.Popen) -> None:
        assert call.wait(2 * PATIENCE) == 0, self.all_words()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"{what}\n{self.all_words()}"
            time.sleep(0.05)

    def run(self, method: str) -> Path:
        return self.root / "runs" / "mini" / "digits" / method / "seed0"

    def step(self, method: str) -> int:
        """At which step the saved state of a run is."""
        try:
            return read_metadata(self.run(method) / "state.safetensors")["step"]
        except (CheckpointError, FileNotFoundError):
            return 0

    def hold(self, method: str, *, after: int = 0) -> int:
        """Stop a training once it has saved a state later than this step, and return its process."""
        self.wait_until(lambda: self.step(method) > after, f"{method} trains")
        process = json.loads((self.run(method) / "process.json").read_text())["pid"]
        os.kill(process, signal.SIGSTOP)
        assert not (self.run(method) / "model.safetensors").exists(), "the training is over already"
        return process

    def weights(self) -> dict[str, dict[str, bytes]]:
        """Of each method, every bit."""
        models = {method: load_tensors(self.run(method) / "model.safetensors")[0] for method in METHODS}
        return {method: {name: t.numpy().tobytes() for name, t in model.items()} for method, model in models.items()}


def snakemake_of(call: subprocess.Popen) -> psutil.Process:
    children = psutil.Process(call.pid).children()
    return next(child for child in children if "analysis.command.snakemake_process" in child.cmdline())


def train_job(method: str) -> str:
    """What the executor calls a training."""
    return f"rule_train_wildcards_digits_{method}_0"


@contextlib.contextmanager
def project_in(root: Path, environment: Mapping[str, str]) -> Iterator[Project]:
    """A project whose calls end with the block."""
    project = Project(root, environment)
    try:
        yield project
    finally:
        for call in project.calls:
            call.kill()
            call.wait()


@pytest.fixture(scope="module")
def local_weights(tmp_path_factory):
    """Of a run without SLURM."""
    with project_in(tmp_path_factory.mktemp("local"), os.environ) as project:
        models = [project.run(method).relative_to(project.root) / "model.safetensors" for method in METHODS]
        targets = " ".join(map(str, models))
        project.finish(project.figures("--cores", "2", f"--snakemake-args={targets}"))
        return project.weights()


def test_a_cluster_with_gpus_that_loses_jobs_and_what_submitted_them(tmp_path, local_weights):
    with cluster(gpus=2) as slurm, project_in(tmp_path, slurm.environment) as project:
        # The submitting process is killed: its jobs are cancelled, and have saved their states.
        call = project.figures("--profile", "slurm")
        for method in METHODS:
            project.hold(method)
        assert all(slurm.job(slurm.jobs()[train_job(method)])["TresPerJob"].endswith("gpu:1") for method in METHODS)
        snakemake = snakemake_of(call)
        call.kill()
        call.wait()
        snakemake.wait(PATIENCE)
        project.wait_until(lambda: not slurm.jobs(), "the jobs are cancelled")
        steps = {method: project.step(method) for method in METHODS}
        assert all(0 < step for step in steps.values()) and not list(project.root.glob("runs/**/model.safetensors"))

        # A job is cancelled: it is submitted again, with more memory, but no more than a node of 16 GB has.
        call = project.figures("--profile", "slurm")
        project.hold("tla", after=steps["tla"])
        first = slurm.jobs()[train_job("tla")]
        assert slurm.job(first)["MinMemoryNode"] == "8000M"
        slurm.run("scancel", first)
        project.wait_until(lambda: slurm.jobs().get(train_job("tla"), first) != first, "it is submitted again")
        again = slurm.jobs()[train_job("tla")]
        assert slurm.job(again)["MinMemoryNode"] == "15000M"

        # The machine that submits dies: its job stays. The next call says so, waits for it, and goes on.
        training = project.hold("tla", after=project.step("tla"))
        snakemake_of(call).kill()
        call.kill()
        call.wait()
        assert slurm.jobs()[train_job("tla")] == again
        call = project.figures("--profile", "slurm")
        project.wait_until(lambda: "earlier call" in project.latest_words(), "it says that it waits")
        assert f"{again} (train digits_tla_0)" in project.latest_words()
        os.kill(training, signal.SIGCONT)
        project.finish(call)
        assert "FAILED" not in project.latest_words() and "mini is complete" in project.latest_words()
        assert "rule train:" not in (project.root / ".snakemake" / "jobs" / "snakemake-mini.log").read_text()
    assert project.weights() == local_weights
    assert (project.root / "figures" / "mini" / "index.html").exists()
    assert "sacct" not in project.all_words()


def test_a_cluster_without_gpus_by_one_line_of_the_profile(tmp_path, local_weights):
    with cluster(gpus=0) as slurm, project_in(tmp_path, slurm.environment) as project:
        profile = project.root / PROFILE
        assert profile.read_text().count("    gpu: 1\n") == 1
        profile.write_text(profile.read_text().replace("    gpu: 1\n", "    gpu: 0\n"))
        project.finish(project.figures("--profile", "slurm"))
    assert project.weights() == local_weights
