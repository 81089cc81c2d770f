"""Two processes that train one model (gloo), against one process that forwards the share of each by itself."""

import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distributed_worker import (
    CASES,
    STEPS_PER_EPOCH,
    InFloat64,
    at_step,
    digits,
    fit,
    outcome_of,
    settings,
    stop,
    variant,
)
from forks import call_in_fork

from tla_core.attacks import run_attack
from tla_core.batches import BatchSource
from tla_core.checkpoint import file_sha256, load_tensors
from tla_core.distributed import rank_timeout
from tla_core.layers import forward_with_layer
from tla_core.mining import hardest_negatives, random_negatives
from tla_core.run_folder import RunFolder
from tla_core.runtime import derive_seed, pick_device
from tla_core.schedule import split_holdout

WORKER = Path(__file__).with_name("distributed_worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
CPU = torch.device("cpu")


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1]), **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of `distributed_worker.trains`, what each rank reports, and how the processes ended."""
    folder = tmp_path_factory.mktemp("trained")
    with at_step("um", 4, stop):
        outcome_of(fit, settings("um"), folder / "one-then-two")
    command = [*TORCHRUN, str(WORKER), "trains", str(folder)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert (folder / "rank1.pt").exists(), ended.stderr
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)], ended


def started(scenario, folder, ranks=(0, 1), **more):
    """Two processes without torchrun, which would end one when the other does; or some of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        call_in_fork(
            "distributed_worker:run", scenario, folder, log=folder / f"said-by-{rank}.txt",
            environment=environment(RANK=str(rank), **joined, **more),
        )
        for rank in ranks
    ]  # fmt: skip


def processes_of(scenario, folder):
    """The exit statuses and messages of two such processes."""
    processes = started(scenario, folder)
    codes = [process.wait(200) for process in processes]
    return codes, [process.said() for process in processes]


def metrics_of(folder):
    return [{key: value for key, value in line.items() if key != "time"} for line in RunFolder(folder).metrics()]


# ---- one step


