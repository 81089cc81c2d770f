"""A run is measured on the dataset that it was trained on, and on no other without a word."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import mnist_images, tiny_training

import tla_core as tla
from analysis.command.main import main
from analysis.scales.accuracy import evaluate_run, missing_columns, stored_outcomes
from analysis.scales.run_results import data_of_run, extract_run, landscape_run, representations_target, run_images
from tla_core.attack_config import AttackConfig
from tla_core.config import TrainConfig, identity_of
from tla_core.datasets import ImageDataset, load_dataset
from tla_core.run_folder import RunFolder

ATTACK = AttackConfig(steps=1)
SETTINGS = {**tiny_training(holdout=10), "batch_size": 20, "attack": ATTACK, "selection_attack": ATTACK}
REFUSED = r"was trained on 'fashion' \(fashion: 60 images 1x28x28 of 10 classes\), and mnist-mini, which its settings"


def train(run, data, **settings):
    tla.train(TrainConfig.preset("mini/mnist/um", **SETTINGS, **settings), run, dataset=data, progress=False)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "um/seed0"
    digits = mnist_images(60, "train")
    train(run, ImageDataset(255 - digits.images, digits.labels, name="fashion"))
    return run


@pytest.mark.parametrize(
    "measure",
    [
        lambda run: evaluate_run(run, {}, progress=False),
        lambda run: extract_run(run, progress=False),
        lambda run: extract_run(run, split="train", progress=False),
        lambda run: landscape_run(run, {"images": 1, "radius": 1, "resolution": 3, "rise": {}}),
        lambda run: representations_target(run),
        lambda run: missing_columns(run, {}),
        lambda run: stored_outcomes(run),
        lambda run: run_images(run, "holdout"),
    ],
)  # fmt: skip
def test_a_run_on_data_of_ones_own_is_not_measured_on_another(fashion, measure):
    before = sorted(fashion.rglob("*"))
    with pytest.raises(ValueError, match=REFUSED):
        measure(fashion)
    assert sorted(fashion.rglob("*")) == before


@pytest.mark.parametrize("command", [["explore", "--no-open"], ["evaluate"], ["extract"]])
def test_the_commands_say_so(fashion, command, capsys):
    assert main([command[0], str(fashion), *command[1:]]) != 0
    said = capsys.readouterr()
    assert "was trained on 'fashion'" in said.out + said.err


def test_the_same_name_with_another_shape_is_refused(tmp_path):
    digits = mnist_images(60, "train")
    cropped = ImageDataset(digits.images[:, :, 2:26, 2:26], digits.labels, digits.class_names, digits.name)
    train(tmp_path / "run", cropped)
    with pytest.raises(ValueError, match=r"60 images 1x24x24 of 10 classes\), and what is here, Image"):
        evaluate_run(tmp_path / "run", {}, progress=False)


def test_a_part_of_the_dataset_is_measured_on_the_test_images(tmp_path):
    train(tmp_path / "run", mnist_images(60, "train"))
    assert len(run_images(tmp_path / "run", "test")) == 5000


def test_an_image_folder_is_its_own_dataset_and_one_without_splits_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(40):
            path = tmp_path / "pets" / split / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    folder = str(tmp_path / "pets")
    train(tmp_path / "run", load_dataset(folder, "train"), dataset=folder)
    assert len(run_images(tmp_path / "run", "test")) == 40
    with pytest.warns(UserWarning, match="no train and test folders"):
        train(tmp_path / "bare", load_dataset(f"{folder}/train", "train"), dataset=f"{folder}/train")
        with pytest.raises(ValueError, match=r"bare was trained on these very images.*give the folder train and test"):
            evaluate_run(tmp_path / "bare", {}, progress=False)


def test_either_copy_of_cifar10_stands_for_the_other(fashion, tmp_path):
    record = json.loads((fashion / "config.json").read_text())
    for named, trained_on, same in (
        ("cifar10-jpeg", "cifar10", True), ("cifar10", "cifar10-jpeg", True), ("cifar10", "mnist", False),
    ):  # fmt: skip
        record["config"]["dataset"], record["data"]["name"] = named, trained_on
        config = TrainConfig.from_dict(record["config"])
        parts = {name: record[name] for name in ("data", "start")} | {"config": config.identifying_fields()}
        record |= {"identity": identity_of(parts), "config_identity": config.identity}
        (tmp_path / "config.json").write_text(json.dumps(record))
        if same:
            assert data_of_run(tmp_path) == RunFolder(tmp_path).record()["data"]
        else:
            with pytest.raises(ValueError, match="is another dataset"):
                data_of_run(tmp_path)
