"""CIFAR-10 from its official files in place of the JPEG copy: what takes it, what says so, and what is never mixed."""

import hashlib
import pickle
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import REPOSITORY, tiny_training

import tla_core as tla
from analysis.command import main as cli
from analysis.example_images import example_image_folder
from analysis.explore.images import collect_images
from analysis.explore.items import match_items
from analysis.paper.ablation import Ablation
from analysis.publish.model_cards import CARD, publish_run, published_runs
from analysis.representations import RepresentationSet
from analysis.scales import targets
from analysis.scales.accuracy import evaluate_run, stored_outcomes
from analysis.scales.results import MissingResultError, Results
from analysis.scales.run_results import (
    extract_run,
    is_current,
    representations_target,
    run_config,
    run_images,
    target_of_run,
)
from tla_core import dataset_files
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import load_tensors, save_tensors
from tla_core.config import TrainConfig
from tla_core.dataset_download import other_copy
from tla_core.dataset_files import CIFAR10_CLASSES, CIFAR10_MD5
from tla_core.datasets import DatasetNotFoundError
from tla_core.run_folder import RunConflictError, RunFolder

N_TEST = 30
TAKEN = r"cifar10-jpeg is not at .*: CIFAR-10 \(cifar10\), another copy of it, is taken in its place"
SETTINGS = {**tiny_training(holdout=10), "batch_size": 20, "attack": AttackConfig(steps=1)}
SETTINGS["selection_attack"] = SETTINGS["attack"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Folders of datasets: with the JPEG copy alone, with the official files alone, with both, with neither."""
    base = tmp_path_factory.mktemp("data")
    folders = {name: base / name for name in ("jpeg", "official", "both", "neither")}
    for folder in folders.values():
        folder.mkdir()
    batches = folders["official"] / "cifar-10-batches-py"
    batches.mkdir()
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        for number, name in enumerate(CIFAR10_MD5):
            images = random.integers(0, 256, (N_TEST, 3072), dtype=np.uint8)
            labels = random.permutation(np.arange(N_TEST) % 10).tolist()
            content = pickle.dumps({"data": images, "labels": labels}, protocol=3)
            (batches / name).write_bytes(content)
            patch.setitem(dataset_files.CIFAR10_MD5, name, hashlib.md5(content).hexdigest())
            split = "test" if name.startswith("test") else "train"
            for row, (image, label) in enumerate(zip(images.reshape(-1, 3, 32, 32), labels, strict=True)):
                folder = folders["jpeg"] / "cifar10-jpeg" / split / CIFAR10_CLASSES[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}-{row:03d}.jpg")
        for name in ("jpeg", "official"):
            shutil.copytree(folders[name], folders["both"], dirs_exist_ok=True)
        yield folders


@pytest.fixture
def use(roots, monkeypatch):
    """Set which datasets are there."""

    def use_root(name):
        monkeypatch.setenv("TLA_DATA", str(roots[name]))

    return use_root


@pytest.fixture(scope="module")
def trained(roots, tmp_path_factory):
    """A run on the JPEG copy, measured and extracted there."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(REPOSITORY / "workflow" / "scales", root / "workflow" / "scales")
    run = root / "runs/small/cifar10/um/seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLA_DATA", str(roots["jpeg"]))
        tla.train(TrainConfig.preset("small/cifar10/um", **SETTINGS), run, progress=False)
        evaluate_run(run, {}, progress=False)
        extract_run(run, progress=False)
    return root


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it, to be changed."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.setenv("TLA_ROOT", str(tmp_path / "project"))
    return tmp_path / "project"


@pytest.fixture
def run(project):
    return project / "runs/small/cifar10/um/seed0"


# Loading --------------------------------------------------------------------------------------------------------------


def test_the_official_files_are_taken_where_the_jpeg_copy_is_missing_and_it_is_said(use):
    use("official")
    for split in ("train", "test"):
        with pytest.warns(UserWarning, match=TAKEN):
            data = tla.load_dataset("cifar10-jpeg", split)
        assert (data.name, data.source, data.split) == ("cifar10", "CIFAR-10", split)
        assert data.checksum == tla.load_dataset("cifar10", split).checksum
    assert other_copy("cifar10-jpeg") == "cifar10" and other_copy("cifar10") is other_copy("mnist") is None


@pytest.mark.filterwarnings("error")
def test_where_the_jpeg_copy_is_there_it_is_taken_without_a_word(use, roots):
    use("both")
    assert tla.load_dataset("cifar10-jpeg", "test").source == "CIFAR-10 (JPEG)"
    assert tla.load_dataset("cifar10", "test").source == "CIFAR-10"
    assert other_copy("cifar10-jpeg") is None and other_copy("cifar10-jpeg", roots["official"]) == "cifar10"


