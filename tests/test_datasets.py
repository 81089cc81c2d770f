import functools
import gzip
import hashlib
import http.server
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tla_core as tla
from tla_core import dataset_download, dataset_files, decoded_cache, image_decoding, image_files
from tla_core.data import make_mnist_mini
from tla_core.datasets import DatasetError, DatasetNotFoundError, ImageDataset, download_dataset, load_dataset


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user's cache; no TLA_DATA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TLA_DATA", raising=False)
    return tmp_path / "cache" / "tla"


def write_image(path, value=0, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "I;16") else (value, 255 - value, 7)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def pets(tmp_path, cache):
    """An image folder of 2 classes: 3 + 2 training images and 1 + 1 test images, 6 wide and 5 high."""
    folder = tmp_path / "pets"
    for i, name in enumerate(("dog/a.png", "dog/b.png", "cat/c.png", "cat/a.PNG", "cat/b.png")):
        write_image(folder / "train" / name, 10 * i)
    write_image(folder / "test/cat/a.png", 100)
    write_image(folder / "test/dog/a.png", 110)
    return folder


def entry_folder(cache):
    (folder,) = (f for f in (cache / "decoded").iterdir() if f.is_dir())
    return folder


# ---- ImageDataset


@pytest.mark.parametrize("to_images", [np.asarray, torch.from_numpy])
def test_a_dataset_is_made_of_arrays_or_tensors(to_images):
    images = np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2)
    dataset = ImageDataset(to_images(images), np.array([0, 2, 1, 0], dtype=np.int32))
    assert dataset.images.dtype == torch.uint8 and dataset.labels.dtype == torch.int64
    assert np.array_equal(dataset.images, images) and dataset.labels.tolist() == [0, 2, 1, 0]
    assert dataset.class_names == ("0", "1", "2")
    assert len(dataset) == 4
    assert repr(dataset) == "ImageDataset(custom: 4 images 3x2x2, 3 classes)"


def test_read_only_and_reversed_arrays_are_taken_without_a_warning():
    images = np.arange(2 * 1 * 2 * 2, dtype=np.uint8).reshape(2, 1, 2, 2)[::-1]
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = ImageDataset(images, np.array([1, 0]))
    assert np.array_equal(dataset.images, images)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, int), TypeError, r"must be uint8. Got torch.float32; convert"),
        (np.zeros((2, 1, 4, 4), np.int64), np.zeros(2, int), TypeError, "must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int), DatasetError, r"shape \(n, c, h, w\). Got \(2, 4, 4\)"),
        (np.zeros((0, 1, 4, 4), np.uint8), np.zeros(0, int), DatasetError, "at least one image"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, int), DatasetError, r"shape \(2,\).* Got \(3,\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2), TypeError, "labels must be integers. Got torch.float64"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 2]), DatasetError, r"0\.\.1.*Got labels from 0 to 2"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([-1, 0]), DatasetError, "Got labels from -1 to 0"),
    ],
)
def test_bad_arrays_are_refused(images, labels, error, message):
    with pytest.raises(error, match=message):
        ImageDataset(images, labels, ("cat", "dog"))


def test_the_checksum_is_that_of_the_content():
    images, labels = np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1])
    checksum = ImageDataset(images, labels, ("cat", "dog")).checksum
    assert len(checksum) == 64
    assert checksum == ImageDataset(images.copy(), labels, ("cat", "dog"), name="same").checksum
    changed = images.copy()
    changed[1, 0, 3, 3] = 1
    others = [
        ImageDataset(changed, labels, ("cat", "dog")),
        ImageDataset(images, labels[::-1], ("cat", "dog")),
        ImageDataset(images, labels, ("cat", "cow")),
        ImageDataset(images.reshape(2, 1, 2, 8), labels, ("cat", "dog")),
    ]
    assert len({checksum, *(other.checksum for other in others)}) == 5


