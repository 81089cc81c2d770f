import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import REPOSITORY, project_folder, tiny_training, use_few_images

from analysis.command import main as cli
from analysis.extraction import extract
from analysis.maps import map_classes
from analysis.representations import RepresentationSet
from analysis.scales import results, run_results
from analysis.scales.accuracy import evaluate_run
from analysis.scales.results import MissingResultError, Results
from analysis.scales.run_results import run_config
from analysis.scales.scale import load_scale, override_flags, project_root
from analysis.scales.targets import results_dir
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import file_sha256
from tla_core.config import TrainConfig
from tla_core.datasets import load_dataset
from tla_core.evaluation import describe_attack
from tla_core.training import load_model


@pytest.fixture(autouse=True)
def _few_images_and_nothing_written_here(monkeypatch, tmp_path):
    use_few_images(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project in which um and tla were trained, extracted at one level and mapped. Not to be changed."""
    root = project_folder(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_few_images(monkeypatch)
        all_results = Results("mini", root=root, progress=False)
        for method in all_results.methods:
            all_results.class_maps(method)
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy of that project, to be changed."""
    shutil.copytree(made, tmp_path / "project")
    return tmp_path / "project"


def files(root):
    """Relative path -> (time, size) of every run and result file."""
    paths = [p for folder in ("runs", "results") for p in (root / folder).rglob("*") if p.is_file()]
    return {p.relative_to(root).as_posix(): (p.stat().st_mtime_ns, p.stat().st_size) for p in paths if p.name != "lock"}


def changed(root, before):
    """Result and model files that were made again since, by method and name."""
    now = files(root)
    again = {path for path, state in now.items() if before.get(path) != state and path.endswith(".safetensors")}
    return {"/".join((Path(path).parts[3], Path(path).name)) for path in again if ".old-" not in path}


# What is missing or stale is made -------------------------------------------------------------------------------------


def test_everything_lies_in_folders_that_say_what_it_is(made):
    found = {path for path in files(made) if "/tla/" in path}
    assert found == {
        "runs/mini/mnist/tla/seed0/config.json",
        "runs/mini/mnist/tla/seed0/metrics.jsonl",
        "runs/mini/mnist/tla/seed0/model.safetensors",
        "runs/mini/mnist/tla/seed0/state.safetensors",
        "results/mini/mnist/tla/seed0/representations-eps0.3.safetensors",
        "results/mini/mnist/tla/seed0/class-maps-eps0.3.safetensors",
    }


def test_what_is_there_is_not_made_again(made, monkeypatch):
    before = files(made)
    again = Results("mini", root=made, progress=False)
    for method in again.methods:
        again.representations(method)
        again.representations(method, 0.3)
        again.class_maps(method)
        again.source(method)
    assert files(made) == before


def test_representations_are_those_of_the_trained_model_under_the_analysis_attack(made):
    all_results = Results("mini", root=made, make=False)
    reps = all_results.representations("tla")
    # As the fixture patches it, in `tla_core.datasets` and not under the name imported here.
    test = results_test_images()
    expected = extract(
        load_model(made / "runs/mini/mnist/tla/seed0"), test.images, test.labels, attack=all_results.attack()
    )
    for name in ("features", "adv_features", "predictions", "adv_predictions", "adv_images", "labels"):
        np.testing.assert_array_equal(getattr(reps, name), getattr(expected, name))
    assert (reps.meta["dataset"], reps.meta["split"], reps.meta["method"]) == ("mnist-mini", "test", "tla")
    assert reps.class_names == tuple("0123456789")


def results_test_images():
    import tla_core.datasets

    return tla_core.datasets.load_dataset("mnist-mini", "test")


def test_maps_are_those_of_the_representations_with_the_scales_points(made):
    all_results = Results("mini", root=made, make=False)
    maps = all_results.class_maps("um")
    assert all_results.map_settings() == {"n_clean": 36, "n_adversarial": 12, "n_iter": 250}
    expected = map_classes(all_results.representations("um"), n_clean=36, n_adversarial=12, n_iter=250)
    assert list(maps) == list(range(10))
    for k, mapped in expected.items():
        np.testing.assert_array_equal(maps[k].clean_coords, mapped.clean_coords)
        np.testing.assert_array_equal(maps[k].adv_rows, mapped.adv_rows)


def test_a_changed_setting_trains_that_method_again_and_keeps_the_old_run(root):
    before = files(root)
    old_model = (root / "runs/mini/mnist/tla/seed0/model.safetensors").read_bytes()
    project_folder(root, overrides={"um": tiny_training(), "tla": tiny_training(margin=0.5)})
    stale = Results("mini", root=root, make=False)
    stale.representations("um")
    with pytest.raises(MissingResultError, match=r"tla/seed0/model.safetensors is stale .settings changed: margin"):
        stale.representations("tla")
    fresh = Results("mini", root=root, progress=False)
    for method in fresh.methods:
        fresh.class_maps(method)
    names = ("model", "state", "representations-eps0.3", "class-maps-eps0.3")
    assert changed(root, before) == {f"tla/{name}.safetensors" for name in names}
    assert run_config(root / "runs/mini/mnist/tla/seed0").margin == 0.5
    aside = root / "runs/mini/mnist/tla/seed0.old-1"
    assert (aside / "model.safetensors").read_bytes() == old_model and run_config(aside).margin == 0.05


def test_another_analysis_attack_makes_representations_and_maps_again_but_trains_nothing(root, monkeypatch):
    before = files(root)
    attack = AttackConfig(eps=0.3, step_size=0.1, steps=2)
    monkeypatch.setitem(results.analysis_attack.__globals__["ANALYSIS_ATTACKS"], "mnist-mini", attack)
    fresh = Results("mini", root=root, progress=False)
    fresh.class_maps("um")
    assert changed(root, before) == {"um/representations-eps0.3.safetensors", "um/class-maps-eps0.3.safetensors"}
    assert fresh.representations("um").meta["attack"]["steps"] == 2
    # In the other order too: maps are stale even where the representations were made first.
    fresh.representations("tla")
    with pytest.raises(MissingResultError, match=r"class-maps-eps0\.3\.safetensors is stale \(settings"):
        Results("mini", root=root, make=False).class_maps("tla")


def test_other_map_settings_make_maps_again_and_nothing_else(root):
    before = files(root)
    project_folder(root, points_per_class={"clean": 37, "adversarial": 12})
    Results("mini", root=root, progress=False).class_maps("um")
    assert changed(root, before) == {"um/class-maps-eps0.3.safetensors"}


def test_another_level_is_a_file_of_its_own(root):
    before = files(root)
    all_results = Results("mini", root=root, progress=False)
    assert all_results.levels() == (0.03, 0.3)
    reps = all_results.representations("um", 0.03)
    assert reps.meta["attack"] == describe_attack(all_results.attack(0.03)) and reps.meta["attack"]["eps"] == 0.03
    assert changed(root, before) == {"um/representations-eps0.03.safetensors"}


@pytest.mark.parametrize("damage", ["empty", "truncated", "altered"])
def test_a_damaged_result_is_made_again(root, damage):
    path = root / "results/mini/mnist/um/seed0/representations-eps0.3.safetensors"
    expected = RepresentationSet.load(path)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[:-100], "altered": content[:-1] + b"x"}[damage])
    reps = Results("mini", root=root, progress=False).representations("um")
    np.testing.assert_array_equal(reps.adv_features, expected.adv_features)