def test_the_jpeg_copy_does_not_stand_for_the_official_files(use):
    use("jpeg")
    with pytest.raises(DatasetNotFoundError, match="cifar10 is not at"):
        tla.load_dataset("cifar10", "test")


def test_where_neither_is_there_both_are_named_with_the_command_that_fetches_one(use):
    use("neither")
    with pytest.raises(
        DatasetNotFoundError, match=r"cifar10-jpeg is not at .*`tla data get cifar10` downloads the official files"
    ):
        tla.load_dataset("cifar10-jpeg", "test")


@pytest.mark.parametrize(
    "command", [["evaluate"], ["extract"], ["explore"], ["report", "--eps", "8/255", "--out", "r"]]
)
def test_a_missing_dataset_of_a_command_is_said_with_what_may_be_shown_in_its_place(use, capsys, command):
    use("neither")
    for given in ([], ["--data", "cifar10"]):
        assert cli.main([command[0], str(REPOSITORY / "checkpoints/cifar10-at"), *command[1:], *given]) == 1
        message = capsys.readouterr().err
        assert "`tla data get cifar10`" in message and "set TLA_DATA" in message and "--data NAME, an image" in message


def test_the_list_of_datasets_says_what_is_taken(use, capsys):
    use("official")
    assert cli.main(["data"]) == 0
    listed = capsys.readouterr().out
    assert "cifar10-jpeg   not there: cifar10 is taken in its place" in listed and "cifar10        CIFAR-10\n" in listed


def test_example_images_are_the_official_ones(use, tmp_path):
    use("official")
    with pytest.warns(UserWarning, match=TAKEN):
        folder = example_image_folder(tmp_path / "images", n_train=20, n_test=10)
    assert tla.load_dataset(folder, "test").class_names == CIFAR10_CLASSES


# Training -------------------------------------------------------------------------------------------------------------


def test_a_training_on_the_other_copy_is_another_run(use, run, project):
    use("official")
    with pytest.warns(UserWarning, match=TAKEN):
        tla.train(run_config(run), project / "runs/official", progress=False)
    mine, theirs = RunFolder(project / "runs/official").record(), RunFolder(run).record()
    assert mine["config_identity"] == theirs["config_identity"] and mine["identity"] != theirs["identity"]
    assert (mine["data"]["name"], mine["data"]["source"]) == ("cifar10", "CIFAR-10")


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_a_run_on_one_copy_is_neither_resumed_nor_replaced_by_one_on_the_other(use, run, replace, finished):
    if not finished:
        (run / "model.safetensors").unlink()
    before = (run / "state.safetensors").read_bytes()
    use("official")
    message = r"on CIFAR-10 \(JPEG\)\. Here CIFAR-10 is taken in place of cifar10-jpeg.*another run\. Set TLA_DATA"
    with pytest.raises(RunConflictError, match=message):
        tla.train(run_config(run), run, replace=replace, progress=False)
    assert (run / "state.safetensors").read_bytes() == before and not list(run.parent.glob("*.old*"))
    use("jpeg")
    tla.train(run_config(run), run, progress=False)
    assert (run / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_changed_settings_replace_a_run_on_whatever_copy_is_here(use, run):
    use("official")
    tla.train(TrainConfig.preset("small/cifar10/um", **{**SETTINGS, "learning_rate": 0.1}), run, replace=True)
    assert RunFolder(run).record()["data"]["source"] == "CIFAR-10" and len(list(run.parent.glob("*.old*"))) == 1


@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_the_other_copy_s_images_are_not_taken_for_those_held_out(use, run):
    use("official")
    with pytest.raises(ValueError, match=r"trained on CIFAR-10 \(JPEG\) .*, and not on what .* is here: CIFAR-10"):
        run_images(run, "holdout")


def test_an_ablation_measures_anew_on_the_other_copy(use, tmp_path):
    plan = yaml.safe_load((REPOSITORY / "workflow" / "ablation.yaml").read_text())
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan | {"preset": "small/cifar10"}))
    ablation = Ablation(tmp_path / "plan.yaml", tmp_path / "records", tmp_path / "runs")
    cell, seed = next(iter(ablation.cells()))
    identities = []
    for name in ("jpeg", "official"):
        use(name)
        identities.append(ablation.identity(cell, seed))
    assert identities[0] != identities[1]