def test_a_subset_keeps_order_classes_and_says_what_it_is():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    dataset = ImageDataset(images, np.array([0, 1, 2, 0]), ("a", "b", "c"), "letters", "test", "Letters")
    subset = dataset.subset([3, 1])
    assert subset.images.flatten().tolist() == [3, 1] and subset.labels.tolist() == [0, 1]
    assert subset.class_names == ("a", "b", "c")
    assert (subset.name, subset.split, subset.source) == ("letters", "test", "Letters, 2 of 4 images")
    assert subset.checksum != dataset.checksum
    assert dataset.subset(range(4)).checksum == dataset.checksum
    for mask in (dataset.labels == 0, (dataset.labels == 0).numpy()):
        assert dataset.subset(mask).images.flatten().tolist() == [0, 3]


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 4], IndexError, r"0\.\.3. Got indices from 0 to 4"),
        ([-1], IndexError, r"0\.\.3. Got indices from -1 to -1"),
        ([0.5], IndexError, "list of integers or a mask. Got float64"),
        ([[0]], IndexError, r"Got int64 \(1, 1\)"),
        ([True], IndexError, r"mask must have the shape \(4,\). Got \(1,\)"),
        ([], DatasetError, "at least one image"),
    ],
)
def test_bad_subsets_are_refused(indices, error, message):
    dataset = ImageDataset(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, int))
    with pytest.raises(error, match=message):
        dataset.subset(indices)


# ---- names, splits, roots


def test_an_unknown_name_lists_the_known_ones(cache):
    with pytest.raises(ValueError, match=r"'imagenet'.*mnist-mini, mnist, .*, or the path of an image folder"):
        load_dataset("imagenet", "train")


def test_an_unknown_split_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'val'. Expected one of train, test"):
        load_dataset("mnist-mini", "val")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar10-jpeg", "tiny-imagenet"])
def test_a_missing_dataset_says_where_it_was_looked_for(name, cache, tmp_path):
    with pytest.raises(DatasetNotFoundError, match=f"{name} is not at {cache}.*TLA_DATA"):
        load_dataset(name, "train")
    with pytest.raises(FileNotFoundError, match=f"{name} is not at {tmp_path}/elsewhere"):
        load_dataset(name, "train", root=tmp_path / "elsewhere")


def test_the_root_is_the_argument_then_tla_data_then_the_cache(cache, tmp_path, monkeypatch):
    assert dataset_download.dataset_root() == cache
    monkeypatch.setenv("TLA_DATA", str(tmp_path / "data"))
    assert dataset_download.dataset_root() == tmp_path / "data"
    assert dataset_download.dataset_root("~/x") == Path.home() / "x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert decoded_cache.user_cache_folder() == Path.home() / ".cache" / "tla"


# ---- embedded subset


def test_mnist_mini_is_balanced_and_fast_and_needs_no_folder(cache):
    for split in ("train", "test"):
        start = time.perf_counter()
        dataset = load_dataset("mnist-mini", split, root="/nonexistent", download=True)
        assert time.perf_counter() - start < 1.0  # 0.05 s on an idle core; the bound is for a busy machine
        assert dataset.images.shape == (5000, 1, 28, 28) and dataset.images.dtype == torch.uint8
        assert dataset.labels.dtype == torch.int64
        assert torch.bincount(dataset.labels).tolist() == [500] * 10
        assert dataset.class_names == tuple("0123456789")
        assert repr(dataset) == (
            f"ImageDataset(mnist-mini {split}: 5,000 images 1x28x28, 10 classes, from MNIST (5,000 + 5,000 subset))"
        )
    assert not cache.exists()


def test_the_public_names_are_there():
    assert tla.load_dataset is load_dataset and tla.ImageDataset is ImageDataset


def test_a_changed_mnist_mini_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_files, "MNIST_MINI_FILE", tmp_path / "mini.npz")
    with pytest.raises(DatasetNotFoundError, match="missing from the installation"):
        load_dataset("mnist-mini", "train")
    (tmp_path / "mini.npz").write_bytes(b"other")
    with pytest.raises(DatasetError, match=r"got sha256 d9298a10.* Install"):
        load_dataset("mnist-mini", "train")


