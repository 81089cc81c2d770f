import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config as tiny
from torch import nn
from torch.nn.utils import parametrizations, prune

import tla_core as tla
from tla_core import methods, run_folder, training, training_loop
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import CheckpointError, file_sha256, load_tensors
from tla_core.config import TrainConfig
from tla_core.evaluation import Evaluation
from tla_core.models import LeNet, Normalize
from tla_core.presets import METHODS, VARIANTS
from tla_core.run_folder import RunConflictError, RunFolder
from tla_core.runtime import full_precision
from tla_core.schedule import learning_rate, make_optimizer, ramped_attack, split_holdout
from tla_core.training import load_model
from tla_core.training_loop import TrainingDivergedError

STEPS_PER_EPOCH = 3  # of tiny() on `digits`


@pytest.fixture(scope="module")
def digits():
    return tla.load_dataset("mnist-mini", "train").subset(range(80))


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """The folder of a finished run, which is not to be changed."""
    return fit(tiny(), tmp_path_factory.mktemp("finished") / "run", digits).run_dir


def fit(config, out_dir, dataset, **options):
    return tla.train(config, out_dir, dataset=dataset, device="cpu", progress=False, **options)


def without_times(metrics):
    return [{key: value for key, value in record.items() if key != "time"} for record in metrics]


def assert_same_run(one, other):
    """Bit for bit the same weights, selection and identity, and the same metrics but for the time of day."""
    assert file_sha256(RunFolder(one).model_path) == file_sha256(RunFolder(other).model_path)
    metrics = [without_times(RunFolder(path).metrics()) for path in (one, other)]
    assert metrics[0] == metrics[1]


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class Interruption(Exception):
    """Ends a training from outside, as Ctrl-C would."""


def interrupt(monkeypatch, owner, name, *, call=0, afterwards=False):
    """Raise in that call of a function, before it does its work or after it."""
    function = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    calls = 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call + 1 and not afterwards:
            raise Interruption
        result = function(*args, **kwargs)
        if calls == call + 1:
            raise Interruption
        return result

    (monkeypatch.setitem if isinstance(owner, dict) else monkeypatch.setattr)(owner, name, interrupted)


# ---- what a training does


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_method_falls(method, tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "LOG_EVERY_STEPS", 1)
    dataset = tla.load_dataset("mnist-mini", "train").subset(range(600))
    config = tiny(method, epochs=1, width=1 / 16, holdout=0, eps_ramp=0.0)
    result = fit(config, tmp_path / "run", dataset)
    steps = [record for record in result.metrics if "loss" in record]
    losses = [record["loss"] for record in steps]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    terms = {
        "um": {"cross_entropy"}, "at": {"cross_entropy"}, "alp": {"cross_entropy", "logit_pairing"},
        "tla": {"cross_entropy", "triplet", "norm"},
    }  # fmt: skip
    for record in steps:
        assert record["terms"].keys() == terms[method]
        assert sum(record["terms"].values()) == pytest.approx(record["loss"], abs=1e-5)


def test_a_training_and_its_selection_read_no_test_image(tmp_path, monkeypatch):
    splits = []

    def load(name, split, **options):
        splits.append(split)
        return tla.load_dataset(name, split, **options).subset(range(80))

    monkeypatch.setattr(training, "load_dataset", load)
    result = tla.train(tiny("at"), tmp_path / "run", device="cpu", progress=False)
    assert splits == ["train"] and any("holdout" in record for record in result.metrics)


def test_an_undefended_model_learns_the_digits(tmp_path):
    dataset = tla.load_dataset("mnist-mini", "train").subset(range(2500))
    result = fit(tiny(width=1 / 16, epochs=2, batch_size=50, holdout=300), tmp_path / "run", dataset)
    held_out = [record["holdout"]["clean"] for record in result.metrics if "holdout" in record]
    assert len(held_out) == 2 and max(held_out) > 0.9
    assert f"best held-out accuracy {max(held_out):.3f}" in repr(result)


def test_the_loaded_model_has_the_held_out_accuracy_that_was_measured(digits, tmp_path):
    config = tiny("at", epochs=3)
    result = fit(config, tmp_path / "run", digits)
    best = max((record["holdout"] for record in result.metrics if "holdout" in record), key=lambda h: h["robust"])
    _, held_out = split_holdout(digits.labels, config.holdout, config.seed)
    model = load_model(result.run_dir)
    assert not model.training
    again = tla.evaluate(model, digits.images[held_out], digits.labels[held_out], {"robust": config.selection_attack})
    assert again.accuracy["robust"] == pytest.approx(best["robust"])


