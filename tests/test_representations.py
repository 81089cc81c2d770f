import dataclasses

import numpy as np
import pytest
import torch

from analysis.maps import save_maps
from analysis.representations import RepresentationSet
from tla_core.checkpoint import CheckpointError, save_tensors

N, D, CLASSES = 6, 4, 3


def arrays(adv_images=np.float32):
    """A full set of arguments, labels 0, 1, 2, 0, 1, 2; two clean and four adversarial mistakes."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    logits = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 0, 2, 1]]
    adv_logits = np.eye(CLASSES, dtype=np.float32)[[0, 1, 0, 1, 1, 0]]
    images = rng.integers(0, 256, size=(N, 1, 5, 5))
    return {
        "features": rng.normal(size=(N, D)).astype(np.float32),
        "labels": labels,
        "adv_features": rng.normal(size=(N, D)).astype(np.float32),
        "logits": logits,
        "adv_logits": adv_logits,
        "adv_images": images.astype(np.uint8) if adv_images == np.uint8 else (images / 255).astype(np.float32),
        "class_names": ("cat", "dog", "deer"),
        "meta": {"model": "mine", "eps": 8 / 255, "steps": 20},
    }


def assert_same(a, b):
    for field in dataclasses.fields(RepresentationSet):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype, field.name
        else:
            assert x == y, field.name


# Made from arrays -----------------------------------------------------------------------------------------------------


def test_what_is_not_given_follows_from_what_is():
    reps = RepresentationSet.from_arrays(**{k: v for k, v in arrays().items() if k != "class_names"})
    np.testing.assert_array_equal(reps.predictions, [0, 1, 2, 0, 2, 1])
    np.testing.assert_array_equal(reps.adv_predictions, [0, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(reps.indices, np.arange(N))
    assert reps.class_names == ("0", "1", "2") and len(reps) == N


def test_classes_are_named_up_to_the_highest_that_any_array_knows():
    features = np.ones((2, 3))
    assert RepresentationSet.from_arrays(features, [0, 1]).class_names == ("0", "1")
    assert len(RepresentationSet.from_arrays(features, [0, 1], predictions=[0, 4]).class_names) == 5
    assert len(RepresentationSet.from_arrays(features, [0, 1], logits=np.zeros((2, 7))).class_names) == 7
    assert RepresentationSet.from_arrays(np.ones((0, 3)), np.zeros(0, int)).class_names == ()


@pytest.mark.parametrize("kind", ["lists", "torch", "float64", "wants gradients", "other integers", "Fortran order"])
def test_arrays_of_every_kind_are_converted(kind):
    given = arrays()
    floats, integers = ("features", "adv_features", "logits", "adv_logits"), ("labels",)
    change = {
        "lists": lambda a: a.tolist(),
        "torch": torch.from_numpy,
        "float64": lambda a: a.astype(np.float64) if a.dtype == np.float32 else a,
        "wants gradients": lambda a: torch.from_numpy(a).requires_grad_() if a.dtype == np.float32 else a,
        "other integers": lambda a: a.astype(np.uint8) if a.dtype == np.int64 else a,
        "Fortran order": np.asfortranarray,
    }[kind]
    changed = given | {name: change(given[name]) for name in (*floats, *integers)}
    reps = RepresentationSet.from_arrays(**changed)
    assert_same(reps, RepresentationSet.from_arrays(**given))
    assert all(getattr(reps, name).flags.c_contiguous for name in floats)


def test_arrays_are_not_changed():
    given = arrays()
    before = {name: np.array(value) for name, value in given.items() if isinstance(value, np.ndarray)}
    RepresentationSet.from_arrays(**given).subset([0])
    assert all((given[name] == value).all() for name, value in before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.ones(N)}, r"features must have the shape \(6, d\)\. Got \(6,\)"),
        ({"features": np.full((N, D), np.nan)}, r"features must be finite\. Got NaN or infinity in 6 of 6 rows"),
        ({"adv_features": np.full((N, D), np.inf)}, r"adv_features must be finite"),
        ({"adv_features": np.ones((N, D + 1))}, r"adv_features must have the shape \(6, 4\)\. Got \(6, 5\)"),
        ({"adv_features": np.ones((N - 1, D))}, r"adv_features must have the shape \(6, d\)\. Got \(5, 4\)"),
        ({"logits": np.zeros((N - 1, CLASSES))}, r"logits must have the shape \(6, d\)\. Got \(5, 3\)"),
        ({"labels": np.zeros(N - 1, int)}, r"labels must have the shape \(6,\), one for each image\. Got \(5,\)"),
        ({"labels": np.zeros((N, 1), int)}, r"labels must have the shape \(6,\), one for each image\. Got \(6, 1\)"),
        ({"labels": np.zeros(N)}, r"labels must be integers\. Got float64"),
        (
            {"labels": np.array([0, 1, 2, 3, 0, 0])},
            r"labels must be in 0\.\.2, since there are 3 class names\. Got .* to 3",
        ),
        ({"labels": np.array([0, 1, 2, -1, 0, 0])}, r"labels must be in 0\.\.2.* Got values from -1 to 2"),
        ({"predictions": np.full(N, 9)}, r"predictions must be in 0\.\.2"),
        ({"adv_predictions": np.full(N, 9)}, r"adv_predictions must be in 0\.\.2"),
        ({"indices": np.arange(N + 1)}, r"indices must have the shape \(6,\), one for each image\. Got \(7,\)"),
        ({"indices": np.linspace(0, 1, N)}, r"indices must be integers\. Got float64"),
        (
            {"adv_images": np.zeros((N, 5, 5), np.uint8)},
            r"adv_images must have the shape \(6, c, h, w\)\. Got \(6, 5, 5\)",
        ),
        ({"adv_images": np.zeros((N, 1, 5, 5))}, r"adv_images must be uint8 or float32\. Got float64"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RepresentationSet.from_arrays(**arrays() | changes)


def test_the_first_bad_row_is_named():
    features = np.ones((N, D), np.float32)
    features[[2, 4], 1] = np.nan
    with pytest.raises(ValueError, match="in 2 of 6 rows, the first is row 2"):
        RepresentationSet.from_arrays(features, np.zeros(N, int))


# What it says ---------------------------------------------------------------------------------------------------------


def test_accuracies_count_rows():
    reps = RepresentationSet.from_arrays(**arrays())
    assert reps.accuracy == 4 / 6
    # Row 4 is right under the attack, but not on the clean image.
    assert reps.robust_accuracy == 2 / 6
    bare = RepresentationSet.from_arrays(np.ones((2, 3)), [0, 1])
    assert bare.accuracy is None and bare.robust_accuracy is None


def test_repr_says_what_it_holds():
    reps = RepresentationSet.from_arrays(**arrays())
    expected = "RepresentationSet(6 images x 4, 3 classes, clean and adversarial, accuracy 0.667, robust 0.333)"
    assert repr(reps) == expected
    bare = RepresentationSet.from_arrays(np.ones((2, 3)), [0, 1])
    assert repr(bare) == "RepresentationSet(2 images x 3, 2 classes, clean only)"


def test_a_subset_by_positions_or_by_a_mask():
    reps = RepresentationSet.from_arrays(**arrays(), indices=np.arange(100, 100 + N))
    rows = np.array([5, 0, 3])
    part = reps.subset(rows)
    for name in ("features", "adv_features", "logits", "adv_logits", "adv_images", "labels", "predictions", "indices"):
        np.testing.assert_array_equal(getattr(part, name), getattr(reps, name)[rows])
    assert part.class_names == reps.class_names and part.meta == reps.meta and part.meta is not reps.meta
    mask = np.isin(np.arange(N), rows)
    assert_same(reps.subset(mask), reps.subset(np.flatnonzero(mask)))
    assert reps.subset([]).features.shape == (0, D)
    assert RepresentationSet.from_arrays(np.ones((2, 3)), [0, 1]).subset([1]).adv_features is None


def test_two_sets_can_be_compared_and_hashed():
    a, b = (RepresentationSet.from_arrays(**arrays()) for _ in range(2))
    assert a == a and a != b and len({a, b}) == 2


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adv_images", [np.uint8, np.float32])
def test_save_and_load_round_trip(tmp_path, adv_images):
    reps = RepresentationSet.from_arrays(**arrays(adv_images))
    reps.save(tmp_path / "below" / "reps.safetensors")
    assert_same(RepresentationSet.load(tmp_path / "below" / "reps.safetensors"), reps)
    clean = RepresentationSet.from_arrays(np.ones((2, 3)), [0, 1])
    clean.save(tmp_path / "clean.safetensors")
    assert_same(RepresentationSet.load(tmp_path / "clean.safetensors"), clean)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["clean.safetensors", "reps.safetensors"]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        RepresentationSet.from_arrays(**arrays()).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("where", ["array", "metadata", "end"])
def test_an_altered_file_is_refused(tmp_path, where):
    path = tmp_path / "reps.safetensors"
    RepresentationSet.from_arrays(**arrays()).save(path)
    content = bytearray(path.read_bytes())
    if where == "array":
        content[-3] ^= 1
    elif where == "metadata":
        content = content.replace(b"deer", b"dear")
    else:
        content = content[:-8]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        RepresentationSet.load(path)


def test_files_of_another_kind_are_refused(tmp_path):
    save_maps(tmp_path / "maps", {}, {})
    with pytest.raises(CheckpointError, match=r"holds no representations\. Got the kind 'class maps'"):
        RepresentationSet.load(tmp_path / "maps")
    save_tensors(tmp_path / "other", {"features": np.ones(3)}, {})
    with pytest.raises(CheckpointError, match=r"holds no representations\. Got the kind None"):
        RepresentationSet.load(tmp_path / "other")
    torch.save({"features": torch.ones(3)}, tmp_path / "pickle")
    with pytest.raises(CheckpointError, match="is a pickle"):
        RepresentationSet.load(tmp_path / "pickle")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing"):
        RepresentationSet.load(tmp_path / "nothing")
