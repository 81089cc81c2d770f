"""The image folder that examples are tried with."""

import numpy as np
import pytest
from PIL import Image

import tla_core as tla
from analysis import example_images
from analysis.example_images import example_image_folder
from tla_core.datasets import DatasetNotFoundError, load_dataset


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """No dataset but the embedded one, and a user's cache of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("TLA_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_without_cifar10_they_are_digits_in_colour(tmp_path):
    folder = example_image_folder(tmp_path / "below" / "images", n_train=60, n_test=40)
    assert folder == tmp_path / "below" / "images"
    assert [path.name for path in folder.parent.iterdir()] == ["images"], "nothing else is left there"
    for split, n in (("train", 60), ("test", 40)):
        found, digits = tla.load_dataset(folder, split), load_dataset("mnist-mini", split)
        assert found.images.shape == (n, 3, 28, 28) and found.class_names == tuple("0123456789")
        # A file is named by its row of the dataset.
        names = sorted((folder / split).glob("*/*.png"), key=lambda path: (path.parent.name, path.name))
        rows = [int(path.stem) for path in names]
        assert len(set(rows)) == n and found.labels.tolist() == digits.labels[rows].tolist()
        assert (found.images == digits.images[rows]).all()  # broadcast over three equal channels


def test_every_class_has_its_share_however_few_the_images_are(tmp_path):
    folder = example_image_folder(tmp_path / "images", n_train=50, n_test=10)
    for split, n in (("train", 50), ("test", 10)):
        share = load_dataset("mnist-mini", split).labels.bincount() / 5000
        counts = tla.load_dataset(folder, split).labels.bincount()
        assert len(counts) == 10 and (counts >= 1).all() and ((counts - n * share).abs() <= 1).all()


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path, monkeypatch):
    folder = example_image_folder(tmp_path / "images", n_train=20, n_test=20)
    before = files(folder)
    monkeypatch.setattr(example_images, "load_dataset", lambda *_, **__: pytest.fail("nothing is to be loaded"))
    assert example_image_folder(folder) == example_image_folder(str(folder), n_train=5) == folder
    assert files(folder) == before


def test_an_interrupted_call_leaves_no_folder_and_the_next_one_makes_it_whole(tmp_path, monkeypatch):
    folder, expected = tmp_path / "images", example_image_folder(tmp_path / "expected", n_train=20, n_test=20)
    write, written = example_images._write, []

    def interrupted(data, row, path):
        if len(written) == 25:
            raise KeyboardInterrupt
        written.append(row)
        write(data, row, path)

    with monkeypatch.context() as patch:
        patch.setattr(example_images, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            example_image_folder(folder, n_train=30, n_test=20)
    assert len(written) == 25 and not folder.exists()
    # The next call asks for other images: none of the first call's stays.
    example_image_folder(folder, n_train=20, n_test=20)
    assert contents(folder) == contents(expected)
    assert sorted(path.name for path in tmp_path.iterdir() if "images" in path.name) == ["images"]


def write_pets(folder, splits=("train", "test")):
    """A colour image folder where `load_dataset` looks for CIFAR-10's."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for k in range(4):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{k}.png")


def test_natural_images_are_taken_where_they_are_found(tmp_path, root):
    write_pets(root / "cifar10-jpeg")
    folder = example_image_folder(tmp_path / "images", n_train=4, n_test=100)  # more than there are
    for split, per_class in (("train", 2), ("test", 4)):
        found, pets = tla.load_dataset(folder, split), tla.load_dataset("cifar10-jpeg", split)
        assert found.class_names == ("cat", "dog") and found.labels.bincount().tolist() == [per_class] * 2
        rows = [int(path.stem) for path in sorted((folder / split).glob("*/*.png"))]
        assert (found.images == pets.images[rows]).all()


def test_both_splits_come_from_one_dataset(tmp_path, root):
    """With half of CIFAR-10 there, train and test would have different classes."""
    write_pets(root / "cifar10-jpeg", splits=("train",))
    with pytest.raises(DatasetNotFoundError):
        tla.load_dataset("cifar10-jpeg", "test")
    folder = example_image_folder(tmp_path / "images", n_train=20, n_test=20)
    assert {tla.load_dataset(folder, split).class_names for split in ("train", "test")} == {tuple("0123456789")}
