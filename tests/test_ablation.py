"""`tla ablation`: what is trained, on which images it is measured, and what is said of the differences."""

import json
import math

import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from scipy.stats import ttest_rel
from tiny import REPOSITORY, mnist_images

import analysis.paper.ablation
from analysis.command.main import main
from analysis.paper.ablation import Ablation, Cell, Effect
from analysis.paper.ablation_report import effects_display, update_page

WARM = {"start": "at", "pool_size": 50, "lambda_alp": 2}  # what is so anyway, and what neither method reads
TINY = {
    "preset": "mini/mnist",
    "measured": 20,
    "attack": {"eps": 0.3, "steps": 2, "targets": 1},
    "settings": {
        "width": 0.03125, "epochs": 1, "batch_size": 20, "holdout": 20, "attack": {"steps": 1}, "statistics": "all",
    },
    "continued": {"learning_rate": 1e-3},
    "experiments": [
        {"name": "statistics", "factor": "statistics", "values": ["all", "adversarial"], "of": [{}], "seeds": [0, 1]},
        {"name": "warm", "factor": "method", "values": ["at", "tla"], "of": [WARM], "seeds": [0]},
    ],
}
PAGE = "# Title\n<!-- cells -->\nold\n<!-- end -->\ntext\n<!-- effects -->\n<!-- end -->\n"


@pytest.fixture
def plan(tmp_path):
    def make(**changes):
        path = tmp_path / "ablation.yaml"
        path.write_text(yaml.safe_dump(TINY | changes))
        return Ablation(path, tmp_path / "ablation.jsonl", tmp_path / "runs")

    return make


@pytest.fixture
def trained_on(monkeypatch):
    """The images of each training; nothing but 80 images of the training set can be loaded."""
    data, seen = mnist_images(80, "train"), []

    def load(name, split):
        assert (name, split) == ("mnist-mini", "train")
        return data

    def train(config, run_dir, *, dataset, **options):
        seen.append((run_dir.parent.name, config.seed, dataset.images, options["init_from"]))
        return trains(config, run_dir, dataset=dataset, **options)

    trains = analysis.paper.ablation.train
    monkeypatch.setattr(analysis.paper.ablation, "load_dataset", load)
    monkeypatch.setattr(analysis.paper.ablation, "train", train)
    return seen


def test_each_cell_is_trained_once_and_after_what_it_starts_from(plan):
    names = [(cell.name, seed) for cell, seed in plan().cells()]
    assert names == [
        ("tla", 0), ("tla@statistics=adversarial", 0), ("at", 0), ("at@start=at", 0), ("tla@start=at", 0), ("tla", 1),
        ("tla@statistics=adversarial", 1),
    ]  # fmt: skip
    assert [name for name, _ in [(cell.name, seed) for cell, seed in plan().cells(["warm"])]] == [
        "at", "at@start=at", "tla@start=at",
    ]  # fmt: skip


def test_settings_are_those_of_the_file_and_of_the_cell(plan):
    config = plan().config(Cell("tla", (("lambda_triplet", 2.0),), "at"), 3)
    assert (config.method, config.seed, config.lambda_triplet, config.width) == ("tla", 3, 2.0, 0.03125)
    assert config.fine_tune and config.learning_rate == 1e-3 and config.attack.steps == 1
    assert not plan().config(Cell("at"), 0).fine_tune
    with pytest.raises(ValueError, match="the settings of tla hold an unknown field: lamda"):
        plan(experiments=[{**TINY["experiments"][0], "factor": "lamda", "values": [1, 2]}])
    with pytest.raises(ValueError, match=r"ablation\.yaml must have the keys attack, continued"):
        plan(more=1)


def test_what_is_measured_is_neither_trained_on_nor_selected_by_and_nothing_is_done_twice(plan, trained_on):
    ablation = plan()
    records = list(ablation.run(device="cpu", progress=False))
    assert [(name, seed) for name, seed, _, _ in trained_on] == [(cell.name, seed) for cell, seed in ablation.cells()]
    starts = {name: start for name, _, _, start in trained_on}
    assert starts["tla"] is None and starts["tla@start=at"].parts[-2:] == ("at", "seed0")
    whole = mnist_images(80, "train").images
    for _, _, images, _ in trained_on:
        assert len(images) == 60 and torch.equal(images, trained_on[0][2])
    rest = {image.numpy().tobytes() for image in trained_on[0][2]}
    assert sum(image.numpy().tobytes() not in rest for image in whole) == 20 == len(records[0]["correct"])
    for record in records:
        assert record["robust"] == pytest.approx(record["correct"].count("1") / 20)
        assert record["robust"] <= record["clean"]
    trained_on.clear()
    assert list(plan().run(device="cpu", progress=False)) == [] == trained_on
    # Of what is measured otherwise nothing counts, and the runs are trained no more.
    again = list(plan(attack={"eps": 0.3, "steps": 3, "targets": 1}).run(["statistics"], device="cpu", progress=False))
    assert len(again) == 4


