"""One door for images: whatever people have them in gives what plain arrays give, or an error that says what to do."""

import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_training
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

import tla_core as tla
from analysis.extraction import extract
from analysis.landscape import input_landscape, weight_landscape
from tla_core.datasets import ImageDataset
from tla_core.given import as_dataset, given_images
from tla_core.stored_images import StoredImages
from tla_core.validation import as_images, as_labels, check_images

N, CLASSES = 12, ("cat", "dog", "owl")
BYTES = np.random.default_rng(0).integers(0, 256, (N, 3, 8, 6), dtype=np.uint8)
LABELS = np.arange(N) % 3
IMAGES = torch.from_numpy(BYTES).float() / 255


def channels_last(array):
    return np.ascontiguousarray(np.transpose(array, (0, 2, 3, 1)))


class MapStyle:
    """What torchvision's datasets do: a length, pairs by number, and no iteration."""

    def __init__(self, images, labels=LABELS, classes=CLASSES):
        self._images, self._labels, self.classes = images, labels, list(classes)

    def __len__(self):
        return len(self._images)

    def __getitem__(self, row):
        return self._images[row], int(self._labels[row])


class HuggingFace:
    """What Hugging Face's datasets do: dictionaries by number, and features that name the classes."""

    def __init__(self, images, keys=("image", "label")):
        self._images, self._keys = images, keys
        self.features = {keys[0]: object(), keys[1]: SimpleNamespace(names=list(CLASSES))}

    def __len__(self):
        return len(self._images)

    def __getitem__(self, row):
        return {self._keys[0]: self._images[row], self._keys[1]: int(LABELS[row]), "file": "x"}


def columns(pairs):
    return tuple(zip(*pairs, strict=True))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(IMAGES, LABELS.tolist(), strict=True)


PICTURES = [Image.fromarray(image) for image in channels_last(BYTES)]
KINDS = {
    "array": (BYTES, LABELS),
    "tensor": (torch.from_numpy(BYTES), torch.from_numpy(LABELS)),
    "labels as a list": (BYTES, LABELS.tolist()),
    "labels as a list of tensors": (BYTES, list(torch.from_numpy(LABELS))),
    "list of arrays": (list(BYTES), LABELS),
    "tuple of tensors": (tuple(IMAGES), LABELS),
    "list of lists": (IMAGES.tolist(), LABELS),
    "channels last": (channels_last(BYTES), LABELS),
    "channels last in a list": (list(channels_last(BYTES)), LABELS),
    "channels last in floats": (IMAGES.permute(0, 2, 3, 1), LABELS),
    "float64": (BYTES / 255, LABELS),
    "with gradient": (IMAGES.clone().requires_grad_(), LABELS),
    "PIL images": (PICTURES, LABELS),
    "pairs": (list(zip(PICTURES, LABELS.tolist(), strict=True)), None),
    "ImageDataset": (ImageDataset(BYTES, LABELS, CLASSES), None),
    "ImageDataset and labels": (ImageDataset(BYTES, 2 - LABELS), LABELS),
    "DataLoader": (DataLoader(TensorDataset(IMAGES, torch.from_numpy(LABELS)), batch_size=5), None),
    "DataLoader of PIL": (DataLoader(MapStyle(PICTURES), 5, collate_fn=columns), None),
    "DataLoader of a stream": (DataLoader(Stream(), batch_size=5), None),
    "map style with tensors": (MapStyle(IMAGES), None),
    "map style with PIL": (MapStyle(PICTURES), None),
    "Hugging Face": (HuggingFace(PICTURES), None),
    "Hugging Face, other names": (HuggingFace(PICTURES, ("img", "labels")), None),
    "DataLoader of Hugging Face": (DataLoader(HuggingFace(IMAGES), batch_size=5), None),
    "generator of batches": (zip(IMAGES.split(5), torch.from_numpy(LABELS).split(5), strict=True), None),
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 7), nn.ReLU(), nn.Linear(7, 3)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_images_and_labels(kind):
    given = given_images(*KINDS[kind])
    images = given.images[:]
    assert torch.equal(as_images(images), IMAGES) and not images.requires_grad
    assert given.labels.tolist() == LABELS.tolist() and given.labels.dtype == torch.int64
    assert images.dtype == (torch.float32 if "float" in kind or kind in (
        "tuple of tensors", "list of lists", "with gradient") else torch.uint8)  # fmt: skip