def test_evenly_spaced_positions():
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 0])
    assert make_mnist_mini.evenly_spaced(labels, 2).tolist() == [0, 1, 4, 5]


# ---- raw MNIST


@pytest.fixture
def mnist(cache, monkeypatch):
    """A tiny MNIST/raw under the cache, with the table of checksums to match."""
    folder = cache / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, n in (("train", 6), ("t10k", 3)):
        images = np.arange(n * 28 * 28, dtype=np.uint8).reshape(n, 28, 28)
        labels = np.arange(n, dtype=np.uint8) % 10
        for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
            (folder / name).write_bytes(content)
            monkeypatch.setitem(dataset_files.MNIST_MD5, name, hashlib.md5(content).hexdigest())
    return folder


def test_mnist_is_read_from_idx_files(mnist):
    train, test = load_dataset("mnist", "train"), load_dataset("mnist", "test")
    assert train.images.shape == (6, 1, 28, 28) and test.images.shape == (3, 1, 28, 28)
    assert np.array_equal(train.images.flatten(), np.arange(6 * 784, dtype=np.uint8))
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.class_names == tuple("0123456789") and train.source == "MNIST"


def test_mnist_is_read_from_compressed_files_as_well(mnist):
    plain = load_dataset("mnist", "test")
    for path in list(mnist.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_dataset("mnist", "test").checksum == plain.checksum
    compressed = mnist / "t10k-labels-idx1-ubyte.gz"
    compressed.write_bytes(compressed.read_bytes()[:-5])
    with pytest.raises(DatasetError, match=r"labels-idx1-ubyte.gz cannot be unpacked.*Delete"):
        load_dataset("mnist", "test")


def test_a_missing_idx_file_is_named(mnist):
    (mnist / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"train-labels-idx1-ubyte is missing, and so is .*gz"):
        load_dataset("mnist", "train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"t10k-images.* is truncated.* 2,367 bytes, and its header promises 2,368"),
        (lambda content: content[:10], "not an IDX file of bytes"),
        (lambda content: b"", "not an IDX file of bytes"),
        (lambda content: b"<html>" + content, "not an IDX file of bytes: it starts with '3c68746d'"),
        (lambda content: content[:-1] + b"\x7f", "t10k-images.* wrong checksum: got MD5 .*, expected .*Delete"),
    ],
)
def test_a_damaged_idx_file_is_refused(mnist, damage, message):
    path = mnist / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=message):
        load_dataset("mnist", "test")


# ---- CIFAR-10, Python version


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in the official batches."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def write_batch(path, batch, monkeypatch):
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(batch)
    content = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(content)
    monkeypatch.setitem(dataset_files.CIFAR10_MD5, path.name, hashlib.md5(content).hexdigest())


@pytest.fixture
def cifar10(cache, monkeypatch):
    """A tiny cifar-10-batches-py, two images per batch, with the table of checksums to match."""
    folder = cache / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate(list(dataset_files.CIFAR10_MD5)):
        data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072) + np.uint8(i)
        write_batch(folder / name, {b"data": data, b"labels": [i, 9], b"batch_label": b"x"}, monkeypatch)
    return folder


def test_cifar10_is_read_from_its_batches(cifar10):
    train, test = load_dataset("cifar10", "train"), load_dataset("cifar10", "test")
    assert train.images.shape == (10, 3, 32, 32) and test.images.shape == (2, 3, 32, 32)
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and test.labels.tolist() == [5, 9]
    assert np.array_equal(train.images[2].flatten(), np.arange(3072, dtype=np.uint8) + np.uint8(1))
    assert train.class_names[:2] == ("airplane", "automobile") and train.source == "CIFAR-10"


def test_a_cifar10_batch_with_a_wrong_checksum_is_never_unpickled(cifar10, monkeypatch):
    monkeypatch.setattr(dataset_files, "_ArrayUnpickler", None)
    path = cifar10 / "test_batch"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DatasetError, match="test_batch has a wrong checksum"):
        load_dataset("cifar10", "test")


