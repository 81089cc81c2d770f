"""An extraction whose batches are kept as files: interrupted, taken up again, shared by two processes (gloo)."""

import json
import subprocess

import numpy as np
import pytest
import torch
from distributed_worker import at_batch, digits, extracted, stop
from test_distributed import TORCHRUN, environment, processes_of
from tiny import project_folder, tiny_lenet

import analysis
from analysis.scales import run_results
from analysis.scales.scale import load_scale
from tla_core.attack_config import AttackConfig
from tla_core.training import train

BATCHES = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of one process that keeps no shards."""
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    extracted(None).save(path)
    return path.read_bytes()


def content(reps, folder):
    reps.save(folder / "result.safetensors")
    return (folder / "result.safetensors").read_bytes()


def calls(*args, **changes):
    """What an extraction gives, and how many batches it made."""
    with at_batch() as batches:
        reps = extracted(*args, **changes)
    return reps, batches.calls


# ---- one process


def test_what_is_finished_is_taken_up_by_the_next_call(tmp_path, whole):
    with at_batch(3, stop), pytest.raises(InterruptedError):
        extracted(tmp_path / "shards")
    assert len(list((tmp_path / "shards").iterdir())) == 3
    reps, n_batches = calls(tmp_path / "shards")
    assert n_batches == BATCHES - 3 and content(reps, tmp_path) == whole
    reps, n_batches = calls(tmp_path / "shards")
    assert n_batches == 0 and content(reps, tmp_path) == whole


@pytest.mark.parametrize("keep_images", ["uint8", None])
def test_shards_hold_what_is_kept_of_the_images(tmp_path, keep_images):
    expected = content(extracted(None, keep_images=keep_images), tmp_path)
    for _ in range(2):
        assert content(extracted(tmp_path / "shards", keep_images=keep_images), tmp_path) == expected


def test_several_layers_and_no_attack(tmp_path):
    options = {"layer": ["penultimate", "logits"], "attack": None}
    expected = extracted(None, **options)
    for _ in range(2):
        sets = extracted(tmp_path / "shards", **options)
        assert list(sets) == list(expected)
        for layer, reps in sets.items():
            assert content(reps, tmp_path) == content(expected[layer], tmp_path)


def test_a_damaged_shard_is_made_again(tmp_path, whole):
    extracted(tmp_path / "shards")
    first, second, *_ = sorted((tmp_path / "shards").iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.write_bytes(second.read_bytes()[:40])
    reps, n_batches = calls(tmp_path / "shards")
    assert n_batches == 2 and content(reps, tmp_path) == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": AttackConfig(eps=0.2, step_size=0.1, steps=2)}, {"meta": {"checkpoint": "another"}},
        {"generator": torch.Generator().manual_seed(1)}, {"fold": True}, {"keep_images": "uint8"},
        {"layer": "logits"}, {"indices": torch.arange(50) + 1},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_shards_of_other_settings_are_made_again(tmp_path, changes):
    extracted(tmp_path / "shards")
    reps, n_batches = calls(tmp_path / "shards", **changes)
    assert n_batches == BATCHES and content(reps, tmp_path) == content(extracted(None, **changes), tmp_path)


def test_shards_of_other_images_or_weights_are_made_again(tmp_path):
    extracted(tmp_path / "shards")
    data, model = digits().subset(range(50)), tiny_lenet()
    options = {"attack": AttackConfig(eps=0.3, step_size=0.1, steps=2), "batch_size": 8, "fold": False}
    images = data.images.clone()
    images[9] = 255 - images[9]
    with at_batch() as batches:
        analysis.extract(model, images, data.labels, shards=tmp_path / "shards", **options)
    assert batches.calls == 1  # the batch that this image is in
    with torch.no_grad():
        model.classifier.bias[0] += 1
    with at_batch() as batches:
        analysis.extract(model, images, data.labels, shards=tmp_path / "shards", **options)
    assert batches.calls == BATCHES


def test_an_attack_that_does_not_tell_its_settings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"with shards, attack must be an AttackConfig\. Got <function"):
        extracted(tmp_path / "shards", attack=lambda model, x, y: x)


# ---- several processes


def test_two_processes_give_the_bytes_of_one_also_when_one_failed(tmp_path, whole):
    codes, messages = processes_of("extracts", tmp_path)
    assert codes == [0, -9], messages
    report = json.loads((tmp_path / "rank0.json").read_text())
    assert (tmp_path / "whole.safetensors").read_bytes() == whole
    # One fails at its second batch: the first one of each is kept, and perhaps the second of the other one.
    kind, message, _ = report["failed"]
    assert kind == "RankError" and message.startswith("rank 1 stopped: KeyError: 'a mistake'")
    assert 2 <= report["kept"] <= 3 and report["batches"] == (BATCHES - report["kept"] + 1) // 2
    assert (tmp_path / "failed.safetensors").read_bytes() == whole
    # One is killed at its third batch; what is left is for one process.
    kind, message, seconds = report["killed"]
    assert kind == "RankError" and "another process of this command ended without a message" in message
    assert "What was stored is kept; the same command goes on from it" in message and seconds < 30
    kept = len(list((tmp_path / "killed").iterdir()))
    reps, n_batches = calls(tmp_path / "killed")
    assert n_batches == BATCHES - kept <= 3 and content(reps, tmp_path) == whole


def test_the_command_under_torchrun_stores_what_it_stores_alone(tmp_path):
    root = project_folder(tmp_path)
    config = load_scale("mini", root=root).config("mnist", "um")
    run = root / "runs/mini/mnist/um/seed0"
    train(config, run, progress=False)
    alone = run_results.extract_run(run, images=300, progress=False)
    expected, before = alone.read_bytes(), sorted(alone.parent.iterdir())
    alone.unlink()
    command = [*TORCHRUN, "-m", "analysis.command", "extract", str(run), "--eps", "0.3", "--images", "300"]
    more = {"TLA_ROOT": str(root), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(alone)]
    assert alone.read_bytes() == expected and sorted(alone.parent.iterdir()) == before  # no shards are left


def test_the_same_weights_in_another_function_take_up_no_batch(tmp_path):
    class Turned(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.sign = inner, 1.0

        def forward(self, x):
            return self.sign * self.inner(x)

    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    model = Turned(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))).eval()
    first = analysis.extract(model, images, labels, shards=tmp_path / "shards", layer="logits")
    model.sign = 1.0 + 1e-6  # as much as another GPU may round
    rounded = analysis.extract(model, images, labels, shards=tmp_path / "shards", layer="logits")
    assert np.array_equal(rounded.features, first.features), "its batch is taken up"
    model.sign = -1.0
    second = analysis.extract(model, images, labels, shards=tmp_path / "shards", layer="logits")
    np.testing.assert_allclose(second.features, -first.features, rtol=1e-6)
