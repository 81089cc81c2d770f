import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import REPOSITORY, mnist_images, project_folder, tiny_training, use_few_images

import tla_core as tla
from analysis import extract, input_landscape, nearest_neighbours
from analysis.command import main as cli
from analysis.display.drawings import load_drawing
from analysis.publish.model_cards import (
    OUTCOMES,
    hub_name,
    publish_run,
    published_runs,
    restore_runs,
)
from analysis.scales.accuracy import evaluate_run, stored_accuracy, with_strongest
from analysis.scales.plan import Plan
from analysis.scales.run_results import run_config
from analysis.scales.scale import load_scale
from analysis.scales.states import judge
from analysis.scales.targets import results_dir
from tla_core.attack_config import AttackConfig
from tla_core.autoattack import AutoAttack
from tla_core.checkpoint import CheckpointError, file_sha256, load_tensors
from tla_core.config import identity_of
from tla_core.masking import MaskingWarning
from tla_core.protocol import accuracy_columns, analysis_attack

CHECKPOINTS = sorted(path.parent for path in (REPOSITORY / "checkpoints").glob("*/model.safetensors"))
MEBIBYTE = 2**20


def front_and_text(card: Path):
    _, front, text = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run with measured accuracies, in the layout of a scale."""
    folder = tmp_path_factory.mktemp("project") / "runs" / "mini" / "mnist" / "tla-rn" / "seed0"
    settings = {**tiny_training(), "attack": AttackConfig(eps=0.3, step_size=0.3, steps=1)}
    settings |= {"selection_attack": settings["attack"], "learning_rate": 0.006, "averaging": 0.0, "statistics": "all"}
    config = tla.TrainConfig.preset("mini/mnist/tla-rn", **settings)
    tla.train(config, folder, dataset=mnist_images(200, "train"), progress=False)
    attacks = {"PGD-2": AttackConfig(eps=0.3, step_size=0.2, steps=2), "AutoAttack": _Standard(eps=0.3)}
    with pytest.warns(MaskingWarning):  # a model that has seen 200 images
        evaluate_run(folder, attacks, limits={name: 20 for name in attacks}, progress=False)
    return folder


class _Standard(AutoAttack):
    """Described as AutoAttack is, and over in no time."""

    def __call__(self, model, x, y):
        return x


def test_a_published_run_is_loaded_like_the_run(run, tmp_path):
    folder = publish_run(run, tmp_path / hub_name(run))
    assert folder.name == "mnist-tla-rn"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors", OUTCOMES}
    images = mnist_images(10).images / 255
    assert torch.equal(tla.load_model(folder)(images), tla.load_model(run)(images))
    assert run_config(folder) == run_config(run)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    publish_run(run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_card_says_what_was_measured(run, tmp_path):
    front, text = front_and_text(publish_run(run, tmp_path / "card") / "README.md")
    assert front["library_name"] == "tla-toolkit" and front["pipeline_tag"] == "image-classification"
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    said = {metric["name"]: metric["value"] for metric in result["metrics"]}
    correct, _ = load_tensors(run.parents[4] / "results/mini/mnist/tla-rn/seed0" / OUTCOMES)
    assert said == {
        "clean" if name == "clean" else f"under {name}": pytest.approx(outcome.double().mean().item(), abs=5e-5)
        for name, outcome in correct.items()
    }
    assert entry["name"] == "card" and result["dataset"]["type"] == "ylecun/mnist"
    assert f"| clean | {100 * correct['clean'].double().mean():.2f} ±" in text
    assert "| AutoAttack |" in text and "AutoAttack (standard), eps 0.3 (linf)" in text
    assert "PGD 2 x 0.2, eps 0.3 (linf)" in text and "random negatives" in text
    assert file_sha256(run / "model.safetensors") in text
    assert f"{sum(p.numel() for p in tla.load_model(run).parameters()):,} parameters" in text
    assert "These checks for masked gradients failed" in text


def test_a_card_names_a_folder_of_images_and_not_where_it_lies(run, tmp_path, monkeypatch):
    images = tmp_path / "pictures" / "of digits"
    config = dataclasses.replace(run_config(run), dataset=str(images))
    monkeypatch.setattr("analysis.publish.model_cards.run_config", lambda path: config)
    card = publish_run(run, tmp_path / "card") / "README.md"
    front, _ = front_and_text(card)
    assert front["model-index"][0]["results"][0]["dataset"]["type"] == "of digits"
    assert str(tmp_path) not in card.read_text() and str(run.parents[4]) not in card.read_text()


def test_a_run_is_published_and_named_from_inside_its_folder(run, tmp_path, monkeypatch, capsys):
    for inside, word in ((run, "."), (run.parent, "seed0"), (run / "deeper", "..")):
        inside.mkdir(exist_ok=True)
        monkeypatch.chdir(inside)
        assert hub_name(word) == "mnist-tla-rn"
        assert cli.main(["publish", word, "--out", str(tmp_path / word.strip("."))]) == 0, capsys.readouterr().err
    (run / "deeper").rmdir()
    assert hub_name("runs/mine") == hub_name("mine") == "mine"


def test_a_folder_that_cannot_be_written_gets_no_half_of_a_run(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["publish", str(run), "--out", str(tmp_path / "file")]) == 1
    assert "could not write" in capsys.readouterr().err


def test_what_was_not_measured_is_not_published(run, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.safetensors", "config.json"):
        (alone / name).write_bytes((run / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"measure the run first, `tla evaluate .*alone`"):
        publish_run(alone, tmp_path / "out")
    assert cli.main(["publish", str(alone), "--out", str(tmp_path / "out")]) == 1
    assert "measure the run first" in capsys.readouterr().err and not (tmp_path / "out").exists()
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="was measured of other weights"):
        stored_accuracy(run.parents[4] / "results/mini/mnist/tla-rn/seed0" / OUTCOMES, other)


def test_published_runs_are_found_where_their_images_are(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TLA_DATA", str(tmp_path / "empty"))
    assert published_runs(root=tmp_path) == {}
    folder = publish_run(run, tmp_path / "checkpoints" / "mnist-tla-rn")  # of the embedded subset, which is there
    assert published_runs("mnist", root=tmp_path) == {"tla-rn": folder}
    record = json.loads((folder / "config.json").read_text())
    config = dataclasses.replace(run_config(folder), dataset="cifar10")
    record |= {"config": config.to_dict(), "config_identity": config.identity}
    identified = {"config": config.identifying_fields(), "data": record["data"], "start": record["start"]}
    (folder / "config.json").write_text(json.dumps(record | {"identity": identity_of(identified)}))
    assert published_runs("mnist", root=tmp_path) == {}


def test_published_runs_are_put_where_those_of_a_scale_would_lie(tmp_path, capsys):
    root = project_folder(tmp_path)
    scale = load_scale("mini", root)
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        runs = {method: scale.run_dir("mnist", method) for method in scale.methods}
        for method, run in runs.items():
            tla.train(scale.config("mnist", method), run, progress=False)
            evaluate_run(run, {}, progress=False)
            publish_run(run, root / "checkpoints" / hub_name(run))
    before = {method: (run / "model.safetensors").read_bytes() for method, run in runs.items()}
    assert restore_runs(scale) == []  # they are there
    measured = {method: (results_dir(run) / OUTCOMES).read_bytes() for method, run in runs.items()}
    for run in runs.values():
        shutil.rmtree(run)
    shutil.rmtree(root / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLA_ROOT", str(root))
        assert cli.main(["restore", "--scale", "mini"]) == 0
    assert capsys.readouterr().out.split() == [str(run) for run in runs.values()]
    assert {method: (run / "model.safetensors").read_bytes() for method, run in runs.items()} == before
    plan = Plan(scale)
    assert all(judge(plan, plan.model(("mnist", method, 0))).name == "made" for method in runs)
    assert {method: (results_dir(run) / OUTCOMES).read_bytes() for method, run in runs.items()} == measured
    # Of other settings, or damaged, they are not taken.
    shutil.rmtree(root / "runs")
    changed = load_scale("mini", project_folder(tmp_path, overrides={m: tiny_training(epochs=2) for m in runs}))
    assert restore_runs(changed) == [] and restore_runs(scale)
    shutil.rmtree(root / "runs")
    weights = root / "checkpoints" / "mnist-um" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="altered"):
        restore_runs(scale)
    assert not (root / "runs/mini/mnist/um/seed0/model.safetensors").exists()


# The checkpoints of the repository ------------------------------------------------------------------------------------


def test_checkpoints_of_the_repository_are_small_and_complete():
    datasets, methods = ("mnist", "cifar10", "tiny-imagenet"), ("um", "at", "alp", "tla")
    assert {folder.name for folder in CHECKPOINTS} == {f"{d}-{m}" for d in datasets for m in methods}
    files = [path for folder in CHECKPOINTS for path in folder.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25 * MEBIBYTE


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_a_card_of_the_repository_is_that_of_its_files(folder, tmp_path):
    correct = with_strongest(load_tensors(folder / OUTCOMES)[0])
    front, text = front_and_text(folder / "README.md")
    said = {m["name"].removeprefix("under "): m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert said == {name: round(outcome.double().mean().item(), 4) for name, outcome in correct.items()}
    assert file_sha256(folder / "model.safetensors") in text and "clean" in said
    assert len(correct["AutoAttack"]) == (500 if folder.match("tiny-imagenet-*") else 1000)
    model, record = tla.load_model(folder), run_config(folder)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert re.search(rf"\| {re.escape(record.network)}|`{re.escape(record.network)}`", text)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_outcomes_beside_a_checkpoint_are_measured_again(folder, real_data_root):
    """Image by image, on some of each column's; the means on the card are those of the outcomes beside it."""
    correct, metadata = load_tensors(folder / OUTCOMES)
    columns = accuracy_columns(run_config(folder))
    name = next(name for name in columns if re.fullmatch(r"PGD(7|40)", name))
    n = {"mnist": 200, "cifar10-jpeg": 200, "tiny-imagenet": 60}[run_config(folder).dataset]
    data = tla.load_dataset(run_config(folder).dataset, "test", root=real_data_root)
    assert metadata["data"] == data.source and metadata["of"] == len(data.labels)
    rows = torch.arange(n) * len(data.labels) // n
    measured = tla.evaluate(
        tla.load_model(folder), data.images[rows], data.labels[rows],
        {"FGSM": columns["FGSM"].attack, name: columns[name].attack}, checks=False,
    )  # fmt: skip
    for attack, outcome in measured.correct.items():
        # Another machine rounds differently, and the random start of an image depends on its place: some are on the
        # border.
        differ = (outcome != correct[attack][rows]).sum()
        assert differ <= max(2, n // 50), f"{differ} of {n} images, {attack}"


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(folder, marks=[] if folder.name == "mnist-at" else pytest.mark.confirmation, id=folder.name)
        for folder in CHECKPOINTS
    ],
)
def test_tla_evaluate_gives_the_outcomes_on_the_card(folder, real_data_root, tmp_path, monkeypatch):
    """The command, of all test images one by one; attacked ones only where it takes seconds."""
    monkeypatch.setenv("TLA_DATA", str(real_data_root))
    published = tmp_path / folder.name  # results go beside it, and not into the repository
    published.mkdir()
    for name in ("model.safetensors", "config.json"):
        (published / name).write_bytes((folder / name).read_bytes())
    columns = ("clean", "FGSM") if folder.match("mnist-*") else ("clean",)
    assert cli.main(["evaluate", str(published), "--only", *columns, "--device", "cpu", "--no-progress"]) == 0
    measured, _ = load_tensors(published / "results" / OUTCOMES)
    expected, _ = load_tensors(folder / OUTCOMES)
    assert set(measured) == set(columns)
    for name in columns:
        differ = (measured[name] != expected[name]).sum()
        assert differ <= 5, f"{differ} of {len(measured[name])} images, {name}"