def test_a_deleted_model_is_written_again_and_its_results_stay_valid(root):
    """Snakemake deletes declared outputs of a job that it repeats, the model among them."""
    before = files(root)
    model = root / "runs/mini/mnist/um/seed0/model.safetensors"
    content = model.read_bytes()
    model.unlink()
    Results("mini", root=root, progress=False).class_maps("um")
    assert changed(root, before) == {"um/model.safetensors"} and model.read_bytes() == content


def test_sources_say_which_checkpoint(made):
    source = Results("mini", root=made).source("tla")
    assert source == {
        "method": "tla",
        "run": "runs/mini/mnist/tla/seed0",
        "config_identity": load_scale("mini", made).config("mnist", "tla").identity,
        "checkpoint_sha256": file_sha256(made / "runs/mini/mnist/tla/seed0/model.safetensors"),
        "data": "MNIST (5,000 + 5,000 subset)",
    }


# Without making -------------------------------------------------------------------------------------------------------


def test_a_missing_result_names_the_command_that_makes_it(tmp_path, monkeypatch, capsys):
    """Followed from nothing to the maps: each message's command is run, and the next one is asked for."""
    scale = {"overrides": {"at": tiny_training(learning_rate=1e-4)}, "methods": ["at"]}
    scale |= {"notebooks": ["fig1_3_false_classes", "fig8_loss_landscape", "main_accuracy", "knn_and_detection"]}
    scale |= {"class_pairs": {"mnist": [["4", "9"]]}, "pair_points": 40}
    scale |= {"landscape": {"images": 1, "resolution": 3, "radius": 2, "rise": {"images": 1, "resolution": 3}}}
    scale |= {"accuracy": {"images": 8, "long_images": 4, "restarts": 1, "strongest": {"images": 4, "steps": 2}}}
    root = project_folder(tmp_path / "a project", **scale)
    monkeypatch.chdir(root)
    nothing_made = Results("mini", root=root, make=False)
    planned, followed = {artefact.command for artefact in nothing_made.plan.artefacts.values()}, []
    kinds = ("run", "representations", "train_representations", "class_maps", "landscapes", "accuracy")
    for ask in (getattr(nothing_made, kind) for kind in kinds):
        with pytest.raises(MissingResultError, match=r"is missing\. Make it, in .*`tla .*SCALE=mini make fig") as e:
            ask("at")
        assert "restored in seconds by `tla restore --scale mini`" in str(e.value)
        command = shlex.split(str(e.value).split("`")[1])
        # What the pipeline would run.
        assert shlex.join(command) in planned
        followed.append(command[1])
        quiet = [] if command[1] == "landscape" else ["--no-progress"]
        assert cli.main([*command[1:], *quiet]) == 0, capsys.readouterr().err
        ask("at")
    nothing_made.pair_maps("at")  # they came with those of the classes
    assert followed == ["train", "extract", "extract", "project", "landscape", "evaluate"]


