"""The benchmarks run, record what they say they record, and notice results that do not agree. No times are judged."""

import copy
import dataclasses
import json
import os
import shutil
import statistics
import sys

import pytest
import torch
from tiny import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # `benchmarks` is no part of what is installed

import tla_core as tla
from benchmarks import (
    bench,
    choices,
    evaluations,
    explorer_page,
    floor,
    full_training,
    growth,
    history,
    inputs,
    landscapes,
    maps,
    paper_cost,
    representations,
    scaling,
    strongest,
    timing,
    training_steps,
)
from tla_core.config import TrainConfig

FIELDS = {"name", "ours_s", "peer_s", "peer", "ratio", "pairs", "conditions"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Seconds for everything: models of one short epoch, few images, thin networks."""
    root = tmp_path_factory.mktemp("benchmarks")
    attack = tla.AttackConfig(eps=0.3, step_size=0.3, steps=1)
    training = {"width": 1 / 16, "iterations": 8, "batch_size": 100, "holdout": 20, "selection_attack": attack}
    return inputs.Setup(
        pairs=1, images=24, steps=2, peer_batches=(8, 24), sizes=(8, 24), gradient_images=8, gradient_steps=1,
        training_attack_steps=2, width=1 / 16, training={**training, "attack": attack}, runs=root / "runs",
        kept=root / "kept",
    )  # fmt: skip


@pytest.fixture
def without_peers(monkeypatch):
    """A peer that is our own attack, for checkouts without torchattacks and foolbox; both names stay."""

    def peer(model, x, y, steps, random_start):
        attack = tla.AttackConfig(
            eps=evaluations.EPS, step_size=evaluations.STEP_SIZE, steps=steps, random_start=random_start
        )
        return tla.evaluate(model, x, y, {"PGD": attack}, fold=False, checks=False).correct["PGD"]

    monkeypatch.setattr(evaluations, "PEERS", {"torchattacks": peer, "foolbox": peer})
    return peer


# what is written ------------------------------------------------------------------------------------------------------


def test_the_json_holds_a_record_of_each_line(setup, without_peers, tmp_path, capsys):
    path = tmp_path / "latest.json"
    names = ["pgd", "channels-last", "folding", "published-training"]
    assert bench.main(["--only", *names, "--pairs", "2", "--json", str(path), "--device", "cpu"], setup) == 0
    records = json.loads(path.read_text())
    assert records
    for record in records:
        assert set(record) == FIELDS
        assert record["pairs"] == 2 == len(record["conditions"]["ratios"])
        assert record["ratio"] == statistics.median(record["conditions"]["ratios"])
        assert record["ours_s"] > 0 and record["peer_s"] > 0
        assert {"torch", "threads", "cpu_capability", "device", "network"} <= set(record["conditions"])
    labels = [(record["name"], record["peer"]) for record in records]
    assert len(set(labels)) == len(labels)
    printed = capsys.readouterr().out
    assert all(name in printed and peer in printed for name, peer in labels)
    assert {peer for name, peer in labels if name.startswith("evaluate, PGD-2")} == {"torchattacks", "foolbox"}


def test_a_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_the_medians():
    line = timing.Line("a", "b", ((1.0, 1.0), (2.0, 20.0), (4.0, 8.0)))
    assert line.ratios == [1.0, 10.0, 2.0] and line.ratio == 2.0
    record = line.record({"threads": 2})
    assert (record["ours_s"], record["peer_s"]) == (2.0, 8.0)
    assert record["conditions"]["ratio_min"] == 1.0 and record["conditions"]["ratio_max"] == 10.0


def test_ours_and_peers_run_in_turn_and_share_the_runs_of_ours():
    ran = []
    peers = {name: lambda name=name: ran.append(name) for name in ("x", "y")}
    times = timing.times_in_turn(lambda: ran.append("ours"), peers, pairs=2, device=CPU)
    assert ran == ["ours", "x", "y", "ours", "x", "y", "y", "x", "ours"]  # the warm-up, and two turns
    assert {name: len(pairs) for name, pairs in times.items()} == {"x": 2, "y": 2}
    assert [ours for ours, _ in times["x"]] == [ours for ours, _ in times["y"]]


def test_peers_and_choices_of_ours_are_two_tables_with_floors():
    common = {"matrix_flop_per_s": 2e9}
    peer = timing.Line("a step", "a peer", ((1.0, 2.0),), operations=10**9)
    own = timing.Line("a step", "switched off", ((1.0, 3.0),), own=True)
    assert peer.record(common)["conditions"]["floor_s"] == 0.5
    assert "floor_s" not in own.record(common)["conditions"]
    text = [" ".join(line.split()) for line in bench.table([own, peer], common).splitlines()]
    assert text[0].startswith("BESIDE A PEER beside ours, s floor, s peer, s")
    assert text[1] == "a step a peer 1 0.5 2 2.00 2.00 to 2.00 1"
    assert text[3].startswith("BESIDE OUR OTHER CHOICE")
    assert text[4] == "a step switched off 1 3 3.00 3.00 to 3.00 1"


def test_the_matrix_rate_is_that_of_a_product_of_matrices():
    product = torch.randn(256, 256)
    taken = min(timing.seconds(lambda: product @ product, CPU) for _ in range(5))
    # Within the mood of a machine that does something else beside the tests.
    assert 1 / 50 < floor.matrix_rate(CPU, size=256) / (2 * 256**3 / taken) < 50


def a_record(ratio, name="a step", **machine):
    machine = {"processor": "p", "cpu_capability": "AVX2", "threads": 2, "device": "cpu", "torch": "2", **machine}
    return {
        "name": name, "peer": "a peer", "ratio": ratio,
        "conditions": {**machine, "ratio_min": ratio - 0.1, "ratio_max": ratio + 0.1},
    }  # fmt: skip


def test_a_ratio_that_fell_is_named_beside_the_last_run_on_such_a_machine(tmp_path):
    path = tmp_path / "history.jsonl"
    assert history.check(path)[1] == 0 and "no line yet" in history.check(path)[0]
    history.add([a_record(2.0), a_record(1.0, "a map")], path)
    assert "the first on processor p" in history.check(path)[0]
    history.add([a_record(1.0), a_record(1.0, "a map")], path)
    message, status = history.check(path)
    assert status == 1 and "a step | a peer: 2.00 (1.90 to 2.10) -> 1.00 (0.90 to 1.10)" in message
    assert "a map" not in message
    history.add([a_record(0.1, threads=64), a_record(0.1, "a map", threads=64)], path)  # another machine
    assert history.check(path)[1] == 0
    history.add([a_record(0.91)], path)  # beside 1.0 of the last run with two threads: less than a tenth
    message, status = history.check(path)
    assert status == 1 and message.endswith("a map | a peer: no longer measured")


def test_only_a_run_of_all_is_kept_as_the_latest(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(history, "PATH", tmp_path / "history.jsonl")
    monkeypatch.setattr(bench, "BENCHMARKS", {"channels-last": choices.channels_last})
    assert bench.main(["--only", "channels-last", "--pairs", "1", "--device", "cpu"], setup) == 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "benchmarks").mkdir()
    assert bench.main(["--pairs", "1", "--device", "cpu"], setup) == 0
    (record,) = json.loads((tmp_path / "benchmarks" / "latest.json").read_text())
    assert 0 < record["conditions"]["floor_s"]


@pytest.mark.parametrize("arguments", [["--pairs", "0"], ["--only", "nothing"]])
def test_arguments_that_make_no_sense_are_refused(arguments, tmp_path):
    with pytest.raises(SystemExit):
        bench.main([*arguments, "--json", str(tmp_path / "latest.json")])
    assert not list(tmp_path.iterdir())


# what must agree ------------------------------------------------------------------------------------------------------


def test_autoattack_and_the_strongest_are_timed_beside_the_package(setup, monkeypatch):
    pytest.importorskip("pyautoattack")
    monkeypatch.setattr(evaluations.AutoAttack, "_run", lambda self, ensemble, model, x, y: x)  # minutes otherwise
    monkeypatch.setattr("pyautoattack.AutoAttack.run_standard_evaluation", lambda self, x, y, batch_size: [x])
    lines = list(evaluations.autoattack_evaluation(dataclasses.replace(setup, images=60)))
    assert [line.name.split(", ")[1] for line in lines] == ["AutoAttack", "strongest"]
    found = [line.conditions for line in lines]
    assert found[0]["images_that_differ"] == 0 and "APGD" in found[1]["attack"]
    assert found[1]["robust_accuracy"]["strongest"] <= found[1]["robust_accuracy"]["package"]


def test_the_strongest_and_the_package_are_compared_on_the_same_images(setup, monkeypatch, tmp_path, capsys):
    pytest.importorskip("pyautoattack")
    monkeypatch.setattr("pyautoattack.AutoAttack.run_standard_evaluation", lambda self, x, y, batch_size: [x])
    inputs.trained_model(setup, "at")
    run, path = setup.kept / "mini" / "mnist" / "at", tmp_path / "rows.json"
    assert strongest.main([str(run), "--images", "20", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["run"] == "mnist-mini, at" and row["images"] == 20
    assert row["autoattack"] == row["clean"] and row["strongest"] <= row["clean"]
    assert row["difference"] == pytest.approx(row["strongest"] - row["clean"])
    assert "mnist-mini, at" in capsys.readouterr().out


def test_the_peers_find_our_outcomes_from_the_same_start(setup):
    pytest.importorskip("torchattacks")
    pytest.importorskip("foolbox")
    model, _ = inputs.trained_model(setup, "at")
    found = evaluations.check_outcomes(setup, model, *inputs.test_images(24), {"torchattacks": 8, "foolbox": 24})
    assert {name: failure for name, (_, failure) in found.items()} == {"torchattacks": "", "foolbox": ""}


def test_other_outcomes_end_the_command_with_status_1(setup, without_peers, monkeypatch, tmp_path, capsys):
    def spoilt(model, x, y, steps, random_start):
        return ~without_peers(model, x, y, steps, random_start)

    monkeypatch.setattr(evaluations, "PEERS", {"torchattacks": without_peers, "foolbox": spoilt})
    path = tmp_path / "latest.json"
    assert bench.main(["--only", "pgd", "--pairs", "1", "--json", str(path), "--device", "cpu"], setup) == 1
    failed = {record["peer"] for record in json.loads(path.read_text()) if record["conditions"]["failure"]}
    assert failed == {"foolbox"}
    assert "FAILED: evaluate, PGD-2, undefended, beside foolbox" in capsys.readouterr().err


def test_one_image_in_a_thousand_may_differ_folded_and_none_unfolded():
    theirs = torch.ones(1000, dtype=torch.bool)
    one, two = theirs.clone(), theirs.clone()
    one[:1], two[:2] = False, False
    assert evaluations.judge_outcomes(theirs, theirs, one)[1] == ""
    assert "2 folded" in evaluations.judge_outcomes(theirs, theirs, two)[1]
    assert "1 differ unfolded" in evaluations.judge_outcomes(theirs, one, theirs)[1]


@pytest.fixture
def step_inputs(setup):
    config = dataclasses.replace(TrainConfig.preset("mini/mnist/tla", width=1 / 16), batch_size=20, pool_size=20)
    data = tla.load_dataset("mnist-mini", "train")
    source = inputs.training_source(setup, config, data.images[:200], data.labels[:200])
    model = inputs.untrained_model(setup, "lenet", data.images[:200], width=1 / 16).train()
    return model, source, config


def test_a_step_that_agrees_passes_and_leaves_the_models_alone(step_inputs):
    model, source, config = step_inputs
    before = copy.deepcopy(model.state_dict())
    said, failure = training_steps.check_step(model, copy.deepcopy(model), source, config)
    assert not failure and "the gradient by" in said
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("changes", [{"margin": 0.5}, {"lambda_norm": 0.1}])
def test_a_step_of_another_loss_is_noticed(step_inputs, changes):
    model, source, config = step_inputs

    def other(model, source, step, config, attacked=None):
        return training_steps.plain_step(model, source, step, dataclasses.replace(config, **changes), attacked)

    assert training_steps.check_step(model, copy.deepcopy(model), source, config, other)[1]


def test_a_step_with_another_attack_is_noticed(step_inputs):
    model, source, config = step_inputs
    weaker = dataclasses.replace(config, attack=dataclasses.replace(config.attack, steps=1))

    def other(model, source, step, config, attacked=None):
        return training_steps.plain_step(model, source, step, weaker, attacked)

    _, failure = training_steps.check_step(model, copy.deepcopy(model), source, config, other)
    assert "pixels differ" in failure


# the rest -------------------------------------------------------------------------------------------------------------


def test_models_are_trained_once_and_a_run_that_is_there_is_used(setup, tmp_path):
    model, where = inputs.trained_model(setup, "um")
    assert where.startswith(str(setup.kept))
    again, _ = inputs.trained_model(setup, "um")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    (tmp_path / "mini" / "mnist" / "um").mkdir(parents=True)
    (tmp_path / "mini" / "mnist" / "um" / "seed0").symlink_to(setup.kept / "mini" / "mnist" / "um")
    _, where = inputs.trained_model(dataclasses.replace(setup, runs=tmp_path), "um")
    assert where.startswith(str(tmp_path))


def test_a_chunk_size_that_was_tried_does_not_stay(setup):
    pixels = choices.chunking.CPU_CHUNK_PIXELS
    assert [line.peer for line in choices.chunks(setup)] == ["32 at once", "64 at once", "8 at once"]
    assert choices.chunking.CPU_CHUNK_PIXELS == pixels


def test_cost_per_image_holds_the_memory_of_both_sizes(setup, monkeypatch):
    monkeypatch.setattr(scaling, "peak_memory", lambda n: 10.0 + n)  # a process of its own takes seconds to start
    (line,) = scaling.cost_per_image(setup)
    assert line.conditions["peak_memory_mb"] == {"8": 18.0, "24": 34.0}
    assert line.peer == "8 images" and line.times[0][0] > 0


def test_a_training_step_is_projected_to_the_whole_training(setup):
    """On a CPU with a thin network; what is tried on a GPU is the published one."""
    thin = {"width": 0.05, "blocks": (1, 1, 1), "batch_size": 4, "pool_size": 4}
    for precision in ("fp32", "bf16"):
        line = full_training.training_line(
            setup, "supplement/cifar10/tla", {**thin, "precision": precision}, n_images=40, n_steps=1, matrix_size=32
        )
        found, step = line.conditions, line.times[0][0]
        assert found["steps"] == 55_000 and found["precision"] == precision
        assert found["projected_hours"] == pytest.approx(step * 55_000 / 3600)
        assert found["share_of_bf16_matrix_rate"] == pytest.approx(line.times[0][1] / step)


def test_operations_of_a_linear_layer_are_counted_forward_and_backward():
    layer, x = torch.nn.Linear(8, 4, bias=False), torch.rand(16, 8)
    assert floor.count_operations(lambda: layer(x)) == 2 * 16 * 8 * 4
    assert floor.count_operations(lambda: layer(x).sum().backward()) == 2 * 2 * 16 * 8 * 4


@pytest.mark.parametrize("method", ["um", "at", "alp", "tla-rn", "tla"])
def test_the_passes_of_a_step_are_those_that_it_takes(setup, method, monkeypatch):
    """But for the first layer, whose input has no gradient in a training pass."""
    # In the inference mode convolutions are not counted.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(not mode))
    config = TrainConfig.preset("small/cifar10/tla", dataset="cifar10", method=method, batch_size=20, pool_size=40)
    images, labels = inputs.colour_images(40)
    source = inputs.training_source(setup, config, images, labels)
    size = {"width": config.width, "blocks": config.blocks, "normalization": config.normalization}
    model = inputs.untrained_model(setup, config.network, images, **size).train()
    step = full_training.STEPS[method]

    def run():
        step(model, source, 0, config, config.attack).total.backward()

    run()  # the first step looks at the network too
    counted = floor.count_operations(run)
    expected = 20 * paper_cost.passes_of_step(config) * paper_cost.forward_operations(config)
    assert 0.98 < counted / expected < 1.01


def test_the_cost_of_a_scale_is_that_of_its_plan(tmp_path, capsys):
    assert paper_cost.main(["--scale", "medium", "--teraflops", "2", "--json", str(tmp_path / "cost.json")]) == 0
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["teraflop_per_s"] == 2 and " 64 GPUs:" in capsys.readouterr().out
    (trainings,) = [row for row in cost["rows"] if row["what"] == "trainings"]
    assert trainings["number"] == cost["jobs"] and 120 < trainings["petaflop"] < 140  # docs/method.md: 131
    assert trainings["hours"] == pytest.approx(trainings["petaflop"] / 2 / 3.6)
    assert cost["hours"]["64"] == cost["longest_hours"] <= cost["hours"]["8"] <= cost["hours"]["1"]
    assert paper_cost.makespan([3, 3, 2, 2, 2], 2) == 7 and paper_cost.makespan([3, 1], 8) == 3


def test_what_grows_is_measured_at_three_sizes_and_extrapolated(tmp_path, capsys):
    pytest.importorskip("faiss")
    assert growth.main(["--shrink", "64", "--json", str(tmp_path / "growth.json")]) == 0
    found = json.loads((tmp_path / "growth.json").read_text())["records"]
    assert all(len(record["sizes"]) == len(record["costs"]) == 3 and record["extrapolated"] > 0 for record in found)
    assert len(capsys.readouterr().out.splitlines()) == len(found) + 1
    peak = {record["name"]: record["costs"] for record in found if "peak" in record["name"]}
    assert peak["neighbours, blocks, peak"][0] == pytest.approx(peak["neighbours, blocks, peak"][-1], rel=0.1)
    case = growth.Case("squares", "bytes", "sides", (1, 2, 4), 40, 2, lambda side: 3 * side**2)
    record = case.record([case.cost(size) for size in case.sizes])
    assert record["measured_power"] == pytest.approx(2) and record["extrapolated"] == pytest.approx(4800)
    record = dataclasses.replace(case, power=1).record([12, 14, 18])  # 10 + 2 for each
    assert record["extrapolated"] == pytest.approx(90) and record["misfit"] == pytest.approx(0, abs=1e-9)


def test_the_published_trainings_are_left_to_a_gpu(setup):
    assert list(full_training.published_training(setup)) == []


def test_landscapes_agree_with_the_loop_and_other_losses_are_noticed(setup, monkeypatch):
    lines = list(landscapes.input_landscapes(setup))
    assert [line.conditions["points"] for line in lines] == [64, 64] and not any(line.failure for line in lines)
    loop = landscapes.loss_point_by_point
    monkeypatch.setattr(landscapes, "loss_point_by_point", lambda *arguments: loop(*arguments).T)
    assert all("differ by" in line.failure for line in landscapes.input_landscapes(setup))


SMALL = representations.Sizes(
    images=60, features=8, classes=3, queries=20, galleries=(50, 400), gallery_features=8, spread=2, checked=10
)


@pytest.mark.parametrize("name", ["distance_ratios", "exact_neighbours", "growing_gallery"])
def test_ratios_and_neighbours_agree_with_their_peers(setup, name):
    pytest.importorskip("faiss")
    lines = list(getattr(representations, name)(setup, SMALL))
    assert lines and not any(line.failure for line in lines)


def test_maps_side_by_side_are_no_worse_and_a_worse_divergence_is_noticed(setup, monkeypatch):
    small = {"classes": 8, "points": 60, "features": 8, "n_iter": 500}
    (line,) = maps.class_maps(setup, **small)
    assert not line.failure and line.conditions["maps"] == 8
    peer = maps._opentsne
    monkeypatch.setattr(maps, "_opentsne", lambda *arguments: 0.5 * peer(*arguments))
    (line,) = maps.class_maps(setup, **small)
    assert "worse by" in line.failure


def test_the_explorer_and_a_page_of_plotly_are_timed_in_chromium(setup):
    pytest.importorskip("playwright")
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        pytest.skip("there is no chromium")
    lines = list(explorer_page.explorer_page(setup, pairs=60, many=80, maps=1))
    lines = [line for line in lines if line.peer.startswith("plotly")]  # jupyter-scatter may be there too
    assert [line.name.split(", ")[1] for line in lines] == [
        "shown", "ready", "first hover", "hover", "lasso", "ready", "lasso",
    ]
    assert all(ours > 0 and peer > 0 for line in lines for ours, peer in line.times)


def test_without_a_browser_the_explorer_is_left_out(setup, monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "")
    said = []
    assert list(explorer_page.explorer_page(dataclasses.replace(setup, say=said.append))) == []
    assert "chromium" in said[0]