@pytest.mark.parametrize(
    ("method", "clean", "robust", "best"),
    [
        ("um", (2, 9, 5), None, 2), ("um", (9, 2, 5), None, 1), ("um", (2, 9, 9), None, 3), ("um", (0, 0, 0), None, 3),
        ("at", (9, 8, 7), (2, 4, 3), 2), ("at", (9, 8, 7), (4, 4, 4), 1), ("at", (9, 9, 7), (4, 4, 4), 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("interrupted_at", [None, 4, 7])
def test_the_weights_of_the_best_epoch_are_kept(
    method, clean, robust, best, interrupted_at, digits, tmp_path, monkeypatch
):
    """Robust accuracy decides, then clean accuracy, then the later epoch; also of those before an interruption."""
    seen = []

    def scripted(model, images, labels, attacks, **options):
        epoch = len(seen)
        seen.append(weights_of(model))
        assert len(labels) == 20 and list(attacks) == ([] if robust is None else ["robust"])
        outcome = {"clean": torch.arange(20) < clean[epoch]}
        return Evaluation(outcome if robust is None else {**outcome, "robust": torch.arange(20) < robust[epoch]})

    monkeypatch.setattr(training_loop, "evaluate", scripted)
    if interrupted_at is not None:
        with monkeypatch.context() as patch, pytest.raises(Interruption, match=r"^$"):
            interrupt(patch, training_loop.STEPS, method, call=interrupted_at)
            fit(tiny(method, epochs=3), tmp_path / "run", digits)
    result = fit(tiny(method, epochs=3), tmp_path / "run", digits)
    assert_same_weights(weights_of(load_model(result.run_dir)), seen[best - 1])
    assert load_tensors(result.run_dir / "model.safetensors")[1]["selected"]["epoch"] == best


def test_without_held_out_images_the_last_epoch_is_kept(digits, tmp_path):
    result = fit(tiny(holdout=0), tmp_path / "run", digits)
    tensors, _ = load_tensors(result.run_dir / "state.safetensors")
    last = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    assert_same_weights(weights_of(load_model(result.run_dir)), last)
    assert not any("holdout" in record for record in result.metrics)


def test_torch_random_state_neither_matters_nor_changes(digits, finished, tmp_path):
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    fit(tiny(), tmp_path / "run", digits)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same_run(tmp_path / "run", finished)


def test_another_seed_gives_another_run(digits, finished, tmp_path):
    fit(tiny(seed=1), tmp_path / "run", digits)
    ours, theirs = (load_tensors(path / "model.safetensors")[0] for path in (tmp_path / "run", finished))
    assert not torch.equal(ours["classifier.weight"], theirs["classifier.weight"])


# ---- interruptions


class WithDropout(nn.Module):
    """A network of the user's that draws random numbers."""

    def __init__(self, n_classes=10, size=784):
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.classifier = nn.Linear(8, n_classes)

    def forward(self, x):
        return self.classifier(self.layers(x))


RUNS = {
    "tla, adam": (tiny("tla"), lambda: None),
    "at, sgd": (tiny("at", optimizer="sgd", learning_rate=0.05), lambda: None),
    "alp, user's network": (tiny("alp"), WithDropout),
    "tla, averaged, bf16": (tiny("tla", averaging=0.9, precision="bf16", statistics="adversarial"), lambda: None),
}


# One run at every step; the others, whose steps begin and end at the same places, at one in each epoch.
EVERY_STEP, SOME_STEPS = range(2 * STEPS_PER_EPOCH), (1, STEPS_PER_EPOCH + 1)


@pytest.mark.parametrize("save_every_seconds", [0.0, math.inf], ids=["each step saved", "each epoch saved"])
@pytest.mark.parametrize(("config", "make_model"), RUNS.values(), ids=RUNS)
def test_interrupted_at_any_step_and_resumed_equals_never_interrupted(
    config, make_model, save_every_seconds, digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(training_loop, "LOG_EVERY_STEPS", 2)
    monkeypatch.setattr(training_loop, "SAVE_EVERY_SECONDS", save_every_seconds)
    fit(config, tmp_path / "whole", digits, model=make_model())
    for step in EVERY_STEP if config is RUNS["tla, averaged, bf16"][0] else SOME_STEPS:
        out = tmp_path / f"interrupted-at-{step}"
        with monkeypatch.context() as patch, pytest.raises(Interruption, match=r"^$"):
            interrupt(patch, training_loop.STEPS, config.method, call=step)
            fit(config, out, digits, model=make_model())
        saved = step if save_every_seconds == 0 else step - step % STEPS_PER_EPOCH
        assert (load_tensors(out / "state.safetensors")[1]["step"] if saved else 0) == saved
        fit(config, out, digits, model=make_model())
        assert_same_run(out, tmp_path / "whole")


@pytest.mark.parametrize("afterwards", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (RunFolder, "append_metrics", 4), (training_loop, "evaluate", 2), (training_loop, "save_tensors", 2),
        (run_folder, "save_tensors", 1), (run_folder, "write_json", 1), (run_folder, "write_atomic", 1),
    ],
    ids=["metrics", "held-out images", "state", "model", "configuration", "shortened metrics"],
)  # fmt: skip
def test_interrupted_between_the_steps_and_resumed_equals_never_interrupted(
    owner, name, calls, afterwards, digits, finished, tmp_path, monkeypatch
):
    for call in range(calls):
        with monkeypatch.context() as patch, pytest.raises(Interruption, match=r"^$"):
            interrupt(patch, owner, name, call=call, afterwards=afterwards)
            fit(tiny(), tmp_path / str(call), digits)
        fit(tiny(), tmp_path / str(call), digits)
        assert_same_run(tmp_path / str(call), finished)


def test_a_run_that_is_interrupted_again_and_again_is_the_same(digits, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "SAVE_EVERY_SECONDS", 0.0)
    for _ in range(2 * STEPS_PER_EPOCH - 1):  # one step each time
        with monkeypatch.context() as patch, pytest.raises(Interruption, match=r"^$"):
            interrupt(patch, training_loop.STEPS, "um", call=1)
            fit(tiny(), tmp_path / "run", digits)
    fit(tiny(), tmp_path / "run", digits)
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_told_to_end_finishes_its_step_and_saves_it(signum, digits, finished, tmp_path, monkeypatch):
    class Told(Exception):
        pass

    def told(*_):
        raise Told

    before, out = signal.signal(signum, told), tmp_path / "run"
    try:
        with monkeypatch.context() as patch, pytest.raises(Told):
            step, calls = training_loop.STEPS["um"], []

            def told_in_the_second(*args):
                calls.append(len(calls) == 1 and signal.raise_signal(signum))
                return step(*args)

            patch.setitem(training_loop.STEPS, "um", told_in_the_second)
            fit(tiny(), out, digits)
        assert load_tensors(out / "state.safetensors")[1]["step"] == len(calls) == 2
        with monkeypatch.context() as patch, pytest.raises(Told):  # who is told twice ends at once
            patch.setitem(training_loop.STEPS, "um", lambda *_: [signal.raise_signal(signum) for _ in range(2)])
            fit(tiny(), out, digits)
        assert signal.getsignal(signum) is told
    finally:
        signal.signal(signum, before)
    fit(tiny(), out, digits)
    assert_same_run(out, finished)


def test_what_a_killed_process_left_half_written_does_not_matter(digits, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interruption, match=r"^$"):
        interrupt(patch, training_loop.STEPS, "um", call=4)
        fit(tiny(), out, digits)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    (out / ".state.safetensors.4711.tmp").write_bytes(b"half")
    (out / "process.json").write_text('{"pid": 4711, "host": "elsewhere"}')
    fit(tiny(), out, digits)
    assert_same_run(out, finished)
    assert sorted(os.listdir(out)) == [
        "config.json", "lock", "metrics.jsonl", "model.safetensors", "state.safetensors"
    ]  # fmt: skip


def test_a_run_is_resumed_with_the_threads_it_was_started_with(digits, tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), set()

    def count(*args, **kwargs):
        seen.add(torch.get_num_threads())
        return step(*args, **kwargs)

    try:
        torch.set_num_threads(1)
        with monkeypatch.context() as patch, pytest.raises(Interruption, match=r"^$"):
            interrupt(patch, training_loop.STEPS, "um", call=4)
            fit(tiny(), tmp_path / "run", digits)
        torch.set_num_threads(2)
        step = training_loop.STEPS["um"]
        monkeypatch.setitem(training_loop.STEPS, "um", count)
        fit(tiny(), tmp_path / "run", digits)
        assert seen == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---- finished runs


def files_of(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("missing", [(), ("state.safetensors",), ("state.safetensors", "metrics.jsonl")])
def test_a_finished_run_is_returned_as_it_is(missing, digits, tmp_path, monkeypatch):
    """Also without its state: a published checkpoint comes without."""
    first = fit(tiny(), tmp_path / "run", digits)
    for name in missing:
        (tmp_path / "run" / name).unlink()
    before = files_of(tmp_path / "run")
    monkeypatch.setattr(training_loop, "STEPS", {})  # no step is possible
    again = fit(tiny(), tmp_path / "run", digits)
    assert files_of(tmp_path / "run") == before
    assert again.metrics == ([] if "metrics.jsonl" in missing else first.metrics)


def test_a_deleted_model_is_written_again_from_the_state(digits, tmp_path, monkeypatch):
    model = fit(tiny(), tmp_path / "run", digits).run_dir / "model.safetensors"
    before = model.read_bytes()
    model.unlink()
    with pytest.raises(FileNotFoundError, match=r"no finished run: there is no model\.safetensors.*tla train"):
        load_model(tmp_path / "run")
    monkeypatch.setattr(training_loop, "STEPS", {})  # no step is possible
    fit(tiny(), tmp_path / "run", digits)
    assert model.read_bytes() == before


def test_resume_false_moves_the_run_aside_and_both_can_be_loaded(digits, finished, tmp_path):
    out = tmp_path / "run"
    for model_is_there in (True, False):
        fit(tiny(), out, digits)
        if not model_is_there:  # as a pipeline that repeats a job deletes its output first
            (out / "model.safetensors").unlink()
        fit(tiny(), out, digits, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old-1", "run.old-2"]
    for folder in tmp_path.iterdir():
        assert_same_run(folder, finished)


def test_replace_moves_a_run_with_other_settings_or_data_aside(digits, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    half = digits.subset(range(60))
    fit(tiny(), run, half, replace=True)
    assert_same_run(tmp_path / "run.old-1", finished)
    fit(tiny(), run, half, replace=True)  # the same again: returned as it is
    assert not (tmp_path / "run.old-2").exists()


def test_a_damaged_run_can_be_moved_aside(digits, tmp_path):
    fit(tiny(), tmp_path / "run", digits)
    (tmp_path / "run" / "model.safetensors").unlink()
    damage(tmp_path / "run" / "state.safetensors")
    assert RunFolder(tmp_path / "run").move_aside() == tmp_path / "run.old-1"
    assert not (tmp_path / "run").exists()


# ---- another run in the same folder


@pytest.mark.parametrize("config_is_there", [True, False])
def test_another_configuration_in_the_same_folder_is_refused(config_is_there, digits, tmp_path):
    fit(tiny(), tmp_path / "run", digits)
    if not config_is_there:
        (tmp_path / "run" / "config.json").unlink()
    before = files_of(tmp_path / "run")
    for resume in (True, False):
        with pytest.raises(RunConflictError, match=r"config\.epochs was 2, is 3; config\.margin was 0\.05, is 0\.1\."):
            fit(tiny(epochs=3, margin=0.1), tmp_path / "run", digits, resume=resume)
    assert files_of(tmp_path / "run") == before


def test_other_images_or_another_network_are_another_run(digits, tmp_path):
    fit(tiny(), tmp_path / "run", digits)
    with pytest.raises(RunConflictError, match=r"data\.checksum was .*data\.images was 80, is 79"):
        fit(tiny(), tmp_path / "run", digits.subset(range(79)))
    with pytest.raises(RunConflictError, match=r"start\.network was 'preset', is 'WithDropout [0-9a-f]{16}'"):
        fit(tiny(), tmp_path / "run", digits, model=WithDropout())


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is damaged: .*Move the folder aside"), ("[1]", "not that of a training")]
)
def test_a_config_file_that_cannot_be_understood_is_refused(content, message, digits, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"config.json {message}|config.json is {message}"):
        fit(tiny(), tmp_path, digits)
    assert (tmp_path / "config.json").read_text() == content


def test_a_folder_is_trained_by_one_process_at_a_time(digits, tmp_path):
    script = (
        "import sys; from tla_core.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    run = fit(tiny(epochs=1), tmp_path / "run", digits).run_dir
    (run / "model.safetensors").unlink()  # a finished run may be looked at
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        for resume in (True, False):
            with pytest.raises(
                RunConflictError, match=rf'run is being trained by another process .*"pid": {other.pid}\b'
            ):
                fit(tiny(epochs=1), tmp_path / "run", digits, resume=resume)
        assert os.listdir(tmp_path) == ["run"]
        other.kill()
    fit(tiny(epochs=1), tmp_path / "run", digits)  # the lock died with its process


def test_a_folder_is_trained_once_at_a_time_within_a_process(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with (
            pytest.raises(RunConflictError, match=rf"another process .*{os.getpid()}"),
            RunFolder(folder.path).locked(),
        ):
            pass
        assert (folder.path / "process.json").exists()
    assert not (folder.path / "process.json").exists()


def test_fields_that_an_older_record_lacks_are_no_differences(digits, tmp_path):
    """They were added since, with a default that leaves everything as it was."""
    run = fit(tiny(), tmp_path / "run", digits).run_dir
    for path in (run / "model.safetensors", run / "state.safetensors"):
        tensors, metadata = load_tensors(path)
        for record in (metadata, metadata.get("run", {})):
            for field in ("averaging", "precision", "fine_tune"):
                record.get("config", {}).pop(field, None)
        training_loop.save_tensors(path, tensors, metadata)
    fit(tiny(), run, digits)
    (run / "config.json").unlink()
    with pytest.raises(RunConflictError, match=r"another configuration: config\.seed was 0, is 1\. Use"):
        fit(tiny(seed=1), run, digits)


# ---- divergence


class Poisoned(nn.Module):
    """Its output, or its gradient, is not a number from a training step on."""

    def __init__(self, *, output_from=math.inf, gradient_from=math.inf):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.output_from, self.gradient_from, self.step = output_from, gradient_from, 0

    def forward(self, x):
        logits = self.layers(x)
        if self.training:
            if self.step >= self.gradient_from:
                logits.register_hook(lambda gradient: gradient * math.nan)
            logits = logits * (math.nan if self.step >= self.output_from else 1)
            self.step += 1
        return logits


@pytest.mark.parametrize(
    ("poison", "message", "saved"),
    [
        ({"output_from": 0}, r"the loss \(nan\) is not finite at step 0 \(epoch 1\)\. No state had been saved", None),
        (
            {"output_from": 4},
            r"the loss \(nan\) is not finite at step 4 \(epoch 2\)\. The state of step 3 is kept in",
            3,
        ),
        ({"gradient_from": 4}, r"the loss \(nan\) is not finite at step 5 .*Lower learning_rate \(now 0\.006\)", 3),
        ({"gradient_from": 5}, r"a weight is not finite at step 6 .*state of step 3", 3),
    ],
)
def test_a_training_that_diverges_stops_and_keeps_the_last_good_state(poison, message, saved, digits, tmp_path):
    with pytest.raises(TrainingDivergedError, match=message):
        fit(tiny(), tmp_path / "run", digits, model=Poisoned(**poison))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    if saved:
        tensors, metadata = load_tensors(tmp_path / "run" / "state.safetensors")
        assert metadata["step"] == saved and all(tensor.isfinite().all() for tensor in tensors.values())
    fit(tiny(), tmp_path / "run", digits, model=Poisoned())  # cured, it goes on from there
    fit(tiny(), tmp_path / "whole", digits, model=Poisoned())
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# ---- networks, data and weights of the user's


@pytest.fixture(scope="module")
def pictures():
    """Wide colour images of three classes, as no preset has them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 8, 10), generator=generator, dtype=torch.uint8)
    return tla.ImageDataset(images, torch.arange(60) % 3, ("cat", "dog", "frog"), name="pictures")


@pytest.mark.parametrize("method", METHODS)
def test_a_network_and_images_of_the_users_are_trained(method, pictures, tmp_path):
    def make_model():
        return WithDropout(n_classes=3, size=240)

    config = tiny(method, holdout=9, batch_size=17)
    result = fit(config, tmp_path / "run", pictures, model=make_model())
    loaded = load_model(result.run_dir, model=make_model())
    assert loaded(pictures.images[:4] / 255).shape == (4, 3) and not loaded.training
    assert not torch.equal(loaded.classifier.weight, make_model().classifier.weight)
    record = json.loads((result.run_dir / "config.json").read_text())
    assert record["data"]["name"] == "pictures" and record["data"]["classes"] == 3


def test_a_run_of_the_users_network_is_loaded_with_that_network(digits, tmp_path):
    fit(tiny(epochs=1), tmp_path / "run", digits, model=WithDropout())
    with pytest.raises(
        ValueError, match=r"trained a network of the user's\. Pass it: load_model\(run_dir, model=\.\.\."
    ):
        load_model(tmp_path / "run")
    with pytest.raises(ValueError, match=r"weights of .*run are those of another network: .*size mismatch"):
        load_model(tmp_path / "run", model=WithDropout(n_classes=9))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WithDropout(n_classes=9), r"labels must be in 0\.\.8, since the model has 9 outputs\. Got the label 9"),
        (nn.Identity(), r"must return logits of the shape \(2, classes\)\. Got \(2, 1, 28, 28\)"),
    ],
    ids=["too few classes", "no logits"],
)
def test_a_network_that_does_not_fit_the_classes_is_refused_before_the_first_step(model, message, digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(tiny(), tmp_path / "run", digits, model=model)
    fit(tiny(), tmp_path / "run", digits, model=WithDropout())  # nothing is in the way of the right one


def test_the_presets_network_takes_square_images(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"takes square images\. Got 8 x 10"):
        fit(tiny(holdout=0), tmp_path / "run", pictures)


def test_a_method_without_its_layer_says_so(digits, tmp_path):
    with pytest.raises(ValueError, match="no layer 'hidden'"):
        fit(tiny("tla", layer="hidden", pool_size=30), tmp_path / "run", digits, model=WithDropout())


def first_weights(patch, config, out_dir, dataset, **options):
    """The weights that a training starts its first step with."""
    seen = []

    def look(model, *args):
        seen.append(weights_of(model))
        raise Interruption

    patch.setitem(training_loop.STEPS, config.method, look)
    with pytest.raises(Interruption, match=r"^$"):
        fit(config, out_dir, dataset, **options)
    return seen[0]


def test_a_training_starts_from_the_weights_of_init_from(digits, finished, tmp_path, monkeypatch):
    selected = weights_of(load_model(finished))
    with monkeypatch.context() as patch:
        assert_same_weights(first_weights(patch, tiny("at"), tmp_path / "a", digits, init_from=finished), selected)
        other = first_weights(patch, tiny("at"), tmp_path / "b", digits)
    assert not torch.equal(other["classifier.weight"], selected["classifier.weight"])
    fit(tiny("at"), tmp_path / "a", digits, init_from=finished)
    with pytest.raises(RunConflictError, match=r"start\.init_from was '[0-9a-f]{64}', is None"):
        fit(tiny("at"), tmp_path / "a", digits)


def test_the_users_network_starts_from_its_own_weights_or_those_of_init_from(digits, tmp_path, monkeypatch):
    model = WithDropout()
    own = weights_of(model)
    trained = fit(tiny(), tmp_path / "first", digits, model=model).run_dir
    with monkeypatch.context() as patch:
        assert_same_weights(first_weights(patch, tiny(), tmp_path / "a", digits, model=WithDropout()), own)
        start = first_weights(patch, tiny(), tmp_path / "b", digits, model=WithDropout(), init_from=trained)
    assert_same_weights(start, weights_of(load_model(trained, model=WithDropout())))


def test_init_from_must_be_a_finished_run_of_the_same_network(digits, finished, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no finished run: there is no model\.safetensors"):
        fit(tiny(), tmp_path / "run", digits, init_from=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"the weights of .* are those of another network: .*size mismatch"):
        fit(tiny(width=1 / 16), tmp_path / "wide", digits, init_from=finished)


def test_frozen_parameters_stay_as_they_are(digits, tmp_path):
    model = WithDropout()
    model.layers[1].weight.requires_grad_(False)
    before = weights_of(model)
    loaded = load_model(fit(tiny("at"), tmp_path / "run", digits, model=model).run_dir, model=WithDropout())
    assert torch.equal(loaded.layers[1].weight, before["layers.1.weight"])
    assert not torch.equal(loaded.classifier.weight, before["classifier.weight"])
    assert not model.layers[1].weight.requires_grad and model.classifier.weight.requires_grad


@pytest.mark.parametrize("other", ["10 classes, here 3; ", "width 0.03125, here 0.0625; "])
def test_init_from_says_what_differs_from_the_other_network(other, digits, finished, tmp_path):
    if "classes" in other:
        images = digits.images
        data = tla.ImageDataset(images, digits.labels % 3, ("a", "b", "c"), name="three")
        config = tiny("at")
    else:
        data, config = digits, tiny("at", width=1 / 16)
    with pytest.raises(ValueError, match=f"finished.*run are those of another network: {other}.*size mismatch"):
        fit(config, tmp_path / "run", data, init_from=finished)
    fit(config, tmp_path / "run", data)  # nothing is in the way of a training without them


def test_a_run_that_fine_tunes_needs_another_run_to_start_from(digits, finished, tmp_path):
    config = tiny("tla", fine_tune=True)
    with pytest.raises(ValueError, match=r"fine-tune another run.*init_from=RUN or `tla train --init-from RUN`"):
        fit(config, tmp_path / "run", digits)
    assert not (tmp_path / "run").exists()
    assert fit(config, tmp_path / "run", digits, init_from=finished).metrics


class Residual(nn.Module):
    """A plain network as users write them: batch norm, and a forward that is no sequence of modules."""

    def __init__(self, n_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm_1 = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm_2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, n_classes)

    def forward(self, x):
        x = torch.relu(self.norm_1(self.stem(x)))
        x = torch.relu(x + self.norm_2(self.conv(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """24 x 24 pictures of three classes, each in a folder of PNG files."""
    root, generator = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 2)):
        for k, name in enumerate(("disc", "ring", "star")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 100, (24, 24, 3), dtype=np.uint8)
                pixels[..., k] += 100
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("method", METHODS)
def test_a_users_network_is_trained_on_a_folder_of_the_users(method, image_folder, tmp_path):
    def make_model():
        torch.manual_seed(0)
        return nn.Sequential(Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), Residual(3))

    data = tla.load_dataset(str(image_folder), "train")
    seen = []

    def attack(attack, model, x, *args, **options):
        x_adv = run_attack(attack, model, x, *args, **options)
        seen.append(((x_adv - x).abs().max().item(), x_adv.min().item(), x_adv.max().item()))
        return x_adv

    run_attack = methods.run_attack
    config = tiny(method, epochs=1, batch_size=8, holdout=6, augmentation="crop-flip-saturation", eps_ramp=0.0)
    model = make_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "run_attack", attack)
        result = fit(config, tmp_path / "run", data, model=model)
    # eps is in pixels of images in [0, 1], whatever the network does with them.
    assert all(0.05 < size <= 0.1 + 1e-6 and low >= 0 and high <= 1 for size, low, high in seen)
    assert bool(seen) == (method != "um")
    loaded = load_model(result.run_dir, model=make_model())
    images = tla.load_dataset(str(image_folder), "test").images / 255
    torch.testing.assert_close(loaded(images), model.eval()(images))  # of the only epoch
    assert torch.equal(loaded[0].mean, make_model()[0].mean)


# ---- how long, how precise, averaged


@pytest.mark.parametrize(("iterations", "selected_at"), [(2, [2]), (3, [3]), (4, [3, 4]), (7, [3, 6, 7])])
def test_a_training_of_so_many_iterations(iterations, selected_at, digits, finished, tmp_path):
    result = fit(tiny(epochs=1, iterations=iterations), tmp_path / "run", digits)
    held_out = [record for record in result.metrics if "holdout" in record]
    assert [record["step"] for record in held_out] == selected_at
    assert [record["epoch"] for record in held_out] == list(range(1, len(selected_at) + 1))
    assert load_tensors(result.run_dir / "state.safetensors")[1]["step"] == iterations


def test_as_many_iterations_as_epochs_have_give_the_same_weights(digits, finished, tmp_path):
    fit(tiny(epochs=1, iterations=2 * STEPS_PER_EPOCH), tmp_path / "run", digits)
    assert_same_weights(*(load_tensors(path / "model.safetensors")[0] for path in (tmp_path / "run", finished)))


@pytest.mark.parametrize("method", METHODS + VARIANTS)
def test_bf16_is_for_the_network_alone(method, digits, tmp_path, monkeypatch):
    config = tiny("tla" if method in VARIANTS else method, precision="bf16", eps_ramp=0.0)
    config = dataclasses.replace(config, method=method)
    activations, perturbations, losses, reported = [], [], [], []

    class Watched(LeNet):
        def forward(self, x):
            assert x.dtype == torch.float32
            logits = super().forward(x)
            checking = not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()  # or evaluating
            activations.append((logits.dtype, checking))
            return logits

    def attacked(attack, model, x, *args, **options):
        x_adv = run_attack(attack, model, x, *args, **options)
        perturbations.append((x_adv.dtype, (x_adv - x).abs().max().item()))
        return x_adv

    def step(*args):
        loss = before(*args)
        losses.extend([loss.total.dtype, *(term.dtype for term in loss.terms.values())])
        return loss

    def selecting(*args, **options):
        training_so_far = len(activations)
        outcome = evaluate(*args, **options)
        reported.extend(activations[training_so_far:])
        del activations[training_so_far:]
        return outcome

    before, run_attack, evaluate = training_loop.STEPS[method], methods.run_attack, training_loop.evaluate
    monkeypatch.setattr(training, "to_channels_last", lambda *_: False)  # looks at gradients, in full precision
    monkeypatch.setitem(training_loop.STEPS, method, step)
    monkeypatch.setattr(methods, "run_attack", attacked)
    monkeypatch.setattr(training_loop, "evaluate", selecting)
    # The evidence that folding changes nothing is in full precision, once.
    monkeypatch.setattr("tla_core.folding.says_the_same", lambda *args, **options: True)
    model = Watched(width=1 / 32)
    fit(config, tmp_path / "run", digits, model=model)
    assert {dtype for dtype, checking in activations if not checking} == {torch.bfloat16}
    assert {dtype for dtype, _ in reported} == set(losses) == {torch.float32}
    assert all(dtype == torch.float32 and 0.09 < size <= 0.1 + 2**-24 for dtype, size in perturbations)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_the_accuracies_of_bf16_are_those_of_fp32_within_two_standard_errors(tmp_path):
    """A training under autocast gives as good a network, and an attack under autocast finds as much."""
    data = tla.load_dataset("mnist-mini", "train").subset(range(1000))
    test = tla.load_dataset("mnist-mini", "test").subset(range(500))
    attack = AttackConfig(eps=0.1, step_size=0.06, steps=2)
    config = tiny("at", width=1 / 16, holdout=0, attack=attack, eps_ramp=0.0)

    def under_autocast(model, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return methods.run_attack(attack, model, x, y)

    found = {}
    for precision, attacks in {"fp32": {"pgd": attack, "bf16": under_autocast}, "bf16": {"pgd": attack}}.items():
        run = fit(dataclasses.replace(config, precision=precision), tmp_path / precision, data).run_dir
        found[precision] = tla.evaluate(load_model(run), test.images, test.labels, attacks, checks=False)
    full, error = found["fp32"].accuracy, found["fp32"].standard_error
    assert full["clean"] > 0.85 and full["pgd"] > 0.7
    assert abs(full["bf16"] - full["pgd"]) < error["pgd"]
    for name in ("clean", "pgd"):  # of two networks, since the rounding of a processor makes another training
        assert abs(found["bf16"].accuracy[name] - full[name]) < 2 * 2**0.5 * error[name]


def test_reported_numbers_are_computed_in_full_precision():
    """Convolutions of a GPU are in TF32 unless told, and a caller may be under autocast."""
    parts = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [part.fp32_precision for part in parts]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(Interruption, match=r"^$"), full_precision("cpu"):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32
        assert [part.fp32_precision for part in parts] == before  # a CPU has no other precision to leave
        raise Interruption
    with pytest.raises(Interruption, match=r"^$"), full_precision("cuda"):
        assert all(part.fp32_precision == "ieee" for part in parts)
        raise Interruption
    assert [part.fp32_precision for part in parts] == before and before[0] != "ieee"


@pytest.mark.parametrize("user", [False, True], ids=["preset", "user's network"])
def test_the_moving_average_is_what_is_selected(user, digits, tmp_path, monkeypatch):
    def make_model():
        return nn.Sequential(Normalize([0.1], [0.3]), WithDropout()) if user else None

    seen = []

    def look(model, *args):
        seen.append(weights_of(model))
        return step(model, *args)

    step = training_loop.STEPS["at"]
    monkeypatch.setitem(training_loop.STEPS, "at", look)
    config = tiny("at", averaging=0.6, holdout=0, batch_size=40)
    fit(config, tmp_path / "run", digits, model=make_model())
    tensors, _ = load_tensors(tmp_path / "run" / "state.safetensors")
    seen.append({name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")})
    average = {name: value.double() for name, value in seen[1].items()}  # after the first step
    for weights in seen[2:]:
        average = {name: 0.6 * value + 0.4 * weights[name].double() for name, value in average.items()}
    selected = load_tensors(tmp_path / "run" / "model.safetensors")[0]
    assert len(seen) == 5 and selected.keys() == average.keys()
    for name, value in selected.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-6, atol=1e-7)
        else:
            assert name.endswith("num_batches_tracked") and value == seen[-1][name] > 0
    last = "1.classifier.weight" if user else "classifier.weight"
    assert not torch.equal(selected[last], seen[-1][last])
    if user:
        assert torch.equal(selected["0.mean"], make_model()[0].mean)


def test_held_out_images_are_shown_to_the_moving_average(digits, tmp_path):
    result = fit(tiny("at", averaging=0.9), tmp_path / "run", digits)
    held_out = [record["holdout"] for record in result.metrics if "holdout" in record]
    best = max(held_out, key=lambda h: (h["robust"], h["clean"]))
    _, rows = split_holdout(digits.labels, 20, 0)
    again = tla.evaluate(load_model(result.run_dir), digits.images[rows], digits.labels[rows], checks=False)
    assert again.accuracy["clean"] == pytest.approx(best["clean"])


# ---- TensorBoard


def test_tensorboard_holds_what_the_metrics_hold_also_after_an_interruption(digits, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="TensorBoard is an option that is not installed here")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(training_loop, "LOG_EVERY_STEPS", 1)
    with monkeypatch.context() as patch, pytest.raises(Interruption, match=r"^$"):
        interrupt(patch, training_loop.STEPS, "tla", call=4)
        fit(tiny("tla"), tmp_path / "run", digits, tensorboard=True)
    result = fit(tiny("tla"), tmp_path / "run", digits, tensorboard=True)
    expected = {}
    for record in result.metrics:
        flat = {**record, **record.get("terms", {}), **record.get("holdout", {})}
        group = "holdout" if "holdout" in record else "training"
        for name in flat.keys() - {"step", "time", "terms", "holdout"}:
            expected.setdefault(f"{group}/{name}", []).append((record["step"], np.float32(flat[name])))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = {tag: [(e.step, np.float32(e.value)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == expected and {"training/loss", "training/triplet", "holdout/robust"} <= found.keys()
    assert len(found["training/loss"]) == 2 * STEPS_PER_EPOCH
    fit(tiny("tla"), tmp_path / "without", digits)
    assert_same_run(tmp_path / "run", tmp_path / "without")


def test_tensorboard_that_is_not_installed_is_told_before_anything_is_written(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"TensorBoard is not installed: `pip install tensorboard`"):
        fit(tiny(), tmp_path / "run", digits, tensorboard=True)
    assert not (tmp_path / "run").exists()


# ---- memory that does not suffice


def no_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def no_memory():
    torch.empty(1 << 60, dtype=torch.uint8)


def no_memory_for_numpy():
    np.empty(1 << 60, dtype=np.uint8)


@pytest.mark.parametrize("fail", [no_gpu_memory, no_memory, no_memory_for_numpy])
@pytest.mark.parametrize("failing_step", [0, 4])
def test_out_of_memory_says_what_to_try_and_loses_nothing(fail, failing_step, digits, finished, tmp_path, monkeypatch):
    def step(*args):
        if args[2] == failing_step:
            fail()
        return before(*args)

    before = training_loop.STEPS["um"]
    what = rf"out of memory on cpu at step {failing_step}, with batches of 20 images\."
    kept = "The state of step 3 is kept" if failing_step else "No state had been saved yet"
    with monkeypatch.context() as patch:
        patch.setitem(training_loop.STEPS, "um", step)
        with pytest.raises(torch.OutOfMemoryError, match=f"{what} {kept}.*Try batch_size=10,"):
            fit(tiny(), tmp_path / "run", digits)
    fit(tiny(), tmp_path / "run", digits)
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize(
    ("config", "advice"),
    [(tiny("tla"), "Try batch_size=10 or a smaller pool_size,"), (tiny(batch_size=2), "Try a network of less width,")],
)
def test_what_to_try_depends_on_the_settings(config, advice, digits, tmp_path, monkeypatch):
    monkeypatch.setitem(training_loop.STEPS, config.method, lambda *_: no_gpu_memory())
    with pytest.raises(torch.OutOfMemoryError, match=advice):
        fit(config, tmp_path / "run", digits)


def test_held_out_images_are_evaluated_fewer_at_once_where_memory_does_not_suffice(digits, tmp_path, monkeypatch):
    tried = []

    def limited(*args, batch_size, **options):
        tried.append(batch_size)
        if batch_size > fits:
            no_gpu_memory()
        return evaluate(*args, batch_size=batch_size, **options)

    evaluate = training_loop.evaluate
    fit(tiny("at"), tmp_path / "whole", digits)
    monkeypatch.setattr(training_loop, "evaluate", limited)
    fits = 0
    with pytest.raises(torch.OutOfMemoryError, match=r"at step 3, .* No state had been saved yet.*Try batch_size=10"):
        fit(tiny("at"), tmp_path / "run", digits)
    assert tried == [256, 128, 64, 32, 16]
    fits = 64
    fit(tiny("at"), tmp_path / "run", digits)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_error_that_is_not_about_memory_keeps_its_own_words(digits, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setitem(training_loop.STEPS, "um", fail)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        fit(tiny(), tmp_path / "run", digits)


# ---- files that cannot be trusted, and settings that do not exist


def damage(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x10
    path.write_bytes(content)


def test_altered_files_are_refused(digits, tmp_path, monkeypatch):
    run = fit(tiny(), tmp_path / "run", digits).run_dir
    damage(run / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors was altered"):
        load_model(run)
    (run / "model.safetensors").write_bytes((run / "state.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"does not hold the weights of a run\. Got a file of 'state'"):
        load_model(run)
    (run / "model.safetensors").unlink()
    damage(run / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.safetensors was altered"):
        fit(tiny(), run, digits)


def test_unknown_names_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"unknown preset 'mini/mnist/tlaa'\. There are: mini/mnist/um"):
        TrainConfig.preset("mini/mnist/tlaa")
    with pytest.raises(ValueError, match=r"unknown field epoch\. A TrainConfig has: method, .*epochs"):
        TrainConfig.preset("mini/mnist/tla", epoch=3)
    with pytest.raises(ValueError, match=r"method must be one of um, at, alp, tla, tla-rn, tla-sa\. Got 'TLA'"):
        TrainConfig(method="TLA")
    with pytest.raises(ValueError, match="Unknown dataset 'mnist-maxi'"):
        tla.train(tiny(dataset="mnist-maxi"), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N"):
        tla.train(tiny(), tmp_path / "run", progress=False, device="gpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"unknown network 'lenett'\. There are: lenet"):
        tla.train(tiny(network="lenett"), tmp_path / "run", progress=False)


# ---- schedules


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, {0: 1.0, 0.5: 1.0, 0.999: 1.0}),
        ({"schedule": "onecycle", "warmup": 0.25}, {0: 0.04, 0.125: 0.52, 0.25: 1.0, 0.625: 0.5, 1 - 1e-9: 0.0}),
        (
            {"schedule": "steps", "milestones": (0.5, 0.75)},
            {0: 1.0, 0.4999: 1.0, 0.5: 0.1, 0.7499: 0.1, 0.75: 0.01, 0.999: 0.01},
        ),
    ],
    ids=["constant", "onecycle", "steps"],
)
def test_the_learning_rate_at_the_corners_of_its_schedule(settings, expected):
    config = TrainConfig(learning_rate=2.0, **settings)
    for share, factor in expected.items():
        assert learning_rate(config, share) == pytest.approx(2.0 * factor, abs=1e-12)


def test_the_learning_rate_of_the_schedule_is_the_one_that_is_used(digits, tmp_path, monkeypatch):
    used, step = [], torch.optim.Adam.step

    def look(self, *args):
        used.append({group["lr"] for group in self.param_groups})
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", look)
    monkeypatch.setattr(training_loop, "LOG_EVERY_STEPS", 1)
    config = tiny(schedule="steps", milestones=(0.5,), learning_rate=0.01)
    result = fit(config, tmp_path / "run", digits)
    logged = [record["learning_rate"] for record in result.metrics if "loss" in record]
    assert used == [{rate} for rate in logged] and logged == pytest.approx([0.01] * 3 + [0.001] * 3)


def test_eps_and_step_size_grow_linearly_until_the_ramp_ends():
    attack = AttackConfig(eps=0.3, step_size=0.1, steps=3)
    config = TrainConfig(attack=attack, eps_ramp=0.5)
    ramp = [ramped_attack(config, step, 20) for step in range(20)]
    assert [each.eps for each in ramp] == pytest.approx([0.03 * step for step in range(1, 10)] + [0.3] * 11)
    assert all(each.step_size == pytest.approx(each.eps / 3) and each.steps == 3 for each in ramp)
    assert ramp[9:] == [attack] * 11


@pytest.mark.parametrize("config", [TrainConfig(eps_ramp=0.0), TrainConfig(eps_ramp=0.5, attack=AttackConfig(eps=0.0))])
def test_without_a_ramp_the_attack_is_whole_from_the_first_step(config):
    assert ramped_attack(config, 0, 100) == config.attack


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_weight_decay_is_on_matrices_and_kernels_only(name, kind):
    model = tla.build_model("lenet", width=1 / 32, in_channels=1, image_size=28, n_classes=10)
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert type(optimizer) is kind and optimizer.defaults.get("momentum", 0.9) == 0.9
    assert {decay[id(parameter)] for _, parameter in model.named_parameters()} == {0.0, 0.01}
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert decay[id(module.weight)] == 0.01 and decay[id(module.bias)] == 0.0
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert decay[id(module.weight)] == decay[id(module.bias)] == 0.0


class Attentive(nn.Module):
    """A bit of everything that a user's network may be made of."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.embedding = nn.Embedding(16, 8)
        self.patches = nn.Conv2d(1, 8, 7, stride=7)
        self.upwards = nn.ConvTranspose1d(8, 8, 2)
        self.norm = nn.LayerNorm([16, 8])  # weight of two dimensions
        self.attention = nn.MultiheadAttention(8, 2)
        self.apart = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True)
        self.recurrent = nn.GRU(8, 8)
        self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))
        self.pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", amount=0.5)
        self.biased = parametrizations.weight_norm(nn.Linear(8, 8), "bias", dim=None)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.tied = nn.Linear(8, 16, bias=False)
        self.tied.weight = self.embedding.weight


def test_weight_decay_goes_by_the_kind_of_layer_in_a_users_network():
    model = Attentive()
    decayed, spared = make_optimizer(model, TrainConfig(weight_decay=0.01)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0)
    assert {names[id(p)] for p in decayed["params"]} == {
        "embedding.weight",  # since it is that of a linear layer too
        "patches.weight", "upwards.weight", "attention.in_proj_weight", "attention.out_proj.weight",
        "apart.q_proj_weight", "apart.k_proj_weight", "apart.v_proj_weight", "apart.out_proj.weight",
        "normed.parametrizations.weight.original0", "normed.parametrizations.weight.original1",
        "spectral.parametrizations.weight.original", "pruned.weight_orig", "biased.weight",
    }  # fmt: skip
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(names[id(p)] for group in (decayed, spared) for p in group["params"]) == sorted(trained)


@pytest.mark.parametrize("name", ["lenet", "wrn-table2", "resnet50", "preact-resnet50"])
def test_the_presets_networks_have_weight_decay_on_all_that_has_several_dimensions(name):
    model = tla.build_model(name, width=1 / 16, in_channels=3, image_size=64, n_classes=5)
    groups = make_optimizer(model, TrainConfig()).param_groups
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    assert list(map(id, groups[0]["params"])) == list(map(id, matrices))  # in this order: weights stay bit for bit


# ---- held-out images


@pytest.mark.parametrize("n_holdout", [0, 1, 9, 30, 44])
def test_held_out_images_are_balanced_and_not_trained_on(n_holdout):
    labels = torch.arange(100) % 3
    kept, held_out = split_holdout(labels, n_holdout, seed=0)
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(100)) and len(held_out) == n_holdout
    counts = torch.bincount(labels[held_out], minlength=3)
    assert counts.max() - counts.min() <= 1
    again, other = split_holdout(labels, n_holdout, seed=0)[1], split_holdout(labels, n_holdout, seed=1)[1]
    assert torch.equal(held_out, again) and (n_holdout == 0 or not torch.equal(held_out, other))


def test_a_holdout_that_takes_all_images_is_refused():
    with pytest.raises(ValueError, match=r"holdout must be less than the 10 training images\. Got 10"):
        split_holdout(torch.arange(10), 10, seed=0)


def test_a_holdout_that_takes_all_images_of_a_class_is_refused():
    labels = torch.tensor([0] * 50 + [1] * 2)
    with pytest.raises(ValueError, match=r"holdout 4 would leave no image of class 1 to train on"):
        split_holdout(labels, 4, seed=0)
    kept, _ = split_holdout(labels, 3, seed=0)
    assert 1 in labels[kept]