def sources(config):
    data = digits()
    kept, _ = split_holdout(data.labels, config.holdout, config.seed)
    return [
        BatchSource(
            data.images[kept], data.labels[kept], batch_size=config.batch_size, seed=config.seed, device=CPU, rank=rank,
            world_size=2,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def first_gradients(case):
    """The mean of the gradients of two shares, each forwarded by itself by one model; and the models afterwards."""
    config = variant(case)
    method = config.method
    model = InFloat64()
    frozen = copy.deepcopy(model).eval()
    shares = sources(config)
    batches = [source.batch(0) for source in shares]
    pool = shares[0].pool(config.pool_size, 0)
    attack = torch.Generator().manual_seed(derive_seed(config.seed, "attack", 0))
    attacked = [
        run_attack(
            config.attack, frozen, batch.images, batch.labels, generator=attack, indices=batch.indices, fold=True
        )
        for batch in batches
    ]
    positives = [source.positives(batch.labels, 0) for source, batch in zip(shares, batches, strict=True)]
    anchors = [batch.images for batch in positives] if method == "tla-sa" else attacked
    labels = torch.cat([batch.labels for batch in batches])
    # Both shares seek in one pool.
    with torch.no_grad():
        if method == "tla-rn":
            draws = torch.Generator().manual_seed(derive_seed(config.seed, "negatives", 0))
            chosen = random_negatives(labels, pool.labels, generator=draws)
        else:
            h_anchors, h_pool = (forward_with_layer(frozen, x)[1] for x in (torch.cat(anchors), pool.images))
            chosen = hardest_negatives(h_anchors, labels, h_pool, pool.labels)
    chosen = chosen.chunk(2)
    gradients, models = [], []
    for rank in (0, 1):
        own, batch, eps = copy.deepcopy(model).train(), batches[rank], config.attack.eps
        torch.manual_seed(derive_seed(config.seed, "step", 0, *([rank] if rank else [])))

        def noisy(x, eps=eps):
            return (x + (2 * torch.rand_like(x) - 1) * eps).clamp(0, 1)

        logits, h_adv = forward_with_layer(own, batch.images if method == "um" else attacked[rank])
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
        of_adversarial = {name: buffer.clone() for name, buffer in own.named_buffers()}
        if method == "alp":
            loss = loss + config.lambda_alp * (own(batch.images) - logits).square().sum(1).mean()
        if method.startswith("tla"):
            _, h_class = forward_with_layer(own, noisy(positives[rank].images))
            _, h_negative = forward_with_layer(own, noisy(pool.images[chosen[rank]]))
            anchor, positive = (h_class, h_adv) if method == "tla-sa" else (h_adv, h_class)
            near, far = (1 - F.cosine_similarity(anchor, h).abs() for h in (positive, h_negative))
            loss = loss + config.lambda_triplet * (near - far + config.margin).clamp(min=0).mean()
            loss = loss + config.lambda_norm * sum(h.norm(dim=1) for h in (h_adv, h_class, h_negative)).mean()
        gradients.append(torch.autograd.grad(loss, list(own.parameters())))
        if config.statistics == "adversarial":
            own.load_state_dict(of_adversarial, strict=False)
        models.append(own)
    names = [name for name, _ in model.named_parameters()]
    return {name: (a + b) / 2 for name, a, b in zip(names, *gradients, strict=True)}, models, chosen


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_those_of_one_process_that_forwards_each_share_by_itself(case, trained):
    expected, models, chosen = first_gradients(case)
    _, reports, _ = trained
    for report in reports:
        gradients, after = report[case]["gradients"], report[case]["after"]
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        # Batch norm normalised each share by its own statistics; those that stay are their mean.
        for (name, one), (_, other) in zip(*(model.named_buffers() for model in models), strict=True):
            mean = (one + other) / 2 if one.is_floating_point() else one
            torch.testing.assert_close(after[name], mean, rtol=1e-5, atol=1e-6)
    if case.startswith("tla"):  # the case would show it if each sought in its own share of the pool
        half = (settings("tla").pool_size + 1) // 2
        assert (chosen[0] >= half).any() and (chosen[1] < half).any()


def test_the_shares_of_an_epoch_are_disjoint_and_complete():
    shares = sources(settings("tla"))
    whole = BatchSource(shares[0].images, shares[0].labels, batch_size=20, seed=0, device=CPU)
    seen = []
    for step in range(STEPS_PER_EPOCH):
        parts = [share.batch(step) for share in shares]
        assert torch.equal(torch.cat([part.indices for part in parts]), whole.batch(step).indices)
        positives = [share.positives(part.labels, step) for share, part in zip(shares, parts, strict=True)]
        assert torch.equal(
            torch.cat([part.indices for part in positives]), whole.positives(whole.batch(step).labels, step).indices
        )
        pools = [source.pool(13, step).indices for source in (*shares, whole)]
        assert torch.equal(pools[0], pools[2]) and torch.equal(pools[1], pools[2])
        seen += [part.indices for part in parts]
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(60))


@pytest.mark.parametrize(("batch_size", "processes"), [(20, 3), (2, 2)])
def test_a_batch_that_cannot_be_shared_equally_is_refused(batch_size, processes):
    data = digits()
    with pytest.raises(ValueError, match=rf"{processes} processes must share a batch equally.*multiple of {processes}"):
        BatchSource(data.images, data.labels, batch_size=batch_size, seed=0, device=CPU, world_size=processes)


# ---- a whole training


def test_both_processes_end_with_the_same_weights_also_when_resumed(trained):
    folder, reports, _ = trained
    for name, tensor in reports[0]["weights"].items():
        for report in reports:
            assert torch.equal(report["weights"][name], tensor), name
            assert torch.equal(report["resumed weights"][name], tensor), name
    assert all("stopped by the test" in report["interrupted"][1] for report in reports)
    assert file_sha256(folder / "whole" / "model.safetensors") == file_sha256(folder / "resumed" / "model.safetensors")
    assert metrics_of(folder / "whole") == metrics_of(folder / "resumed")
    held_out = [line["holdout"]["clean"] * 21 for line in metrics_of(folder / "whole") if "holdout" in line]
    assert len(held_out) == 2 and held_out == pytest.approx([round(count) for count in held_out])  # all 21 images


def test_only_the_first_process_writes(trained):
    folder, reports, _ = trained
    assert reports[1]["written"] == []
    assert str(folder / "whole" / "metrics.jsonl") in map(str, reports[0]["written"])


def test_a_run_says_so_when_it_goes_on_with_another_number_of_processes(trained, tmp_path):
    folder, reports, _ = trained
    said = "made by 1 process(es), goes on with 2 from step 3"
    assert len(reports[0]["warnings"]) == 1 and said in reports[0]["warnings"][0] and reports[1]["warnings"] == []
    assert {"step": 3, "note": said} in RunFolder(folder / "one-then-two").metrics()
    shutil.copytree(folder / "two-then-one", tmp_path / "run")
    for _ in range(2):  # it says so each time, and the metrics hold it once
        with (
            pytest.warns(UserWarning, match=r"made by 2 process\(es\), goes on with 1 from step 3"),
            at_step("um", 0, stop),
        ):
            assert outcome_of(fit, settings("um"), tmp_path / "run")
    with pytest.warns(UserWarning, match="another size of the batch"):
        result = fit(settings("um"), tmp_path / "run")
    assert [line["note"] for line in result.metrics if "note" in line] == [
        "made by 2 process(es), goes on with 1 from step 3"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(settings("um"), tmp_path / "run")  # it is finished


# ---- a process that ends


def test_under_torchrun_the_others_stop_with_the_message_of_the_one_that_failed(trained):
    folder, _, ended = trained
    assert ended.returncode != 0
    assert "RankError: rank 1 stopped: KeyError: 'a mistake'" in ended.stderr
    assert load_tensors(folder / "failed" / "state.safetensors")[1]["step"] == STEPS_PER_EPOCH


def test_a_process_that_runs_out_of_memory_or_is_killed(tmp_path):
    codes, messages = processes_of("fails", tmp_path)
    assert codes == [0, -9], messages
    report = json.loads((tmp_path / "rank0.json").read_text())
    kind, message, _ = report["memory"]
    assert kind == "RankError" and message.startswith(
        "rank 1 stopped: OutOfMemoryError: out of memory on cpu at step 4"
    )
    assert "The state of step 3 is kept" in message and "Try batch_size=10" in message
    assert file_sha256(tmp_path / "whole" / "model.safetensors") == file_sha256(
        tmp_path / "memory" / "model.safetensors"
    )
    kind, message, seconds = report["killed"]
    assert kind == "RankError" and "ended without a message: it was killed" in message and seconds < 30
    assert load_tensors(tmp_path / "killed" / "state.safetensors")[1]["step"] == STEPS_PER_EPOCH


def test_the_message_of_the_first_process_reaches_the_others_too(tmp_path):
    codes, messages = processes_of("first_fails", tmp_path)
    assert codes == [1, 1]
    assert "InterruptedError: stopped by the test" in messages[0]
    assert "timed out" not in messages[0]  # it waited no longer than the other took to read it
    assert "RankError: rank 0 stopped: InterruptedError: stopped by the test" in messages[1]
    assert load_tensors(tmp_path / "failed" / "state.safetensors")[1]["step"] == STEPS_PER_EPOCH


@pytest.mark.parametrize("stopped", [1, 0])
def test_a_process_that_is_stopped_is_not_waited_for_without_end(stopped, tmp_path):
    """Also where it is the one that serves the store."""
    processes = started("stops", tmp_path, STOPPED=str(stopped), TLA_RANK_TIMEOUT="3")
    try:
        processes[1 - stopped].wait(100)
    finally:
        for process in processes:
            process.kill()
            process.wait(20)
    kind, message, seconds = json.loads((tmp_path / f"rank{1 - stopped}.json").read_text())
    assert kind == "RankError" and "has not answered for 3 s: it is stopped or hangs" in message and seconds < 60
    assert "TLA_RANK_TIMEOUT" in message and "the same command goes on" in message
    assert load_tensors(tmp_path / "stopped" / "state.safetensors")[1]["step"] == STEPS_PER_EPOCH


def test_under_torchrun_a_process_that_was_killed_ends_the_others_with_words(tmp_path):
    command = [*TORCHRUN, str(WORKER), "killed", str(tmp_path)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert ended.returncode != 0
    words = "RankError: (another process of this command ended without a message|this process was told to end)"
    assert re.search(words, ended.stderr) and "the same command goes on from it" in ended.stderr


def test_processes_that_do_not_all_come_are_not_waited_for_without_end(tmp_path):
    (alone,) = started("killed", tmp_path, ranks=[0], TLA_RANK_TIMEOUT="3")
    alone.wait(100)
    assert "RankError: the processes of this command did not all join within 3 s (TLA_RANK_TIMEOUT)" in alone.said()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_timeout_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv("TLA_RANK_TIMEOUT", text)
    with pytest.raises(ValueError, match=rf"TLA_RANK_TIMEOUT must be a number of seconds above 0\. Got '{text}'"):
        rank_timeout()
    monkeypatch.setenv("TLA_RANK_TIMEOUT", "")
    assert rank_timeout().total_seconds() == 600


def test_each_process_of_torchrun_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(pick_device("auto")) == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(pick_device("auto")) == str(pick_device("cuda")) == "cuda:1"
    assert str(pick_device("cuda:0")) == "cuda:0" and str(pick_device("cpu")) == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"torch finds 2 CUDA devices\. Got 'cuda:2'; .*one process for each"):
        pick_device("auto")