class Bomb:
    def __reduce__(self):
        return os.makedirs, ("exploded",)


def test_a_cifar10_batch_cannot_run_code(cifar10, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_batch(cifar10 / "test_batch", {b"data": Bomb(), b"labels": [0]}, monkeypatch)
    with pytest.raises(DatasetError, match=r"it asks for os.makedirs, and only numpy arrays are expected"):
        load_dataset("cifar10", "test")
    assert not (tmp_path / "exploded").exists()


def test_an_incomplete_cifar10_is_refused(cifar10, monkeypatch):
    write_batch(cifar10 / "test_batch", {b"labels": [0]}, monkeypatch)
    with pytest.raises(DatasetError, match="test_batch does not hold a CIFAR-10 batch: 'data'"):
        load_dataset("cifar10", "test")
    (cifar10 / "data_batch_5").unlink()
    with pytest.raises(DatasetNotFoundError, match="data_batch_5 is missing"):
        load_dataset("cifar10", "train")


# ---- image folders


def test_an_image_folder_is_sorted_by_class_and_name(pets):
    train = load_dataset(pets, "train")
    assert train.images.shape == (5, 3, 5, 6)
    assert train.class_names == ("cat", "dog") and train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [30, 40, 20, 0, 10]
    assert train.images[0, :, 4, 5].tolist() == [30, 225, 7]
    assert (train.name, train.source) == (str(pets), "pets (image folder)")
    assert load_dataset(str(pets), "test").images[:, 0, 0, 0].tolist() == [100, 110]


def test_a_relative_path_is_an_image_folder(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    assert len(load_dataset("pets", "train")) == 5


def test_cifar10_jpeg_is_an_image_folder_under_the_root(pets):
    pets.rename(pets.parent / "cifar10-jpeg")
    dataset = load_dataset("cifar10-jpeg", "train", root=pets.parent)
    assert len(dataset) == 5 and dataset.source == "CIFAR-10 (JPEG)" and dataset.name == "cifar10-jpeg"


def test_other_files_are_left_out(pets):
    for name in ("notes.txt", ".hidden.png", "Thumbs.db"):
        (pets / "train/cat" / name).write_bytes(b"x")
    (pets / "train/.cache").mkdir()
    assert len(load_dataset(pets, "train")) == 5


def test_greyscale_images_become_rgb_among_colour_images(pets):
    write_image(pets / "train/cat/d.png", 77, mode="L")
    train = load_dataset(pets, "train")
    assert train.images.shape == (6, 3, 5, 6) and train.images[3, :, 0, 0].tolist() == [77, 77, 77]


def test_a_folder_of_greyscale_images_has_one_channel(tmp_path, cache):
    write_image(tmp_path / "grey/train/one/a.png", 12, mode="L")
    write_image(tmp_path / "grey/train/two/b.jpg", 34, mode="L")
    train = load_dataset(tmp_path / "grey", "train")
    assert train.images.shape == (2, 1, 5, 6) and train.images[:, 0, 0, 0].tolist() == [12, 34]


def test_missing_folders_are_refused(pets, cache):
    with pytest.raises(DatasetNotFoundError, match=r"no folder .*absent; expected .*cannot be downloaded"):
        load_dataset(pets / "absent", "train", download=True)
    with pytest.raises(DatasetNotFoundError, match=r"no folder .*cat/train; expected an image folder"):
        load_dataset(pets / "train/cat", "train")


def test_an_empty_folder_is_refused(pets, tmp_path):
    (tmp_path / "empty/train").mkdir(parents=True)
    with pytest.raises(DatasetError, match="empty/train is empty: it has no class folders"):
        load_dataset(tmp_path / "empty", "train")
    (pets / "test/cat/a.png").unlink()
    with pytest.raises(DatasetError, match=r"test/cat is empty: it has no images \(.jpg"):
        load_dataset(pets, "test")


def test_splits_with_different_classes_are_refused(pets):
    write_image(pets / "test/cow/a.png")
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match="different classes: 'cow' is in only one"):
            load_dataset(pets, split)


def test_different_sizes_are_refused(pets):
    write_image(pets / "train/dog/c.png", size=(7, 5))
    with pytest.raises(DatasetError, match=r"train/cat/a.PNG has 6x5 pixels and train/dog/c.png has 7x5.*Resize"):
        load_dataset(pets, "train")


def test_an_image_that_cannot_be_decoded_is_named(pets):
    path = pets / "train/dog/c.jpg"
    write_image(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DatasetError, match=r"train/dog/c.jpg cannot be decoded: .*truncated.*Replace or remove"):
        load_dataset(pets, "train")
    path.write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"train/dog/c.jpg cannot be decoded: cannot identify image file. Replace"):
        load_dataset(pets, "train")


