"""What test_distributed.py and test_shards.py run in several processes: ``distributed_worker.py SCENARIO FOLDER``,
which torchrun starts, or `run` in forks."""

import dataclasses
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from tiny import tiny_lenet
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import analysis
import tla_core as tla
from analysis import extraction
from tla_core import training_loop
from tla_core.attack_config import AttackConfig
from tla_core.config import TrainConfig
from tla_core.distributed import process_group
from tla_core.models import LeNet
from tla_core.presets import METHODS, VARIANTS

STEPS_PER_EPOCH = 3


def settings(method, **overrides):
    attack = AttackConfig(eps=0.1, step_size=0.05, steps=2)
    tiny = {"epochs": 2, "batch_size": 20, "holdout": 21, "pool_size": 13, "attack": attack, "selection_attack": attack}
    return TrainConfig.preset(f"mini/mnist/{method}", **{"width": 1 / 32, "eps_ramp": 0.0, **tiny, **overrides})


# Methods, and those with clean passes once more, where these do not move the running statistics.
CASES = (*METHODS, *VARIANTS, *(f"{method}, adversarial" for method in ("alp", "tla", *VARIANTS)))


def variant(name):
    """The settings of a case."""
    method, *adversarial = name.split(", ")
    return settings(method, statistics="adversarial" if adversarial else "all")


def digits():
    """60 images to train on and 21 held out, which two processes cannot share equally."""
    return tla.load_dataset("mnist-mini", "train").subset(range(81))