@pytest.mark.parametrize("kind", ["list of arrays", "channels last", "ImageDataset", "DataLoader", "Hugging Face"])
def test_every_public_function_takes_it(model, kind, tmp_path):
    given = KINDS[kind]
    attack = tla.AttackConfig(eps=0.1, step_size=0.05, steps=2)
    plain = extract(model, BYTES, LABELS, attack=attack, batch_size=5)
    reps = extract(model, *given, attack=attack, batch_size=5)
    for name in ("features", "adv_features", "adv_images", "labels"):
        assert np.array_equal(getattr(reps, name), getattr(plain, name)), name
    assert reps.class_names == (CLASSES if kind in ("ImageDataset", "Hugging Face") else ("0", "1", "2"))
    for correct, expected in zip(
        tla.evaluate(model, *given, attacks={"PGD": attack}, checks=False).correct.values(),
        tla.evaluate(model, BYTES, LABELS, {"PGD": attack}, checks=False).correct.values(), strict=True,
    ):  # fmt: skip
        assert torch.equal(correct, expected)
    landscapes = [weight_landscape(model, *data, resolution=3).loss for data in (given, (BYTES, LABELS))]
    assert np.allclose(*landscapes, atol=1e-6)


def test_one_image_may_be_a_list_or_channels_last(model):
    expected = input_landscape(model, BYTES[0], 1, radius=0.1, resolution=3).loss
    for image in (IMAGES[0].tolist(), channels_last(BYTES)[0], IMAGES[0].double()):
        assert np.allclose(input_landscape(model, image, 1, radius=0.1, resolution=3).loss, expected, atol=1e-6)


def test_torchvisions_own_dataset(model):
    data = FakeData(6, (3, 8, 6), num_classes=3, transform=ToTensor())
    expected = torch.stack([data[i][0] for i in range(6)])
    given = given_images(data)
    assert torch.equal(as_images(given.images[:]), expected) and given.images.dtype == torch.uint8
    assert given.labels.tolist() == [int(data[i][1]) for i in range(6)]


@pytest.mark.parametrize("kind", ["DataLoader", "map style with PIL", "pairs"])
def test_train_takes_it(kind, tmp_path):
    attack = tla.AttackConfig(steps=1)
    settings = {**tiny_training(holdout=3), "batch_size": 3, "pool_size": 3}
    config = tla.TrainConfig.preset("mini/mnist/um", **{**settings, "attack": attack, "selection_attack": attack})
    runs, given = {}, KINDS[kind][0]
    plain = ImageDataset(BYTES, LABELS, as_dataset(given).class_names)
    for name, data in (("plain", plain), ("it", given)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 7), nn.ReLU(), nn.Linear(7, 3))
        tla.train(config, tmp_path / name, model=network, dataset=data, progress=False)
        runs[name] = network.state_dict()
    assert all(torch.equal(runs["plain"][key], runs["it"][key]) for key in runs["it"])


def test_what_a_dataset_to_train_on_must_give():
    with pytest.raises(ValueError, match=r"bytes, or bytes divided by 255. Got other floats: leave normalisation"):
        as_dataset(MapStyle(IMAGES * 0.99))
    assert as_dataset(MapStyle(PICTURES)).class_names == CLASSES


# Values ---------------------------------------------------------------------------------------------------------------


def test_rounding_outside_is_clipped_and_more_is_refused():
    cases = ((-1e-7, 1.00000012, torch.float32), (-1e-9, 1 + 1e-9, torch.float64), (0, 1.001, torch.float16))
    for low, high, kind in cases:
        images = torch.tensor([low, high] * 8, dtype=kind).reshape(1, 1, 4, 4)
        before = images.clone()
        checked = check_images(images)
        assert checked.dtype == torch.float32 and (checked.min(), checked.max()) == (0, 1)
        assert torch.equal(images, before)
    for value in (1.01, -0.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]. Got values from"):
            check_images(torch.tensor([value, 0.5] * 8).reshape(1, 1, 4, 4))


def test_half_precision_is_taken():
    for kind in (torch.float16, torch.bfloat16):
        assert torch.equal(check_images(IMAGES.to(kind)), IMAGES.to(kind).float())