def test_only_mini_makes_what_is_missing(made, tmp_path):
    root = project_folder(tmp_path)
    assert Results("mini", root=root).make and not Results("mini", root=root, make=False).make
    shutil.copy(root / "workflow/scales/mini.yaml", root / "workflow/scales/small.yaml")
    assert not Results("small", root=root).make
    assert repr(Results("mini", root=made)) == "Results('mini': mnist; um, tla; seeds [0])"


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: there is no config\.json\. Train one with `tla train`"):
        run_config(tmp_path)


def test_representations_of_some_images_are_those_rows_of_all(root):
    run = root / "runs/mini/mnist/um/seed0"
    every = RepresentationSet.load(run_results.extract_run(run, progress=False))
    path = run_results.extract_run(run, images=10, progress=False)
    some = RepresentationSet.load(path)
    assert some.indices.tolist() == [k * len(every) // 10 for k in range(10)]
    np.testing.assert_allclose(some.features, every.features[some.indices], atol=1e-5)
    np.testing.assert_allclose(some.adv_images, every.adv_images[some.indices], atol=1e-5)
    expected = [run_results.representations_target(run, images=n)[1] for n in (None, 10, 20)]
    assert [run_results.is_current(path, each) for each in expected] == [False, True, False]
    assert len(RepresentationSet.load(run_results.extract_run(run, images=401, progress=False))) == 400


def test_an_unfinished_run_has_no_results(root):
    (root / "runs/mini/mnist/um/seed0/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no finished run: there is no model\.safetensors"):
        run_results.extract_run(root / "runs/mini/mnist/um/seed0")


# Scales ---------------------------------------------------------------------------------------------------------------


def test_the_scales_of_the_repository_are_valid():
    for path in (REPOSITORY / "workflow" / "scales").glob("*.yaml"):
        scale = load_scale(path.stem, REPOSITORY)
        for method in scale.methods:
            for dataset in scale.datasets:
                scale.config(dataset, method)
        assert all((REPOSITORY / "notebooks" / f"{name}.ipynb").is_file() for name in scale.notebooks)


def test_a_scales_overrides_change_the_presets_fields(tmp_path):
    changes = {"margin": 0.1, "attack": {"steps": 5}, "selection_attack": {"eps": "8/255"}, "learning_rate": "1e-4"}
    path = project_folder(tmp_path) / "workflow/scales/mini.yaml"
    path.write_text(path.read_text().replace("overrides:", f"overrides:\n  tla: {json.dumps(changes)}\nold:"))
    text = yaml.safe_load(path.read_text())
    del text["old"]
    path.write_text(yaml.safe_dump(text))
    scale = load_scale("mini", tmp_path)
    preset = TrainConfig.preset("mini/mnist/tla", seed=4)
    assert scale.config("mnist", "tla", 4) == dataclasses.replace(
        preset,
        margin=0.1,
        learning_rate=1e-4,
        attack=dataclasses.replace(preset.attack, steps=5),
        selection_attack=dataclasses.replace(preset.selection_attack, eps=8 / 255),
    )
    assert scale.config("mnist", "um") == TrainConfig.preset("mini/mnist/um")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trades": {}}, r"overrides must name methods \(um, at, alp, tla, tla-rn, tla-sa\)\. Got trades"),
        (
            {"tla": {"alpha": 1, "marge": 2}},
            r"overrides of tla hold an unknown field: alpha, marge\. There are: .*margin",
        ),
        (
            {"tla": {"attack": {"stepz": 1}}},
            r"overrides of tla, attack, hold an unknown field: stepz\. There are: .*steps",
        ),
        ({"tla": {"seed": 1}}, "overrides of tla hold an unknown field: seed"),
        ({"tla": {"method": "at"}}, "overrides of tla hold an unknown field: method"),
        ({"tla": {"margin": -1}}, "margin must be a finite number, at least 0. Got -1"),
        ({"tla": {"margin": "wide"}}, r"expected a number such as 0\.3 or 8/255\. Got 'wide'"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, overrides, message):
    root = project_folder(tmp_path, overrides=overrides)
    with pytest.raises(ValueError, match=message):
        load_scale("mini", root).config("mnist", "tla")


def test_bad_scale_files_are_refused(tmp_path):
    root = project_folder(tmp_path, colour="blue", sead=1)
    with pytest.raises(ValueError, match=r"mini\.yaml holds unknown keys: colour, sead\. There are: accuracy, a"):
        load_scale("mini", root)
    (root / "workflow/scales/mini.yaml").write_text("datasets: [mnist]\n")
    with pytest.raises(ValueError, match=r"mini\.yaml lacks methods, notebooks, points_per_class, seeds"):
        load_scale("mini", root)
    with pytest.raises(ValueError, match=r"unknown scale 'huge'\. There are: mini in "):
        load_scale("huge", root)


def test_the_project_is_found_from_below_or_named(tmp_path, monkeypatch):
    monkeypatch.delenv("TLA_ROOT", raising=False)
    root = project_folder(tmp_path / "project")
    (root / "notebooks" / "deep").mkdir(parents=True)
    monkeypatch.chdir(root / "notebooks" / "deep")
    assert project_root() == root == Results("mini").scale.root
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no project above .*: expected a folder with workflow/scales"):
        project_root()
    monkeypatch.setenv("TLA_ROOT", str(root))
    assert project_root() == root


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("runs/mini/mnist/tla/seed0", "results/mini/mnist/tla/seed0"),
        ("/home/me/runs/old/runs/mini/x", "/home/me/runs/old/results/mini/x"),
        ("my_model", "my_model/results"),
    ],
)
def test_results_lie_at_the_path_of_the_run(run, expected):
    assert results_dir(run) == Path(expected)