def test_a_run_of_other_settings_does_not_count(plan, trained_on):
    ablation = plan()
    for _, _ in zip(range(2), ablation.run(device="cpu", progress=False), strict=False):
        pass  # interrupted
    assert set(ablation.records()) == {("tla", 0), ("tla@statistics=adversarial", 0)}
    assert plan(settings=TINY["settings"] | {"batch_size": 10}).records() == {}


# What is said of it ---------------------------------------------------------------------------------------------------


def test_an_effect_has_the_interval_of_a_paired_t_test():
    one, other = [80.1, 78.0, 81.5, 79.9, 80.2], [79.0, 78.3, 79.5, 78.1, 79.9]
    effect = Effect.of("a", "b", [a - b for a, b in zip(one, other, strict=True)])
    expected = ttest_rel(one, other).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([2.0, 2.2, 1.8], "raises it by 2.0 points (3 seeds)"),
        ([-2.0, -2.2, -1.8], "lowers it by 2.0 points (3 seeds)"),
        ([2.0, -2.0, 0.3], "no effect shown; 3 seeds exclude more than 5.1 points"),
        ([9.0], "one seed shows nothing"),
    ],
)
def test_an_effect_in_words(differences, verdict):
    assert Effect.of("a", "b", differences).verdict == verdict


def test_effects_are_paired_by_seed_and_fill_the_page(plan):
    ablation = plan()
    accuracies = {("tla", 0): 0.7, ("tla", 1): 0.5, ("tla@statistics=adversarial", 0): 0.8, ("at@start=at", 0): 0.9}
    accuracies["tla@start=at", 0] = 0.85
    cells = {(cell.name, seed): cell for cell, seed in ablation.cells()}
    lines = [
        {"cell": name, "seed": seed, "clean": 0.95, "robust": robust, "correct": "",
         "identity": ablation.identity(cells[name, seed], seed)}
        for (name, seed), robust in accuracies.items()
    ]  # fmt: skip
    ablation.records_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = ablation.effects()
    assert first.differences == pytest.approx((10.0,)) and math.isnan(first.low)  # seed 1 has no partner
    assert second.differences == pytest.approx((-5.0,))
    assert second.label == "method tla, not at"
    page = update_page(PAGE, ablation)
    assert "old" not in page and "text" in page and "| tla | 95.0 | 60.0 ± 10.0 | 14.1 | 2 | 70.0, 50.0 |" in page
    assert "statistics: statistics adversarial, not all | 10.0 | – | one seed shows nothing" in page
    assert update_page(page, ablation) == page
    with pytest.raises(ValueError, match="one block from <!-- effects -->"):
        update_page(PAGE.replace("<!-- effects -->", ""), ablation)
    both = plan(experiments=[{**TINY["experiments"][1], "of": [{}, {"start": "at"}]}])
    both.records_path.write_text("".join(json.dumps({**line, "cell": "at"}) + "\n" for line in lines))
    assert [effect.label for effect in both.effects()] == ["method tla, not at (start=at)"]
    display = effects_display(ablation).plot()
    assert [text.get_text() for text in display.ax_.get_yticklabels()][1].startswith("warm: method tla")
    plt.close(display.figure_)


def test_the_committed_plan_and_page_belong_together():
    results = REPOSITORY / "docs" / "results"
    ablation = Ablation(REPOSITORY / "workflow/ablation.yaml", results / "ablation.jsonl", REPOSITORY / "runs/ablation")
    assert {cell.method for cell, _ in ablation.cells()} >= {"at", "alp", "tla"}
    page = (results / "ablation.md").read_text(encoding="utf-8")
    assert update_page(page, ablation) == page  # `tla ablation --plan ... --report` was run


def test_a_plan_that_is_not_there_is_named_with_those_that_are(capsys):
    assert main(["ablation", "--plan", "ablation-cifar"]) == 1
    assert "There are: ablation." in capsys.readouterr().err