def test_nothing_is_copied_where_nothing_has_to_change():
    assert check_images(IMAGES) is IMAGES
    assert check_images(BYTES).data_ptr() == BYTES.__array_interface__["data"][0]


@pytest.mark.parametrize("images", [BYTES.astype(np.int64), BYTES > 9, torch.zeros(2, 1, 4, 4, dtype=torch.complex64)])
def test_other_types_are_refused(images):
    with pytest.raises(TypeError, match=r"uint8 in 0\.\.255 or float32 in \[0, 1\]. Got torch"):
        check_images(images)


# Where the channels are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_last_is_told_by_the_shape(channels):
    images = np.arange(2 * 9 * 7 * channels, dtype=np.uint8).reshape(2, 9, 7, channels)
    for form in (images, torch.from_numpy(images), list(images)):
        assert np.array_equal(check_images(form), images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (2, 1, 9, 9), (2, 3, 4, 4), (2, 1, 3, 3), (2, 1, 1, 1), (2, 5, 9, 9),
                                   (2, 2, 1, 1), (2, 16, 4, 4), (2, 64, 1, 1)])  # fmt: skip
def test_channels_first_stays(shape):
    images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    assert np.array_equal(check_images(images), images)


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 3, 32, 3), (2, 1, 8, 3), (2, 4, 4, 4)])
def test_an_array_that_may_be_either_is_asked_for(shape):
    images = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match=r"Got an array .* which may be \(n, c, h, w\) or \(n, h, w, c\): pass torch"):
        check_images(images)
    assert check_images(torch.from_numpy(images)).shape == shape


