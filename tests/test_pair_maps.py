"""The map of a pair of classes: which points it has, and where they come from."""

import dataclasses

import numpy as np
import pytest

from analysis.maps import PairMap, align_pair_maps, load_pair_maps, map_classes, map_pair, save_maps, save_pair_maps
from analysis.projection import project
from analysis.representations import RepresentationSet
from tla_core.checkpoint import CheckpointError

NAMES = ("frog", "horse", "truck", "ship")


def make_set(n=150, adversarial=True, **changes):
    """Three classes in separate directions; every second frog is taken for a horse, and no truck for anything else."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    taken_for = np.where((labels < 2) & (np.arange(n) // 3 % 2 == 0), 1 - labels, labels)
    centres = np.eye(3, 6)
    values = {"predictions": labels, "class_names": NAMES}
    if adversarial:
        values |= {"adv_features": centres[taken_for] + 0.1 * rng.normal(size=(n, 6)), "adv_predictions": taken_for}
    return RepresentationSet.from_arrays(centres[labels] + 0.1 * rng.normal(size=(n, 6)), labels, **values | changes)


def assert_same(a, b):
    for field in dataclasses.fields(PairMap):
        x, y = getattr(a, field.name), getattr(b, field.name)
        np.testing.assert_array_equal(x, y)
        assert type(x) is type(y) and getattr(x, "dtype", None) == getattr(y, "dtype", None)


def test_a_pair_shows_clean_images_of_both_and_what_is_taken_for_the_second():
    reps = make_set()
    mapped = map_pair(reps, "frog", "horse", n_iter=250)
    assert mapped.classes == (0, 1)
    # Naive: row by row.
    clean = [row for k in (0, 1) for row in range(len(reps)) if reps.labels[row] == k]
    adversarial = [row for row in range(len(reps)) if reps.labels[row] == 0 and reps.adv_predictions[row] == 1]
    assert mapped.clean_rows.tolist() == clean and mapped.adv_rows.tolist() == adversarial
    np.testing.assert_array_equal(mapped.clean_labels, reps.labels[clean])
    assert mapped.n_attacked == 50 and mapped.mistaken_share == len(adversarial) / 50 == 0.5
    together = np.concatenate([reps.features[clean], reps.adv_features[adversarial]])
    projected = project(together, n_iter=250)
    coords = np.concatenate([mapped.clean_coords, mapped.adv_coords])
    np.testing.assert_array_equal(coords, projected.coords.astype("f4"))
    assert coords.dtype == np.float32 and mapped.params == projected.params


def test_classes_are_named_or_numbered():
    reps = make_set()
    by_name = map_pair(reps, "horse", "frog", method="pca")
    for pair in ((1, 0), (np.int64(1), "frog")):
        assert_same(by_name, map_pair(reps, *pair, method="pca"))
    assert by_name.classes == (1, 0) and (reps.labels[by_name.adv_rows] == 1).all()
    # A digit's name is its name, whatever its number.
    digits = make_set(class_names=("2", "1", "0"))
    assert map_pair(digits, "2", "1", method="pca").classes == (0, 1)
    assert map_pair(digits, 2, 1, method="pca").classes == (2, 1)


def test_only_clean_points_are_limited_and_taken_evenly():
    reps = make_set()
    mapped = map_pair(reps, 0, 1, n_clean=10, method="pca")
    for k in (0, 1):
        rows = mapped.clean_rows[mapped.clean_labels == k]
        assert len(np.unique(rows)) == 10 and (reps.labels[rows] == k).all()
        assert (rows[0], rows[-1]) == (k, 147 + k) and np.diff(rows).max() <= 3 * np.ceil(49 / 9)
    assert len(mapped.adv_rows) == 25 and mapped.mistaken_share == 0.5


def test_a_pair_of_which_nothing_is_mistaken_has_no_adversarial_points():
    mapped = map_pair(make_set(), "truck", "frog", method="pca")
    assert mapped.adv_coords.shape == (0, 2) and mapped.adv_rows.shape == (0,) and mapped.mistaken_share == 0
    assert repr(mapped) == "PairMap(classes 2 to 0, 100 clean and 0 adversarial points)"


def test_settings_reach_the_projection_and_the_set_is_left_alone():
    reps = make_set()
    before = reps.features.copy(), reps.adv_features.copy()
    mapped = map_pair(reps, 0, 1, method="pca", metric="euclidean")
    assert (mapped.params["method"], mapped.params["metric"]) == ("pca", "euclidean")
    np.testing.assert_array_equal(reps.features, before[0])
    np.testing.assert_array_equal(reps.adv_features, before[1])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("dog", "horse"), r"the set holds no image of class 'dog'\. There are: \['frog', 'horse', 'truck'\]"),
        (("frog", "ship"), r"no image of class 'ship'"),  # has a name, but no image
        ((0, 3), "no image of class 3"),
        ((-1, 0), "no image of class -1"),
        (("frog", None), "no image of class None"),
        (("frog", "frog"), r"a pair must have two classes\. Got 'frog' twice"),
        (("frog", 0), r"a pair must have two classes\. Got 'frog' twice"),
    ],
)
def test_other_pairs_are_refused(pair, message):
    with pytest.raises(ValueError, match=message):
        map_pair(make_set(), *pair, method="pca")


@pytest.mark.parametrize("n_clean", [0, -1, 2.5, True, None])
def test_the_limit_must_leave_points(n_clean):
    with pytest.raises(ValueError, match=rf"n_clean must be a whole number of at least 1\. Got {n_clean}"):
        map_pair(make_set(), 0, 1, n_clean=n_clean)


def test_few_points_have_the_largest_perplexity_that_they_allow_unless_one_is_asked_for():
    assert map_pair(make_set(), "truck", "frog", n_clean=3).params["perplexity"] == 1
    with pytest.raises(ValueError, match="6 rows, too few for perplexity=15"):
        map_pair(make_set(), "truck", "frog", n_clean=3, perplexity=15)


def test_sets_without_an_adversarial_part_are_refused():
    with pytest.raises(ValueError, match="no adversarial part: pass attack= to extract"):
        map_pair(make_set(adversarial=False), 0, 1)


def test_save_and_load_round_trip_with_a_pair_without_adversarial_points(tmp_path):
    reps = make_set()
    maps = [map_pair(reps, *pair, method="pca") for pair in ((0, 1), (2, 0), (1, 0))]
    save_pair_maps(tmp_path / "pairs.safetensors", maps, {"checkpoint_sha256": "abc"})
    loaded = load_pair_maps(tmp_path / "pairs.safetensors")
    assert len(loaded) == 3
    for mapped, again in zip(maps, loaded, strict=True):
        assert_same(mapped, again)
    save_pair_maps(tmp_path / "none.safetensors", [], {})
    assert load_pair_maps(tmp_path / "none.safetensors") == []


def test_files_of_another_kind_and_altered_ones_are_refused(tmp_path):
    path = tmp_path / "maps"
    save_maps(path, map_classes(make_set(), method="pca"), {})
    with pytest.raises(CheckpointError, match=r"holds no pair maps\. Got the kind 'class maps'"):
        load_pair_maps(path)
    save_pair_maps(path, [map_pair(make_set(), 0, 1, method="pca")], {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        load_pair_maps(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_pair_maps(tmp_path / "nothing")


def test_maps_of_two_models_are_turned_by_their_clean_images_and_the_others_move_along():
    mapped = map_pair(make_set(), "frog", "horse", n_iter=250)
    turn = 0.5 * np.array([[0, 1], [1, 0]], dtype=np.float32)  # mirrored, and half as large
    moved = dataclasses.replace(mapped, clean_coords=mapped.clean_coords @ turn, adv_coords=mapped.adv_coords @ turn)
    (aligned,) = align_pair_maps([moved], [mapped])
    np.testing.assert_allclose(aligned.clean_coords, mapped.clean_coords, atol=1e-4)
    np.testing.assert_allclose(aligned.adv_coords, mapped.adv_coords, atol=1e-4)
    none_mistaken = dataclasses.replace(moved, adv_coords=moved.adv_coords[:0])
    assert align_pair_maps([none_mistaken], [mapped])[0].adv_coords.shape == (0, 2)


def test_maps_of_other_images_are_not_aligned():
    mapped = map_pair(make_set(), "frog", "horse", n_iter=250)
    with pytest.raises(ValueError, match=r"show other images\. Make both with the same settings"):
        align_pair_maps([dataclasses.replace(mapped, clean_rows=mapped.clean_rows + 1)], [mapped])