class InFloat64(nn.Module):
    """A network that computes in float64: no rounding decides which of two pixels is the larger one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = LeNet(width=1 / 16).double()
        self.net(digits().images.double() / 255)  # statistics of real images

    def forward(self, x):
        return self.net(x.double())


def fit(config, out_dir, **options):
    return tla.train(config, out_dir, dataset=digits(), device="cpu", progress=False, **options)


class at_step:
    """Call a function before that step of a method (counted from this block on), on one rank or on all."""

    def __init__(self, method, step, action, rank=None):
        self.method, self.step, self.action = method, step, action
        self.here = rank in (None, int(os.environ.get("RANK", "0")))

    def __enter__(self):
        self.before, self.calls = training_loop.STEPS[self.method], 0
        training_loop.STEPS[self.method] = self

    def __call__(self, *args):
        self.calls += 1
        if self.here and self.calls == self.step + 1:
            self.action()
        return self.before(*args)

    def __exit__(self, *_):
        training_loop.STEPS[self.method] = self.before


def stop():
    raise InterruptedError("stopped by the test")


def run_out_of_memory():
    torch.empty(1 << 60, dtype=torch.uint8)


def outcome_of(function, *args, **options):
    """The type and message of what it raised, and after how many seconds; None if nothing."""
    start = time.monotonic()
    try:
        function(*args, **options)
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - start


def first_step(case, folder):
    """The gradients that the first update is made with, and the weights and statistics after it."""
    model, gradients = InFloat64(), {}

    def look(optimizer, args, kwargs):
        gradients.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    handle = register_optimizer_step_pre_hook(look)
    fit(dataclasses.replace(variant(case), iterations=1, epochs=1), folder, model=model)
    handle.remove()
    return {"gradients": gradients, "after": model.state_dict()}


def trains(folder, rank):
    """Under torchrun: all that goes well, and at the end a process that fails."""
    written = []

    def note_writing(event, args):
        if event == "open" and str(args[0]).startswith(str(folder)) and args[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(args[0])
        if event in ("os.mkdir", "os.rename", "os.remove") and str(args[0]).startswith(str(folder)):
            written.append(args[0])

    sys.addaudithook(note_writing)
    report = {case: first_step(case, folder / "first" / case) for case in CASES}
    config = settings("tla", averaging=0.9, statistics="adversarial")
    model = InFloat64()
    fit(config, folder / "whole", model=model)
    report["weights"] = model.state_dict()
    with at_step("tla", 4, stop):
        report["interrupted"] = outcome_of(fit, config, folder / "resumed", model=InFloat64())
    model = InFloat64()
    fit(config, folder / "resumed", model=model)
    report["resumed weights"] = model.state_dict()
    with at_step("um", 4, stop):
        outcome_of(fit, settings("um"), folder / "two-then-one")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(settings("um"), folder / "one-then-two")
    report["warnings"] = [str(warning.message) for warning in caught]
    report["written"] = list(written)
    torch.save(report, folder / f"rank{rank}.pt")
    with at_step("um", 4, lambda: {}["a mistake"], rank=1):
        fit(settings("um"), folder / "failed")


def fails(folder, rank):
    """A process that runs out of memory, a run that goes on after that, a process that is killed."""
    fit(settings("um"), folder / "whole")
    with at_step("um", 4, run_out_of_memory, rank=1):
        report = {"memory": outcome_of(fit, settings("um"), folder / "memory")}
    fit(settings("um"), folder / "memory")
    with at_step("um", 4, lambda: os.kill(os.getpid(), signal.SIGKILL), rank=1):
        report["killed"] = outcome_of(fit, settings("um"), folder / "killed")
    (folder / f"rank{rank}.json").write_text(json.dumps(report))


def first_fails(folder, rank):
    """Rank 0, which serves the store that messages are left in, ends first."""
    with at_step("um", 4, stop, rank=0):
        fit(settings("um"), folder / "failed")


def stops(folder, rank):
    """A process that is stopped in the middle, as a signal or a network does; the other one must not wait for ever."""
    with at_step("um", 4, lambda: os.kill(os.getpid(), signal.SIGSTOP), rank=int(os.environ["STOPPED"])):
        report = outcome_of(fit, settings("um"), folder / "stopped")
    (folder / f"rank{rank}.json").write_text(json.dumps(report))


def killed(folder, rank):
    """Under torchrun: a process that is killed."""
    with at_step("um", 4, lambda: os.kill(os.getpid(), signal.SIGKILL), rank=1):
        fit(settings("um"), folder / "killed")


def extracted(folder, **changes):
    """Representations of 50 images in batches of 8, whose number cannot be shared equally."""
    options = {"attack": AttackConfig(eps=0.3, step_size=0.1, steps=2), "batch_size": 8, "fold": False, **changes}
    data = digits().subset(range(50))
    return analysis.extract(tiny_lenet(), data.images, data.labels, shards=folder, **options)


class at_batch:
    """Call a function before that batch of an extraction of this process (counted from this block on), on one rank."""

    def __init__(self, batch=None, action=None, rank=None):
        self.batch, self.action, self.here = batch, action, rank in (None, int(os.environ.get("RANK", "0")))

    def __enter__(self):
        self.before, self.calls = extraction.run_attack, 0
        extraction.run_attack = self
        return self

    def __call__(self, *args, **options):
        self.calls += 1
        if self.here and self.calls - 1 == self.batch:
            self.action()
        return self.before(*args, **options)

    def __exit__(self, *_):
        extraction.run_attack = self.before


def extracts(folder, rank):
    """A whole extraction; one with a process that fails, taken up again; one with a process that is killed."""

    def together(name):
        with process_group(torch.device("cpu")):
            reps = extracted(folder / name)
            if reps is not None:
                reps.save(folder / f"{name}.safetensors")

    together("whole")
    with at_batch(1, lambda: {}["a mistake"], rank=1):
        report = {"failed": outcome_of(together, "failed")}
    report["kept"] = len(list((folder / "failed").iterdir()))
    with at_batch() as batches:
        together("failed")
    report["batches"] = batches.calls
    with at_batch(2, lambda: os.kill(os.getpid(), signal.SIGKILL), rank=1):
        report["killed"] = outcome_of(together, "killed")
    (folder / f"rank{rank}.json").write_text(json.dumps(report))


def run(scenario, folder):
    scenarios = (trains, fails, first_fails, stops, killed, extracts)
    {each.__name__: each for each in scenarios}[scenario](Path(folder), int(os.environ["RANK"]))


if __name__ == "__main__":
    run(*sys.argv[1:])