# What committed figures show, made again from the checkpoints: on another machine, so within tolerances ---------------


def figure_numbers(stem):
    return json.loads((REPOSITORY / "figures" / "small" / f"{stem}.json").read_text(encoding="utf-8"))["numbers"]


def test_a_landscape_of_figure_8_from_its_checkpoint(real_data_root):
    scale = load_scale("small", REPOSITORY)
    drawn = load_drawing(REPOSITORY / "figures" / "small" / "fig8.safetensors")
    data = tla.load_dataset("tiny-imagenet", "test", root=real_data_root)
    eps = analysis_attack(scale.config("tiny-imagenet", "tla")).eps
    model = tla.load_model(REPOSITORY / "checkpoints" / "tiny-imagenet-tla")
    found = input_landscape(
        model, data.images[0], int(data.labels[0]), random_state=0,
        radius=scale.landscape["radius"] * eps, resolution=9,
    )  # fmt: skip
    every = (scale.landscape["resolution"] - 1) // 8  # a coarser grid of the same points
    np.testing.assert_allclose(found.loss, drawn.rows["TLA"][0].loss[::every, ::every], atol=1e-3)


def test_the_neighbours_of_figure_7_from_a_checkpoint(real_data_root):
    data = tla.load_dataset("cifar10-jpeg", "test", root=real_data_root)
    model = tla.load_model(REPOSITORY / "checkpoints" / "cifar10-tla")
    attack = analysis_attack(run_config(REPOSITORY / "checkpoints" / "cifar10-tla"))
    shown = figure_numbers("fig7")
    row = shown["query_row"]
    gallery = extract(model, data.images, data.labels)
    at = np.array([row])
    query = extract(model, data.images[at], data.labels[at], indices=at, attack=attack)
    for features, kind in ((query.features, "clean"), (query.adv_features, "adversarial")):
        (panel,) = (each for each in shown["panels"] if each["model"] == "TLA" and each["query"] == kind)
        distances, rows = nearest_neighbours(features, gallery.features, 3, exclude=np.array([row]))
        assert rows[0].tolist() == [neighbour["row"] for neighbour in panel["neighbours"]]
        expected = [neighbour["distance"] for neighbour in panel["neighbours"]]
        np.testing.assert_allclose(distances[0], expected, atol=2e-3)