# Measuring ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_accuracies_of_one_copy_are_not_those_of_the_other(use, run, capsys):
    fgsm = {"FGSM": AttackConfig(name="fgsm")}
    use("jpeg")
    of_jpeg = evaluate_run(run, fgsm, progress=False)
    assert load_tensors(of_jpeg.path)[1]["data"] == "CIFAR-10 (JPEG)"
    use("official")
    assert stored_outcomes(run) == {}
    assert cli.main(["evaluate", str(run), "--only", "FGSM", "--no-progress"]) == 0
    assert "  on CIFAR-10, another copy of the images" in capsys.readouterr().out
    correct, metadata = load_tensors(of_jpeg.path)
    assert metadata["data"] == "CIFAR-10" and set(correct) == {"clean", "FGSM"}
    data = tla.load_dataset("cifar10", "test")
    predicted = tla.load_model(run)(data.images / 255).argmax(1)
    assert correct["clean"].tolist() == (predicted == data.labels).tolist()
    use("jpeg")
    assert stored_outcomes(run) == {}


@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_representations_and_what_is_made_of_them_are_those_of_the_copy_that_is_here(use, run, project):
    use("jpeg")
    config = run_config(run)
    results = [
        targets.representations(config), targets.train_representations(), targets.class_maps(config, None, {}),
        targets.landscapes(config, {}),
    ]  # fmt: skip
    of_jpeg = [target_of_run(run, target)[1] for target in results]
    assert is_current(*representations_target(run))
    use("official")
    for target, theirs in zip(results, of_jpeg, strict=True):
        path, expected = target_of_run(run, target)
        save_tensors(path, {"x": np.zeros(1)}, theirs)
        assert not is_current(path, expected)
        save_tensors(path, {"x": np.zeros(1)}, expected)
        assert is_current(path, expected) and not is_current(path, theirs)
    representations_target(run)[0].unlink()
    with pytest.raises(MissingResultError):
        Results("small", root=project).representations("um", dataset="cifar10")
    reps = RepresentationSet.load(extract_run(run, progress=False))
    assert (reps.meta["dataset"], reps.meta["source"]) == ("cifar10", "CIFAR-10")
    assert reps.labels.tolist() == tla.load_dataset("cifar10", "test").labels.tolist()
    use("both")
    assert not is_current(*representations_target(run))


def test_what_was_stored_before_copies_were_told_apart_is_still_current(use, run):
    use("jpeg")
    path, expected = representations_target(run)
    tensors, metadata = load_tensors(path)
    del metadata["meta"]["other_copy"]
    save_tensors(path, tensors, metadata)
    assert is_current(path, expected)
    use("official")
    assert not is_current(*representations_target(run))


@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_sources_and_images_of_results_are_of_the_copy_that_is_here(use, run, project):
    results = Results("small", root=project, make=False)
    results.run = lambda method, **options: run
    use("jpeg")
    assert "test_images" not in results.source("um", dataset="cifar10")
    use("official")
    source = results.source("um", dataset="cifar10")
    assert (source["data"], source["test_images"]) == ("CIFAR-10 (JPEG)", "cifar10")
    assert results.test_images("cifar10").source == "CIFAR-10"


@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_the_explorer_shows_no_images_of_the_other_copy(use, run):
    reps = RepresentationSet.load(representations_target(run)[0])
    use("jpeg")
    images, _, notes = collect_images(match_items({"UM": reps}, max_points=40, random_state=0), None, None)
    assert images is not None and not notes
    use("official")
    images, _, notes = collect_images(match_items({"UM": reps}, max_points=40, random_state=0), None, None)
    assert images is None and "the sets are of CIFAR-10 (JPEG), and only CIFAR-10 is here" in notes[0]


# Publishing -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:cifar10-jpeg is not at")
def test_published_runs_are_offered_with_either_copy_and_their_cards_say_which_was_measured(use, run, project):
    folder = project / "checkpoints" / "cifar10-um"
    publish_run(run, folder)
    assert "## Accuracy on test images\n" in (folder / CARD).read_text()
    for name, found in (("jpeg", {"um": folder}), ("official", {"um": folder}), ("neither", {})):
        use(name)
        assert published_runs("cifar10", root=project) == found
    use("official")
    evaluate_run(run, {}, progress=False)
    card = publish_run(run, folder).joinpath(CARD).read_text()
    assert "## Accuracy on test images of CIFAR-10\n" in card and "name: CIFAR-10\n" in card
    assert "| data | CIFAR-10 (JPEG), " in card