# Flags ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"margin": 0.1, "epochs": 3, "layer": "features.4", "lambda_norm": 1e-7, "weight_decay": 0},
        {"milestones": (0.5, 0.75), "schedule": "steps", "optimizer": "sgd"},
        {"attack": AttackConfig(eps=8 / 255, step_size=1 / 3, steps=7, random_start=False)},
        {
            "attack": AttackConfig(name="fgsm", eps=0.3),
            "selection_attack": AttackConfig(name="mim", norm="l2", eps=2.5),
        },
        {"dataset": "a folder/with 'quotes'", "holdout": 0},
    ],
)
def test_flags_give_the_same_settings_through_the_command_line(changes, monkeypatch):
    preset = TrainConfig.preset("mini/mnist/tla", seed=2)
    config = dataclasses.replace(preset, **changes)
    trained = []
    monkeypatch.setattr("tla_core.training.train", lambda config, out, **options: trained.append((config, out)))
    flags = shlex.split(shlex.join(override_flags(config, preset)))
    assert cli.main(["train", "mini/mnist/tla", "--seed", "2", "--out", "x", *flags, "--replace", "--no-progress"]) == 0
    assert trained == [(config, Path("x"))] and trained[0][0].identity == config.identity
    assert flags or not changes


def test_load_dataset_is_really_patched():
    """Were it not, the tests above would train on thousands of images."""
    assert len(results_test_images()) == 400 and len(load_dataset("mnist-mini", "test")) == 5000


def test_captions_say_what_the_attack_leaves_beside_the_strongest(root):
    all_results = Results("mini", root=root, progress=False)
    attack = all_results.attack()
    assert all_results.attack_note(methods=["um"]) == (
        f"{attack}; the table main_accuracy says how far it is from the strongest attack"
    )
    apgd = {name: AttackConfig(name="apgd", eps=attack.eps, steps=2) for name in ("APGD-CE", "APGD-T")}
    measured = evaluate_run(all_results.run("um"), apgd, limits=dict.fromkeys(apgd, 40), progress=False)
    reps, n = all_results.representations("um"), len(all_results.test_images().labels)
    rows = [list(reps.indices).index(index) for index in (np.arange(40) * n // 40).tolist()]
    right = (reps.predictions == reps.labels) & (reps.adv_predictions == reps.labels)
    assert all_results.attack_note(methods=["um"]) == (
        f"{attack}, which leaves UM {100 * right[rows].mean():.1f} % of 40 test images right, where the strongest"
        f" attack leaves {100 * measured.accuracy['strongest']:.1f} %"
    )
