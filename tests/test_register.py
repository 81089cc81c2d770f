"""Models, training steps and images of one's own in a scale, by Python and by its file; their results are stored."""

import re

import numpy as np
import pytest
import torch
import yaml
from tiny import mnist_images, project_folder, tiny_lenet, tiny_training, use_few_images
from torch import nn

import analysis
import tla_core as tla
from analysis.command.main import main
from analysis.scales.plan import Plan
from analysis.scales.results import Results
from analysis.scales.scale import Scale, load_scale
from analysis.scales.scale_file import REGISTERED
from analysis.scales.states import judge
from tla_core.methods import as_step_loss
from tla_core.naming import import_object, spec_of

TRADES = """
import torch.nn.functional as F

import tla_core as tla


def trades(model, source, step, config, attack):
    batch = source.batch(step)
    with tla.attack_mode(model):
        x_adv = tla.run_attack(attack, model, batch.images, batch.labels)
    clean, attacked = model(batch.images), model(x_adv)
    divergence = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return {"cross_entropy": F.cross_entropy(clean, batch.labels), "divergence": 6 * divergence}


def nothing(model, source, step, config, attack):
    return model(source.batch(step).images).sum()
"""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_few_images(monkeypatch, n_test=100)
    few = {"n_clean": 10, "n_adversarial": 6, "method": "pca"}
    monkeypatch.setattr(Scale, "map_settings", lambda scale: few)
    monkeypatch.setattr("analysis.scales.results.os.cpu_count", lambda: 1)
    yield
    REGISTERED.clear()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose scale trains in a second; its folder is where one works."""
    strongest = {"images": 5, "steps": 2, "targets": 1}
    project_folder(
        tmp_path, analysis_images={"mnist": 50}, class_pairs={"mnist": [["4", "9"]]},
        accuracy={"images": 10, "long_images": 5, "restarts": 1, "strongest": strongest},
        landscape={"images": 2, "resolution": 3, "radius": 2, "rise": {"images": 2, "resolution": 3}},
    )  # fmt: skip
    (tmp_path / "trades.py").write_text(TRADES)
    monkeypatch.delenv("TLA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_scale_file(root):
    return yaml.safe_load((root / "workflow/scales/mini.yaml").read_text())


# Models ---------------------------------------------------------------------------------------------------------------


def refuse(*_, **__):
    raise AssertionError("what is stored is not measured again")


def test_a_model_that_is_registered_is_measured_once_and_again_when_it_has_changed(root, monkeypatch):
    model = tiny_lenet(3)
    analysis.register_method("My model", model)
    results = analysis.as_results("mini")
    assert results.methods == ("um", "tla", "My model") and results.sets().keys() == {"UM", "TLA", "My model"}
    table, _ = analysis.ratio_table("mini")
    assert [row["method"] for row in table.rows] == ["UM", "TLA", "My model"]
    first = results.representations("My model")
    maps, pairs, landscapes = (
        results.class_maps("My model"), results.pair_maps("My model"), results.landscapes("My model")
    )  # fmt: skip
    accuracy, train = results.accuracy("My model"), results.train_representations("My model")
    folder = root / "results/mini/mnist/My-model/given"
    assert {path.name for path in folder.iterdir()} >= {
        "representations-eps0.3.safetensors", "representations-eps0.03.safetensors", "class-maps-eps0.3.safetensors",
        "representations-train.safetensors", "pair-maps-eps0.3.safetensors", "landscapes.safetensors",
        "accuracy-test.safetensors",
    }  # fmt: skip
    # Another process, with the same weights: nothing is computed.
    with monkeypatch.context() as patched:
        for place in ("mixed.extract", "given_results.map_class", "given_results.map_pair", "accuracy.evaluate"):
            patched.setattr(f"analysis.scales.{place}", refuse)
        patched.setattr("analysis.landscape.input_landscape", refuse)
        analysis.register_method("My model", tiny_lenet(3))
        again = analysis.as_results("mini")
        np.testing.assert_array_equal(again.representations("My model").adv_features, first.adv_features)
        np.testing.assert_array_equal(again.class_maps("My model", classes=[3])[3].adv_coords, maps[3].adv_coords)
        np.testing.assert_array_equal(again.pair_maps("My model")[0].adv_coords, pairs[0].adv_coords)
        np.testing.assert_array_equal(again.landscapes("My model")[0].loss, landscapes[0].loss)
        np.testing.assert_array_equal(again.train_representations("My model").features, train.features)
        assert again.accuracy("My model").accuracy == accuracy.accuracy
    # It is trained on, in memory: neither what this object has, nor what is stored, is of it any more.
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    changed = results.representations("My model")
    assert not np.array_equal(changed.features, first.features)
    assert not np.array_equal(results.class_maps("My model")[3].adv_coords, maps[3].adv_coords)
    np.testing.assert_array_equal(
        analysis.RepresentationSet.load(folder / "representations-eps0.3.safetensors").features, changed.features
    )


class Scaled(nn.Module):
    """The same weights, and another function where a number that is no weight differs."""

    def __init__(self, factor):
        super().__init__()
        self.net, self.factor = tiny_lenet(3), factor

    def forward(self, x):
        return self.factor * self.net(x)


def test_another_function_of_the_same_weights_is_measured_again(root):
    analysis.register_method("Mine", Scaled(1.0).eval())
    first = analysis.as_results("mini").representations("Mine")
    analysis.register_method("Mine", Scaled(2.0).eval())
    doubled = analysis.as_results("mini").representations("Mine")
    np.testing.assert_allclose(doubled.logits, 2 * first.logits, rtol=1e-4, atol=1e-5)


def test_a_run_of_ones_own_network_and_stored_representations_are_methods_too(root):
    run = Results("mini").run("tla")
    analysis.register_method("A run", run)
    results = analysis.as_results("mini")
    np.testing.assert_allclose(
        results.representations("A run").features, results.representations("tla").features, atol=1e-5
    )
    assert (root / "results/mini/mnist/A-run/given/representations-eps0.3.safetensors").is_file()
    results.representations("tla").save(root / "mine.safetensors")
    analysis.register_method("Stored", root / "mine.safetensors")
    table, _ = analysis.ratio_table("mini")
    assert [row["method"] for row in table.rows] == ["UM", "TLA", "A run", "Stored"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.register_method("Mine"), "'Mine': expected either a model or a step. Got neither"),
        (lambda: analysis.register_method("Mine", "a:b", step="a:b"), "'Mine': .*Got both"),
        (lambda: analysis.register_method("tla", tiny_lenet()), "methods: there is tla already"),
        (lambda: analysis.register_method("alp", tiny_lenet()), "methods: alp is a method that there is"),
        (lambda: analysis.register_method("Mine", tiny_lenet(), dataset="x"), "Mine: dataset must be mnist. Got 'x'"),
        (lambda: analysis.register_method("Mine", "runs/none"), "expected file.py:function"),
        (lambda: analysis.register_method("Mine", step=lambda: 0), "expected a function that stands in a file"),
        (lambda: analysis.register_method("Mine", step="gone.py:f"), "step: there is no file .*gone.py"),
        (lambda: analysis.register_method("a/b", step="trades.py:trades"), "without @ and /"),
        *(
            (lambda name=name: analysis.register_method(name, tiny_lenet()), "at most 60 characters.*Got")
            for name in ("", " ", "..", "a\0b", "tla@3", "x" * 300, 5, None, "a/b")
        ),
        (lambda: analysis.register_dataset(5, "."), "dataset name must be text"),
        (lambda: analysis.register_method("Mine", step="trades.py:trades", like="x"), "like must be um or .*Got 'x'"),
        (lambda: analysis.register_method("Mine", tiny_lenet(), scale="huge"), "unknown scale 'huge'"),
        (lambda: analysis.register_dataset("pets", "images/gone"), "datasets: pets: folder: there is no .*gone"),
        (lambda: analysis.register_dataset("mnist", "."), "datasets: there is mnist already"),
        (lambda: analysis.register_dataset("pets", ".", like="x"), "pets: like must be mnist. Got 'x'"),
    ],
)
def test_what_a_scale_cannot_have_is_refused_and_leaves_it_as_it_was(root, call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert load_scale("mini").methods == ("um", "tla") and not load_scale("mini").own_methods
    assert load_scale("mini").datasets == ("mnist",)


def test_what_is_no_method_is_refused(root):
    with pytest.raises(TypeError, match=r"'Mine' must be a RepresentationSet, a model, or.*Got a int"):
        analysis.register_method("Mine", 3)
    with pytest.raises(TypeError, match=r"'pets': expected a folder, or \(train, test\) in memory. Got a int"):
        analysis.register_dataset("pets", 3)
    assert analysis.as_results("mini").methods == ("um", "tla")


# Training steps -------------------------------------------------------------------------------------------------------


def test_a_step_of_ones_own_is_trained_and_stands_among_the_methods(root):
    step = import_object("trades.py:trades")
    analysis.register_method("TRADES", step=step, like="at")
    results = analysis.as_results("mini")
    assert results.methods == ("um", "tla", "TRADES")
    config = results.scale.config("mnist", "TRADES")
    assert config.step == spec_of(step) and config.epochs == tiny_training()["epochs"]  # the overrides of at
    assert config.identity != results.scale.config("mnist", "at").identity
    run = results.run("TRADES")
    assert run == root / "runs/mini/mnist/TRADES/seed0"
    terms = [line["terms"] for line in tla.TrainResult(run, tla_metrics(run)).metrics if "terms" in line]
    assert terms and all(set(each) == {"cross_entropy", "divergence"} for each in terms)
    assert "TRADES" in [row["method"] for row in analysis.ratio_table(results)[0].rows]
    assert "TRADES" in results.scale.table_methods("mnist")
    model = Plan(load_scale("mini")).model(("mnist", "TRADES", 0))
    assert "tla train mini/mnist/at" in model.command and f"--step {spec_of(step)}" in model.command
    assert judge(Plan(load_scale("mini")), model).name == "made"
    (root / "trades.py").write_text(TRADES.replace("6 *", "5 *"))
    state = judge(Plan(load_scale("mini")), model)
    assert state.name == "stale" and re.match("the code of its training step changed: .*trades.py", state.reason)


def tla_metrics(run):
    from tla_core.run_folder import RunFolder

    return RunFolder(run).metrics()


def test_a_scales_file_names_a_step_that_the_command_trains(root, capsys):
    values = read_scale_file(root)
    values["methods"] = ["um", "tla", {"TRADES": {"step": "trades.py:trades", "like": "at"}}]
    values["overrides"] |= {"TRADES": {"label_smoothing": 0.2}}
    (root / "workflow/scales/mini.yaml").write_text(yaml.safe_dump(values))
    scale = load_scale("mini")
    assert scale.config("mnist", "TRADES").step == f"{root / 'trades.py'}:trades"
    assert scale.config("mnist", "TRADES").label_smoothing == 0.2 != scale.config("mnist", "at").label_smoothing
    artefact = Plan(scale).model(("mnist", "TRADES", 0))
    assert artefact.path in Plan(scale).artefacts
    words = artefact.command.split()[1:]
    assert main([*words, "--no-progress"]) == 0
    assert judge(Plan(scale), artefact).name == "made"
    assert Results("mini").run("TRADES").name == "seed0"


def test_a_step_that_returns_no_terms_is_refused(root, tmp_path):
    config = tla.TrainConfig.preset("mini/mnist/at", step="trades.py:nothing", **{"epochs": 1, "holdout": 20})
    with pytest.raises(TypeError, match=r"must return its terms by their names.*Got Tensor"):
        tla.train(config, tmp_path / "run", dataset=mnist_images(100, "train"), progress=False)
    with pytest.raises(ValueError, match=r"step must be file\.py:function or package\.module:function"):
        tla.TrainConfig(step="trades")
    loss = as_step_loss({"one": torch.ones((), requires_grad=True), "two": torch.tensor(2.0)})
    assert loss.total.item() == 3 and not loss.terms["one"].requires_grad
    with pytest.raises(ValueError, match=r"'one' of a training step must be one number.*shape \(3,\)"):
        as_step_loss({"one": torch.ones(3, requires_grad=True)})
    with pytest.raises(ValueError, match=r"no gradient leads from the terms .*'one'"):
        as_step_loss({"one": torch.tensor(1.0)})


# Datasets -------------------------------------------------------------------------------------------------------------


def two_classes(n, seed, size=28):
    """Dark and bright images."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 100, (n, 1, size, size), np.uint8)
    images[labels == 1] += 120
    return images, labels


