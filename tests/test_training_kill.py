"""Real processes and real SIGKILLs: `tla train` loses nothing but time."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from forks import call_in_fork
from PIL import Image

import tla_core as tla
from tla_core.checkpoint import load_tensors
from tla_core.run_folder import RunFolder

STEPS_PER_EPOCH = 4
PATIENCE = 100  # seconds for a start on a busy machine


@pytest.fixture
def train(tmp_path):
    """Start `tla train` on a folder of 100 small pictures, as a process of its own with one thread.

    Those that are to be killed are forks, which have imported torch: else most of the time would go into imports.
    """
    digits = tla.load_dataset("mnist-mini", "train")
    for index in range(100):
        path = tmp_path / "digits" / "train" / digits.class_names[digits.labels[index]] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[index, 0].numpy()).save(path)
    words = [
        "train", "mini/mnist/tla", "--no-progress",
        "--dataset", tmp_path / "digits", "--width", "1/32", "--holdout", 20, "--batch-size", 20,
        "--pool-size", 20, "--attack.steps", 1, "--selection-attack.steps", 1, "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    started = []

    def start(out, epochs, fork=True):
        log = tmp_path / f"{out.name}.log"
        command = [str(word) for word in (*words, "--epochs", epochs, "--out", out)]
        if fork:
            process = call_in_fork("forks:tla", *command, log=log, environment=environment)
        else:
            with log.open("a") as file:
                tla_itself = [sys.executable, "-m", "analysis.command", *command]
                process = subprocess.Popen(tla_itself, env=environment, stdout=file, stderr=file)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(20)


def finish(process, log):
    assert process.wait(PATIENCE + 60) == 0, log.read_text()


def wait_until(condition, process, log):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.002)


def holds(folder, process):
    """Whether that process has begun to train; one that was killed left its name behind."""
    owner = folder.path / "process.json"
    return owner.exists() and f'"pid": {process.pid},' in owner.read_text()


# A kill waits for three epochs at the most, and a moment more: so many epochs are enough for so many kills.
@pytest.mark.parametrize(("n_kills", "epochs"), [(3, 24), pytest.param(10, 60, marks=pytest.mark.confirmation)])
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(n_kills, epochs, train, tmp_path):
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    uninterrupted = train(whole.path, epochs, fork=False)
    moments, log, steps = random.Random(0), tmp_path / "killed.log", [0]
    for kill in range(n_kills):
        process = train(killed.path, epochs)
        wait_until(lambda process=process: holds(killed, process), process, log)
        if kill % 3:  # else it dies while it reads the state, or in its first steps
            lines = len(killed.metrics()) + moments.randint(1, 6)  # two are written in each epoch
            wait_until(lambda lines=lines: len(killed.metrics()) >= lines, process, log)
        time.sleep(moments.uniform(0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL, "it had ended before it was killed"
        assert not killed.model_path.exists()
        steps.append(load_tensors(killed.state_path)[1]["step"] if killed.state_path.exists() else 0)
    assert steps == sorted(steps) and len(set(steps)) > n_kills // 2, "the kills were not spread over the training"
    finish(train(killed.path, epochs), log)
    finish(uninterrupted, tmp_path / "whole.log")

    assert killed.model_path.read_bytes() == whole.model_path.read_bytes()
    metrics = [[{**record, "time": None} for record in folder.metrics()] for folder in (killed, whole)]
    assert metrics[0] == metrics[1] and metrics[0][-1]["step"] == epochs * STEPS_PER_EPOCH
    assert sorted(os.listdir(killed.path)) == sorted(os.listdir(whole.path))  # no half-written file is left
    assert json.loads(killed.config_path.read_text())["environment"]["threads"] == 1
