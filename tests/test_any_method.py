"""Figures and tables of anything: representations, models and runs beside a scale's methods, or alone."""

import numpy as np
import pytest
import torch
from tiny import mnist_images, project_folder, tiny_lenet, use_few_images

import analysis
from analysis.extraction import extract
from analysis.representations import RepresentationSet
from analysis.scales.results import Results
from analysis.scales.scale import Scale
from tla_core.attack_config import AttackConfig

ATTACK = AttackConfig(eps=0.3, step_size=0.06, steps=10)


def small(monkeypatch):
    """Few images, and maps that take no time: which points they show is what is tested."""
    use_few_images(monkeypatch, n_test=200)
    few = {"n_clean": 20, "n_adversarial": 12, "method": "pca"}
    monkeypatch.setattr(Scale, "map_settings", lambda scale: few)
    monkeypatch.setattr(Scale, "pair_settings", lambda scale, dataset: {"pairs": [["4", "9"]], "method": "pca"})
    monkeypatch.setattr("analysis.scales.results.os.cpu_count", lambda: 1)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project in which um and tla are trained, attacked and mapped; pairs of digits are named."""
    strongest = {"images": 5, "steps": 2, "targets": 1}
    root = project_folder(
        tmp_path_factory.mktemp("any"), class_pairs={"mnist": [["4", "9"]]}, analysis_images={"mnist": 100},
        accuracy={"images": 10, "long_images": 5, "restarts": 1, "strongest": strongest},
        landscape={"images": 2, "resolution": 3, "radius": 2, "rise": {"images": 2, "resolution": 3}},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        small(monkeypatch)
        monkeypatch.setattr("os.cpu_count", lambda: 1)  # processes for the maps would import torch first, each
        results = Results("mini", root=root, progress=False)
        for method in results.methods:
            results.class_maps(method)
            results.representations(method, 0.03)
    return root


@pytest.fixture
def results(root):
    return Results("mini", root=root, progress=False)


@pytest.fixture(scope="module")
def mine():
    """A model that is nobody's method, and its representations of the same images."""
    model, data = tiny_lenet(3), mnist_images(200)
    return model, extract(model, data, attack=ATTACK, class_names=data.class_names, meta={"dataset": "mnist-mini"})


# Beside a scale -------------------------------------------------------------------------------------------------------


def test_table_3_gets_a_row_for_a_model_one_for_representations_and_one_for_a_run(results, mine, root):
    model, reps = mine
    run = root / "runs" / "mini" / "mnist" / "tla" / "seed0"
    table, per_class = analysis.ratio_table(results, {"A model": model, "Stored": reps, "Again": run})
    rows = {row["method"]: row for row in table.rows}
    assert list(rows) == ["UM", "TLA", "A model", "Stored", "Again"]
    for key in ("mnist r_prime 0.3", "mnist r 0.3"):
        assert rows["A model"][key] == pytest.approx(rows["Stored"][key])
        assert rows["Again"][key] == pytest.approx(rows["TLA"][key])
    assert "mnist r_prime 0.03" in rows["A model"] and "mnist r_prime 0.03" not in rows["Stored"]
    assert "A model and Stored and Again: one model each, as given" in table.caption
    assert {record["method"] for record in per_class} == set(rows)
    alone, _ = analysis.ratio_table(results)
    assert alone.rows == table.rows[:2] and "as given" not in alone.caption


def test_other_tables_take_a_fifth_method_too(results, mine):
    model, _ = mine
    own = {"Mine": model}
    differences = analysis.difference_table(results, own)
    assert {"um Mine", "tla Mine"} <= {column.key for column in differences.columns}
    assert {"Mine"} < {row["method"] for row in analysis.distance_table(results, own).rows}
    mixed = analysis.as_results(results, own)
    assert [row["method"] for row in analysis.knn_table(mixed, k=5).rows] == ["UM", "TLA", "Mine"]
    assert analysis.detection_of(mixed, "Mine").auc >= 0


def test_the_accuracy_table_attacks_a_model_as_the_scales_own(results, mine):
    model, reps = mine
    table = analysis.main_accuracy_table(results, methods={"Mine": model, "Stored": reps})
    rows = {row["model"]: row for row in table.rows}
    assert list(rows) == ["UM", "TLA", "Mine", "Stored"]
    assert set(rows["UM"]) == set(rows["Mine"]) and "strongest" in rows["Mine"]
    assert rows["Stored"]["clean"] == reps.accuracy == rows["Mine"]["clean"]
    assert rows["Stored"]["PGD10"] == pytest.approx(reps.robust_accuracy)