def test_files_keep_their_place_over_several_tasks(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(image_decoding, "FILES_PER_TASK", 3)
    for i in range(20):
        write_image(tmp_path / f"many/train/all/{i:02}.png", i)
    assert load_dataset(tmp_path / "many", "train").images[:, 0, 0, 0].tolist() == list(range(20))


# ---- Tiny-ImageNet


@pytest.fixture
def tiny(cache):
    """A Tiny-ImageNet of 3 classes, two of them with the same first synonym; 2 training images per class."""
    folder = cache / "tiny-imagenet-200"
    for wnid in ("n3", "n1", "n2"):
        for i in range(2):
            write_image(folder / f"train/{wnid}/images/{wnid}_{i}.JPEG", 50 * int(wnid[1]))
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text("x")
    (folder / "wnids.txt").write_text("n3\nn1\nn2\n")
    (folder / "words.txt").write_text("n0\tentity\nn1\tcrane, bird\nn2\tcrane\nn3\tgoldfish, Carassius auratus\n")
    rows = [("val_0.JPEG", "n2"), ("val_1.JPEG", "n3"), ("val_10.JPEG", "n1"), ("val_2.JPEG", "n3")]
    for name, _ in rows:
        write_image(folder / "val/images" / name)
    (folder / "val/val_annotations.txt").write_text("".join(f"{n}\t{w}\t0\t32\t44\t62\n" for n, w in rows))
    return folder


def test_tiny_imagenet_follows_its_official_lists(tiny):
    train, test = load_dataset("tiny-imagenet", "train"), load_dataset("tiny-imagenet", "test")
    assert train.class_names == test.class_names == ("goldfish", "crane (n1)", "crane (n2)")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.labels.tolist() == [2, 0, 1, 0]
    assert [round(v / 50) for v in train.images[::2, 0, 0, 0].tolist()] == [3, 1, 2]
    assert train.source == test.source == "Tiny-ImageNet (3 classes, 2 images per class)"


@pytest.mark.parametrize(
    ("counts", "source"),
    [
        ([500] * 200, "Tiny-ImageNet"),
        ([100] * 200, "Tiny-ImageNet (100 images per class)"),
        ([100] * 199 + [99], "Tiny-ImageNet (99 to 100 images per class)"),
        ([500] * 20, "Tiny-ImageNet (20 classes, 500 images per class)"),
    ],
)
def test_tiny_imagenet_says_how_much_of_it_is_there(counts, source):
    assert image_files._tiny_imagenet_source(counts) == source


def test_an_incomplete_tiny_imagenet_is_refused(tiny):
    (tiny / "val/images/val_1.JPEG").unlink()
    with pytest.raises(DatasetError, match=r"val_annotations.txt and .* disagree: val/images/val_1.JPEG"):
        load_dataset("tiny-imagenet", "test")
    (tiny / "val/val_annotations.txt").write_text("val_0.JPEG\tn9\t0\t0\t0\t0\n")
    with pytest.raises(DatasetError, match=r"names 'n9', which wnids.txt does not have"):
        load_dataset("tiny-imagenet", "test")
    for path in (tiny / "train/n1/images").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="n1/images is empty"):
        load_dataset("tiny-imagenet", "train")
    (tiny / "train/n1/images").rmdir()
    with pytest.raises(DatasetNotFoundError, match=r"no folder .*n1/images"):
        load_dataset("tiny-imagenet", "train")
    (tiny / "words.txt").unlink()
    (tiny / "wnids.txt").write_text("")
    with pytest.raises(DatasetError, match=r"wnids.txt is empty"):
        load_dataset("tiny-imagenet", "train")
    (tiny / "wnids.txt").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"wnids.txt is missing"):
        load_dataset("tiny-imagenet", "train")