def test_a_list_of_grey_images_needs_no_channel():
    assert check_images([np.zeros((5, 6), np.uint8)] * 2).shape == (2, 1, 5, 6)
    assert given_images(MapStyle([Image.new("L", (6, 5), 9)] * 2)).images[:].shape == (2, 1, 5, 6)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (BYTES, None, ValueError, r"labels are missing: there are 12 images without any. Pass labels"),
        (MapStyle(PICTURES), [0], ValueError, r"shape \(12,\), one for each image. Got \(1,\)"),
        (BYTES, LABELS / 1, TypeError, r"labels must be integers. Got torch.float64"),
        (BYTES, ["cat"] * N, TypeError, r"labels must be a numeric array"),
        ([], [], ValueError, r"images must not be empty"),
        ([BYTES[0], BYTES[1][:, :5]], [0, 1], ValueError, r"\(3, 8, 6\) at position 0 and \(3, 5, 6\) at 1; resize"),
        (MapStyle([PICTURES[0], PICTURES[1].resize((9, 9))]), None, ValueError,
         r"Got 3x8x6 for image 0 and 3x9x9 for image 1: resize or crop"),
        ({"train": BYTES, "test": BYTES}, None, TypeError, r"mapping of train, test: choose one .*\['train'\]"),
        (HuggingFace(PICTURES, ("photo", "label")), None, ValueError, r"'image' or 'img'.*Got 'photo', 'label'"),
        (MapStyle([image * 2 - 1 for image in IMAGES]), None, ValueError, r"must lie in \[0, 1\].*put normalisation"),
        ([(PICTURES[0], "cat")], None, TypeError, r"labels as class numbers. Got 'cat' for image 0"),
        ([[BYTES[0], 1]] * 2, LABELS[:2], ValueError, r"must be arrays, tensors or numbers. Got lists of unequal"),
        ([(1, 2, 3)], None, ValueError, r"pairs \(image, label\). Got 3 values"),
        (MapStyle(["a.png"]), None, TypeError, r"tensors, arrays or PIL images. Got str for image 0"),
        ("images.npy", LABELS, TypeError, r"a DataLoader, or a dataset .* Got str"),
        (7, None, TypeError, r"a DataLoader, or a dataset .* Got int"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_says_what_to_do(images, labels, error, message):
    with pytest.raises(error, match=message):
        given_images(images, labels)


def test_what_turns_into_an_array_is_taken():
    class Column:  # as of pandas
        def __array__(self, dtype=None, copy=None):
            return LABELS

    assert as_labels(Column(), N).tolist() == LABELS.tolist()


def test_labels_as_a_list_are_checked_as_others():
    assert as_labels([0, 2, 1], 3).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        as_labels([0, 2, 1], 3, n_classes=2)


def test_grey_pictures_among_coloured_ones_are_taken():
    images = given_images(MapStyle([PICTURES[0], Image.new("L", (6, 8), 40)])).images[:]
    assert images.shape == (2, 3, 8, 6) and (images[1] == 40).all()


# The file -------------------------------------------------------------------------------------------------------------


def test_stored_images_are_read_as_a_tensor_is_indexed():
    stored, whole = StoredImages(), torch.from_numpy(BYTES)
    for part in whole.split(5):
        stored.append(part)
    assert len(stored) == N and stored.shape == whole.shape and stored.dtype == torch.uint8
    for rows in (slice(None), slice(2, 9, 3), 4, -1, torch.tensor([7, 0, 7]), whole[:, 0, 0, 0] > 99, slice(0, 0)):
        assert torch.equal(stored[rows], whole[rows])
    array = stored.as_array()
    del stored
    assert np.array_equal(array, BYTES)


@pytest.mark.parametrize("kind", ["DataLoader", "map style with PIL"])
def test_a_dataset_is_never_in_memory_as_a_whole(model, kind, monkeypatch):
    """What is read at once is a batch, and the samples of the checks, which do not grow."""
    read = []
    whole = StoredImages.__getitem__

    def counted(self, rows):
        images = whole(self, rows)
        read.append(len(images))
        return images

    monkeypatch.setattr(StoredImages, "__getitem__", counted)
    attack = tla.AttackConfig(eps=0.1, step_size=0.05, steps=1)
    monkeypatch.setattr("tla_core.masking.suite._sample", lambda rows, n_images, n: rows[:3])
    extract(model, KINDS[kind][0], attack=attack, batch_size=4, keep_images="uint8")
    tla.evaluate(model, KINDS[kind][0], attacks={"PGD": attack}, batch_size=4)
    assert len(read) > 6 and max(read) == 4


def test_floats_are_stored_as_bytes_only_where_nothing_is_lost():
    stored = StoredImages()
    stored.append(IMAGES[:2])
    assert stored.dtype == torch.uint8
    stored.append(IMAGES[2:4] * 0.999)
    assert stored.dtype == torch.float32
    stored.append(torch.from_numpy(BYTES[4:6]))
    assert torch.equal(stored[:], torch.cat([IMAGES[:2], IMAGES[2:4] * 0.999, IMAGES[4:6]]))


def test_a_full_disk_is_explained(monkeypatch):
    stored = StoredImages()
    stored._file.close()
    stored._file = open("/dev/full", "wb") if os.path.exists("/dev/full") else pytest.skip("no /dev/full")
    with pytest.raises(OSError, match=r"images cannot be kept in .*No space left.* Set TMPDIR to a folder with more"):
        stored.append(IMAGES)


@pytest.mark.parametrize("keep", ["float", "uint8", None])
def test_adversarial_images_are_kept_as_asked(model, keep, tmp_path):
    attack = tla.AttackConfig(eps=0.1, step_size=0.05, steps=2)
    exact = extract(model, BYTES, LABELS, attack=attack)
    reps = extract(model, BYTES, LABELS, attack=attack, keep_images=keep, batch_size=5)
    assert np.allclose(reps.adv_features, exact.adv_features, atol=1e-6)
    if keep is None:
        assert reps.adv_images is None
        return
    assert reps.adv_images.dtype == {"float": np.float32, "uint8": np.uint8}[keep]
    assert np.abs(reps.adv_images / (255 if keep == "uint8" else 1) - exact.adv_images).max() <= 0.5 / 255 + 1e-6
    reps.save(tmp_path / "reps.safetensors")
    assert np.array_equal(type(reps).load(tmp_path / "reps.safetensors").adv_images, reps.adv_images)


def test_what_cannot_be_kept_is_refused_first(model):
    with pytest.raises(ValueError, match=r"keep_images must be one of float, uint8, None. Got 'int8'"):
        extract(model, BYTES, LABELS, keep_images="int8")


def test_a_read_only_array_is_taken_without_a_warning():
    images = BYTES.copy()
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert given_images(images, LABELS).images.shape == BYTES.shape