def test_figures_1_to_8_get_a_column_or_a_row_of_their_own(results, mine):
    model, _ = mine
    own = {"Mine": model}
    first, *_ = figures = analysis.false_class_figures(results, own)
    assert [title.partition(",")[0] for title in first.column_titles] == ["UM", "TLA", "Mine"] and len(figures) == 3
    (pairs,) = analysis.class_pair_figures(results, own)
    assert [title.partition(",")[0] for title in pairs.column_titles] == ["UM", "TLA", "Mine"]
    assert list(analysis.retrieval_figure(results, own).strips) == ["UM", "TLA", "Mine"]
    assert list(analysis.landscape_figure(results, own).rows) == ["TLA", "Mine"]
    (zeros,) = analysis.false_class_figures(results, own, classes=["0"])
    assert len(zeros.rows) == 1


def test_a_method_of_other_images_or_with_a_name_of_the_scales_is_refused(results, mine):
    model, reps = mine
    shuffled = RepresentationSet.from_arrays(reps.features, np.roll(reps.labels, 1), class_names=reps.class_names)
    with pytest.raises(ValueError, match="'Mine' is of other images than mnist's test images"):
        analysis.ratio_table(results, {"Mine": shuffled})
    with pytest.raises(ValueError, match="there is a method TLA already"):
        analysis.ratio_table(results, {"TLA": model})
    with pytest.raises(ValueError, match="expected the folder of a run, or a file"):
        analysis.ratio_table(results, {"Mine": "no/such/run"})
    with pytest.raises(TypeError, match=r"'Mine' must be a RepresentationSet, a model, or.*Got a int"):
        analysis.ratio_table(results, {"Mine": 3})


def test_a_scales_file_names_a_model_of_ones_own(root, monkeypatch):
    path = root / "workflow/scales/mini.yaml"
    before = path.read_text(encoding="utf-8")
    (root / "nets.py").write_text("from tiny import tiny_lenet\n\ndef build():\n    return tiny_lenet(3)\n")
    path.write_text(before.replace("- tla\n", "- tla\n- Mine: {model: 'nets.py:build'}\n", 1), encoding="utf-8")
    monkeypatch.delenv("TLA_ROOT", raising=False)
    monkeypatch.chdir(root)
    try:
        results = analysis.as_results("mini")
        assert results.methods == ("um", "tla", "Mine") and results.source("Mine")["given"] == "LeNet"
        assert [row["method"] for row in analysis.ratio_table(results)[0].rows] == ["UM", "TLA", "Mine"]
        assert len(results.pair_maps("Mine")) == 1 and set(results.landscapes("Mine")) == {0, 100}
    finally:
        path.write_text(before, encoding="utf-8")


# Alone ----------------------------------------------------------------------------------------------------------------


def test_tables_and_figures_of_a_dictionary_alone(results, mine, tmp_path):
    model, reps = mine
    reps.save(tmp_path / "mine.safetensors")
    sets = {**results.sets(), "Mine": model, "Stored": tmp_path / "mine.safetensors"}
    table, _ = analysis.ratio_table(sets)
    rows = {row["method"]: row for row in table.rows}
    assert rows["Mine"]["mnist-mini r_prime 0.3"] == pytest.approx(analysis.ratio_r_prime(reps).value)
    assert [row["model"] for row in analysis.main_accuracy_table(sets).rows] == ["UM", "TLA", "Mine", "Stored"]
    (figure,) = analysis.false_class_figures(sets, classes=["1"])
    assert len(figure.rows[0]) == 4
    (pair,) = analysis.class_pair_figures(sets, pairs=[("4", "9")], method="pca")
    assert len(pair.panels) == 4
    assert len(analysis.retrieval_figure(sets, row=3).strips) == 4
    with pytest.raises(ValueError, match="no pairs of classes are known"):
        analysis.class_pair_figures(sets)
    with pytest.raises(ValueError, match="'UM' is a RepresentationSet; here its model is needed"):
        analysis.landscape_figure(sets)


def test_models_and_images_of_ones_own(mine):
    model, _ = mine
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 1, 28, 28), np.uint8), np.arange(40) % 10
    mixed = analysis.as_results({"A": model, "B": tiny_lenet(1)}, images=images, labels=labels, attack=ATTACK)
    table = analysis.main_accuracy_table(mixed)
    assert [column.key for column in table.columns] == ["model", "clean", "PGD10", "APGD-CE", "APGD-T", "strongest"]
    assert list(analysis.landscape_figure(mixed).rows) == ["A", "B"]
    assert [row["method"] for row in analysis.ratio_table(mixed)[0].rows] == ["A", "B"]
    with pytest.raises(ValueError, match="models need images"):
        analysis.ratio_table({"A": model})