def test_images_in_memory_are_a_dataset_of_a_scale_and_other_images_another(root):
    train, test = two_classes(120, 0), two_classes(60, 1)
    name = analysis.register_dataset("shades", (train, test), like="mnist")
    assert name.startswith("shades-") and len(tla.load_dataset(name, "train")) == 120
    results = analysis.as_results("mini")
    assert results.scale.datasets == ("mnist", "shades")
    reps = results.representations("tla", dataset="shades")
    assert len(reps) == 60 and reps.meta["dataset"] == name and results.run("tla", dataset="shades").is_dir()
    table, _ = analysis.ratio_table(results)
    assert any(column.key.startswith("shades r_prime") for column in table.columns)
    figure, *_ = analysis.false_class_figures(results, dataset="shades", classes=["1"])
    assert len(figure.rows[0]) == 2
    first = load_scale("mini").config("shades", "tla").identity
    assert analysis.register_dataset("shades", (train, test), like="mnist") == name
    assert analysis.register_dataset("shades", (train, two_classes(60, 2)), like="mnist") != name
    assert load_scale("mini").config("shades", "tla").identity != first
    with pytest.raises(tla.DatasetError, match="shades: train and test must be other images of one size"):
        analysis.register_dataset("shades", (train, train), like="mnist")
    with pytest.raises(tla.DatasetError, match="of one size"):
        analysis.register_dataset("shades", (train, two_classes(60, 1, size=20)), like="mnist")


def test_a_folder_that_is_registered_is_what_the_file_would_name(root):
    analysis.example_image_folder(root / "shapes", n_train=20, n_test=20)
    source = analysis.register_dataset("shapes", "shapes", like="mnist")
    scale = load_scale("mini")
    assert scale.own_datasets == {"shapes": {"folder": source, "like": "mnist"}} and source == str(root / "shapes")
    by_python = scale.config("shapes", "tla")
    REGISTERED.clear()
    values = read_scale_file(root) | {"datasets": ["mnist", {"shapes": {"folder": "shapes", "like": "mnist"}}]}
    (root / "workflow/scales/mini.yaml").write_text(yaml.safe_dump(values))
    assert load_scale("mini").config("shapes", "tla") == by_python


def test_a_dataset_that_is_registered_has_seeds_where_the_file_names_them_by_dataset(root):
    values = read_scale_file(root) | {"seeds": {"mnist": [3, 4]}}
    (root / "workflow/scales/mini.yaml").write_text(yaml.safe_dump(values))
    analysis.register_dataset("shades", (two_classes(20, 0), two_classes(20, 1)), like="mnist")
    assert load_scale("mini").seeds_of("shades") == (3,) and load_scale("mini").seeds_of("mnist") == (3, 4)