def test_changed_class_names_are_seen_though_the_images_are_cached(tiny):
    load_dataset("tiny-imagenet", "train")
    words = tiny / "words.txt"
    words.write_text(words.read_text().replace("goldfish", "fish"))
    assert load_dataset("tiny-imagenet", "train").class_names[0] == "fish"


# ---- the cache of decoded images


def test_images_are_decoded_once_and_mapped_without_a_warning(pets, cache, monkeypatch):
    first = load_dataset(pets, "train")
    monkeypatch.setattr("tla_core.datasets.decode_images", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = load_dataset(pets, "train")
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    sidecar = json.loads((entry_folder(cache) / "entry.json").read_text())
    assert sidecar["sha256"] == first.checksum == second.checksum
    assert sidecar["class_names"] == ["cat", "dog"] and sidecar["source"] == "pets (image folder)"
    recomputed = ImageDataset(second.images, second.labels, second.class_names).checksum
    assert recomputed == second.checksum


def test_writing_to_loaded_images_leaves_the_cache_alone(pets, caplog):
    load_dataset(pets, "train")
    mapped = load_dataset(pets, "train")
    mapped.images.zero_()
    assert load_dataset(pets, "train").images.max() > 0
    assert not caplog.records


@pytest.mark.parametrize("change", ["added", "removed", "written"])
def test_changed_sources_are_decoded_again(pets, change, caplog):
    before = load_dataset(pets, "train")
    path = pets / "train/dog/b.png"
    if change == "added":
        write_image(pets / "train/dog/c.png", 99)
    elif change == "removed":
        path.unlink()
    else:
        stat = path.stat()
        write_image(path, 11)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = load_dataset(pets, "train")
    expected = {"added": [30, 40, 20, 0, 10, 99], "removed": [30, 40, 20, 0], "written": [30, 40, 20, 0, 11]}[change]
    assert after.images[:, 0, 0, 0].tolist() == expected
    assert before.images[:, 0, 0, 0].tolist() == [30, 40, 20, 0, 10]  # what was loaded stays valid
    assert load_dataset(pets, "train").checksum == after.checksum
    assert not caplog.records


def corrupt_one_byte(entry):
    content = bytearray((entry / "images.npy").read_bytes())
    content[-1] ^= 1
    (entry / "images.npy").write_bytes(content)


def truncate_images(entry):
    os.truncate(entry / "images.npy", 150)


def drop_images(entry):
    (entry / "images.npy").unlink()


def break_sidecar(entry):
    (entry / "entry.json").write_text("{")


@pytest.mark.parametrize("damage", [corrupt_one_byte, truncate_images, drop_images, break_sidecar])
def test_a_damaged_cache_is_decoded_again_with_a_warning(pets, cache, damage, caplog):
    good = load_dataset(pets, "train")
    damage(entry_folder(cache))
    with caplog.at_level(logging.WARNING):
        again = load_dataset(pets, "train")
    assert torch.equal(again.images, good.images) and again.checksum == good.checksum
    (record,) = caplog.records
    assert "decoded again" in record.getMessage() and "tla_core" in record.name
    caplog.clear()
    assert load_dataset(pets, "train").checksum == good.checksum
    assert not caplog.records
    assert [f.name for f in (cache / "decoded").iterdir()] == [entry_folder(cache).name]  # nothing is left behind


def test_a_cache_of_another_format_is_decoded_again(pets, cache, monkeypatch):
    good = load_dataset(pets, "train")
    monkeypatch.setattr(decoded_cache, "FORMAT_VERSION", 2)
    assert load_dataset(pets, "train").checksum == good.checksum
    assert json.loads((entry_folder(cache) / "entry.json").read_text())["format_version"] == 2


def test_a_cache_that_cannot_be_written_does_not_prevent_loading(pets, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("a file where a folder should be")
    assert len(load_dataset(pets, "train")) == 5
    assert "could not be stored" in caplog.text


def test_an_entry_that_appears_while_decoding_is_used(pets, cache, monkeypatch, caplog):
    decode = image_decoding.decode_images

    def decode_late(*files, **options):
        load_meanwhile()
        return decode(*files, **options)

    monkeypatch.setattr("tla_core.datasets.decode_images", decode_late)

    def load_meanwhile():
        with monkeypatch.context() as patch:
            patch.setattr("tla_core.datasets.decode_images", decode)
            made_meanwhile.append(load_dataset(pets, "train"))
        inodes.append((entry_folder(cache) / "images.npy").stat().st_ino)

    made_meanwhile, inodes = [], []
    dataset = load_dataset(pets, "train")
    assert dataset.checksum == made_meanwhile[0].checksum
    assert (entry_folder(cache) / "images.npy").stat().st_ino == inodes[0]
    assert not caplog.records


WORKER = """
import logging, sys, time
import numpy as np
from tla_core.decoded_cache import load_or_decode
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
time.sleep(max(0, float(sys.argv[1]) - time.time()))
labels = np.arange(50)
for i in range(30):
    images = np.full((50, 3, 8, 8), i, np.uint8)
    found, _ = load_or_decode("key", fingerprint=str(i), labels=labels, class_names=["a"] * 50, source="x",
                              decode=lambda: images)
    assert np.array_equal(found, images)
"""


def test_processes_that_decode_at_once_do_not_disturb_each_other(cache):
    start = str(time.time() + 1.0)
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, start], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]
    outputs = [worker.communicate(timeout=60)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    assert [f.name for f in (cache / "decoded").iterdir()] == ["key"]


# ---- downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of `tmp_path`."""
    handler = functools.partial(QuietHandler, directory=tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def no_downloads(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.MNIST", refuse)


def test_nothing_is_downloaded_unless_asked_for(cache, no_downloads, mnist):
    for name in ("cifar10", "tiny-imagenet"):
        with pytest.raises(DatasetNotFoundError, match=rf"`tla data get {name}` \(or download=True\) downloads it"):
            load_dataset(name, "train")
    assert len(load_dataset("mnist", "train", download=True)) == 6  # it is there already
    assert download_dataset("mnist") == mnist


def test_an_archive_is_downloaded_checked_and_unpacked(tiny, tmp_path, server, monkeypatch):
    expected = load_dataset("tiny-imagenet", "train").checksum
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for path in sorted(tiny.rglob("*")):
            archive.write(path, path.relative_to(tiny.parent))
    md5 = hashlib.md5((tmp_path / "tiny.zip").read_bytes()).hexdigest()
    monkeypatch.setitem(dataset_download.ARCHIVES, "tiny-imagenet", (f"{server}/tiny.zip", md5))
    dataset = load_dataset("tiny-imagenet", "train", root=tmp_path / "new", download=True)
    assert dataset.checksum == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tiny-imagenet-200"]


def test_cifar10_is_downloaded(cifar10, tmp_path, server, monkeypatch):
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(cifar10, cifar10.name)
    md5 = hashlib.md5((tmp_path / "cifar.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setitem(dataset_download.ARCHIVES, "cifar10", (f"{server}/cifar.tar.gz", md5))
    assert download_dataset("cifar10", tmp_path / "new") == tmp_path / "new/cifar-10-batches-py"
    assert len(load_dataset("cifar10", "train", root=tmp_path / "new")) == 10


def test_mnist_is_downloaded_through_torchvision(mnist, tmp_path, server, monkeypatch):
    from torchvision.datasets import MNIST

    resources = []
    for path in list(mnist.iterdir()):
        compressed = gzip.compress(path.read_bytes())
        (tmp_path / f"{path.name}.gz").write_bytes(compressed)
        resources.append((f"{path.name}.gz", hashlib.md5(compressed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [f"{server}/"])
    monkeypatch.setattr(MNIST, "resources", resources)
    assert len(load_dataset("mnist", "test", root=tmp_path / "new", download=True)) == 3


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, server, monkeypatch):
    (tmp_path / "tiny.zip").write_bytes(b"not the archive")
    monkeypatch.setitem(dataset_download.ARCHIVES, "tiny-imagenet", (f"{server}/tiny.zip", "0" * 32))
    with pytest.raises(DatasetError, match="Downloading tiny-imagenet failed: File not found or corrupted"):
        download_dataset("tiny-imagenet", tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "cifar10", "tiny-imagenet"])
def test_without_a_network_the_error_says_what_to_put_where(name, tmp_path, server, monkeypatch):
    from torchvision.datasets import MNIST

    nowhere = f"{server}/nowhere"
    monkeypatch.setattr(MNIST, "mirrors", [f"{nowhere}/"])
    for archive in dataset_download.ARCHIVES:
        monkeypatch.setitem(dataset_download.ARCHIVES, archive, (nowhere, "0" * 32))
    folder = tmp_path / "new" / dataset_download.FOLDERS[name]
    with pytest.raises(DatasetError, match=f"Downloading {name} failed: .*404.*by hand, so that .* lie in {folder}"):
        load_dataset(name, "train", root=tmp_path / "new", download=True)


def test_what_cannot_be_downloaded_says_so(cache, pets):
    with pytest.raises(DatasetError, match="cifar10-jpeg cannot be downloaded; only mnist, cifar10, tiny-imagenet can"):
        load_dataset("cifar10-jpeg", "train", download=True)
    with pytest.raises(DatasetError, match=r"pets cannot be downloaded.*An image folder needs only its path"):
        download_dataset(str(pets))


# ---- the real datasets


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "source", "sizes", "shape", "n_classes"),
    [
        ("mnist", "MNIST", (60_000, 10_000), (1, 28, 28), 10),
        ("cifar10-jpeg", "CIFAR-10 (JPEG)", (50_000, 10_000), (3, 32, 32), 10),
        ("tiny-imagenet", "Tiny-ImageNet (100 images per class)", (20_000, 10_000), (3, 64, 64), 200),
    ],
)
def test_the_real_datasets_load(real_data_root, name, source, sizes, shape, n_classes):
    for split, size in zip(("train", "test"), sizes, strict=True):
        dataset = load_dataset(name, split, root=real_data_root)
        assert dataset.images.shape == (size, *shape) and dataset.images.dtype == torch.uint8
        assert dataset.labels.dtype == torch.int64 and len(torch.bincount(dataset.labels)) == n_classes
        assert dataset.source == source
        assert len(set(dataset.class_names)) == n_classes
        if name != "mnist":
            assert len(torch.bincount(dataset.labels).unique()) == 1


@pytest.mark.real_data
def test_mnist_mini_is_made_again_with_the_same_bytes(real_data_root, tmp_path):
    sha256 = make_mnist_mini.make_mnist_mini(real_data_root, tmp_path / "mini.npz")
    with np.load(tmp_path / "mini.npz") as made, np.load(dataset_files.MNIST_MINI_FILE) as embedded:
        assert set(made) == set(embedded)
        assert all(np.array_equal(made[key], embedded[key]) for key in made)
    assert sha256 == dataset_files.MNIST_MINI_SHA256
    assert (tmp_path / "mini.npz").read_bytes() == dataset_files.MNIST_MINI_FILE.read_bytes()