def test_representations_that_say_nothing_of_their_attack_are_compared_as_they_are():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    features = rng.normal(size=(30, 4)) + 4 * np.eye(4)[labels]

    def noisy(noise):
        attacked = features + noise * rng.normal(size=features.shape)
        predicted = {"predictions": labels, "adv_predictions": labels}
        return RepresentationSet.from_arrays(features, labels, adv_features=attacked, **predicted)

    table, _ = analysis.ratio_table({"weak": noisy(0.1), "strong": noisy(3)})
    assert [column.title for column in table.columns][1] == "r′, own images, attacked"
    weak, strong = (row["own images r_prime nan"] for row in table.rows)
    assert weak < strong
    with pytest.raises(ValueError, match=r"'other' has 15 images.*'one' 30.*expected the same images"):
        analysis.ratio_table({"one": noisy(1), "other": noisy(1).subset(np.arange(15))})


def test_sets_of_different_attacks_are_not_put_under_one_name():
    labels = np.arange(12) % 3

    def attacked(eps, **changes):
        attack = {**AttackConfig(eps=eps, step_size=eps / 4, steps=5).to_dict(), **changes}
        predicted = {"predictions": labels, "adv_predictions": labels, "meta": {"attack": attack}}
        return RepresentationSet.from_arrays(np.eye(4)[labels], labels, adv_features=np.eye(4)[labels], **predicted)

    assert analysis.as_results({"one": attacked(0.1), "other": attacked(0.1)}).levels() == (0.1,)
    for other in (attacked(0.2), attacked(0.1, norm="l2"), attacked(0.1, steps=6)):
        with pytest.raises(ValueError, match=r"'other' is attacked by .*expected one attack"):
            analysis.as_results({"one": attacked(0.1), "other": other})
    with pytest.raises(ValueError, match=r"'one' is attacked by .*expected one attack"):
        analysis.as_results({"one": attacked(0.2)}, attack=AttackConfig(eps=0.1))


def test_other_rows_of_a_data_set_are_refused():
    labels = np.arange(12) % 3

    def of_rows(rows):
        return RepresentationSet.from_arrays(
            np.eye(4)[labels], labels, indices=rows, meta={"dataset": "mnist-mini", "split": "test"}
        )

    with pytest.raises(ValueError, match="expected the same images in the same order"):
        analysis.as_results({"one": of_rows(np.arange(12)), "other": of_rows(np.arange(12) + 3)})


def shift(model, images, labels, **_):
    return (images + 0.1).clamp(0, 1)


def test_models_are_attacked_as_the_first_set_is(mine):
    model, _ = mine
    data = mnist_images(40)
    attack = AttackConfig(eps=0.1, step_size=0.05, steps=2)
    first = analysis.extract(model, data.images, data.labels, attack=attack, class_names=data.class_names)
    results = analysis.as_results({"set": first, "model": model}, images=data.images, labels=data.labels)
    again = results.representations("model")
    np.testing.assert_allclose(again.adv_features, first.adv_features, atol=1e-5)
    assert results.attack() == attack and again.class_names == first.class_names
    shifted = analysis.extract(model, data.images, data.labels, attack=shift, class_names=data.class_names)
    with pytest.raises(ValueError, match=r"attack that cannot be run again.*Pass attack="):
        analysis.as_results({"set": shifted, "model": model}, images=data.images, labels=data.labels)
    own = analysis.as_results({"model": model}, images=data.images, labels=data.labels, attack=shift)
    assert set(own.accuracy("model").correct) == {"clean", "shift"}


def test_a_retrieval_figure_of_other_rows_is_refused(mine, results):
    data = mnist_images(40)
    options = {"attack": AttackConfig(eps=0.1, step_size=0.05, steps=2), "class_names": data.class_names}
    sets = [
        analysis.extract(mine[0], data.images[rows], data.labels[rows], indices=rows, **options)
        for rows in (torch.arange(40), torch.arange(40).flip(0))
    ]
    with pytest.raises(ValueError, match="the same images in the same order"):
        analysis.retrieval_figure(dict(zip(("one", "other"), sets, strict=True)), images=data.images)


def test_the_explorer_takes_them_too(mine, results):
    model, _ = mine
    explorer = analysis.EmbeddingExplorer({**results.sets(), "Mine": model}, methods=["pca"], progress=False)
    assert explorer.models == ("UM", "TLA", "Mine")
    assert torch.is_tensor(next(model.parameters()))
