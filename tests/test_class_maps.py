import dataclasses

import numpy as np
import pytest

from analysis.maps import ClassMap, align_maps, load_maps, map_class, map_classes, save_maps
from analysis.projection import project
from analysis.representations import RepresentationSet
from tla_core.checkpoint import CheckpointError


def make_set(n=120, n_classes=2, adversarial=True):
    """Classes in separate directions; every second adversarial example has moved to the next class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % n_classes
    centres = np.eye(n_classes, 8)
    taken_for = np.where(np.arange(n) // n_classes % 2, labels, (labels + 1) % n_classes)
    adversarial_part = {
        "adv_features": centres[taken_for] + 0.1 * rng.normal(size=(n, 8)), "adv_predictions": taken_for
    }  # fmt: skip
    return RepresentationSet.from_arrays(
        centres[labels] + 0.1 * rng.normal(size=(n, 8)), labels, predictions=labels,
        **adversarial_part if adversarial else {},
    )  # fmt: skip


def assert_same(a, b):
    assert (a.true_class, a.params) == (b.true_class, b.params)
    for field in dataclasses.fields(ClassMap):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype


def test_rows_belong_to_the_class_and_coordinates_to_the_rows():
    reps = make_set()
    mapped = map_class(reps, 1, n_iter=250)
    np.testing.assert_array_equal(mapped.clean_rows, np.arange(1, 120, 2))
    np.testing.assert_array_equal(mapped.adv_rows, np.arange(1, 120, 2))
    assert mapped.clean_coords.shape == mapped.adv_coords.shape == (60, 2)
    np.testing.assert_array_equal(mapped.adv_predictions, reps.adv_predictions[mapped.adv_rows])
    together = np.concatenate([reps.features[mapped.clean_rows], reps.adv_features[mapped.adv_rows]])
    projected = project(together, n_iter=250)
    np.testing.assert_array_equal(
        np.concatenate([mapped.clean_coords, mapped.adv_coords]), projected.coords.astype("f4")
    )
    assert mapped.params == projected.params and mapped.params["perplexity"] == 15


def test_examples_that_left_their_class_lie_apart_from_its_clean_images():
    mapped = map_class(make_set(), 0, n_iter=500)
    distances = np.linalg.norm(mapped.adv_coords[:, None] - mapped.clean_coords[None], axis=2).min(1)
    false = mapped.adv_predictions != 0
    assert distances[false].min() > distances[~false].max()


def test_limits_take_rows_evenly():
    mapped = map_class(make_set(), 0, n_clean=40, n_adversarial=20, n_iter=250)
    for rows, n in ((mapped.clean_rows, 40), (mapped.adv_rows, 20)):
        assert len(np.unique(rows)) == n and (rows % 2 == 0).all()
        assert (rows[0], rows[-1]) == (0, 118)
        assert np.diff(rows).max() <= 2 * np.ceil(59 / (n - 1))
    assert mapped.adv_coords.shape == (20, 2)
    everything = map_class(make_set(), 0, n_clean=60, n_adversarial=10**6, n_iter=250)
    assert (len(everything.clean_rows), len(everything.adv_rows)) == (60, 60)


def test_settings_reach_the_projection():
    mapped = map_class(make_set(), 0, method="pca", metric="euclidean")
    assert (mapped.params["method"], mapped.params["metric"]) == ("pca", "euclidean")
    with pytest.raises(ValueError, match="perplexity=200"):
        map_class(make_set(), 0, perplexity=200)


def test_every_class_of_a_set_is_mapped():
    maps = map_classes(make_set(), method="pca")
    assert list(maps) == [0, 1] and [m.true_class for m in maps.values()] == [0, 1]
    assert_same(maps[1], map_class(make_set(), 1, method="pca"))


def test_sets_without_an_adversarial_part_or_the_class_are_refused():
    with pytest.raises(ValueError, match="no adversarial part: pass attack= to extract"):
        map_class(make_set(adversarial=False), 0)
    with pytest.raises(ValueError, match=r"no image of class 7\. There are: \[0, 1\]"):
        map_class(make_set(), 7)


@pytest.mark.parametrize("name", ["n_clean", "n_adversarial"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_limits_must_leave_points(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1\. Got {value}"):
        map_class(make_set(), 0, **{name: value})


def test_save_and_load_round_trip_with_more_than_ten_classes(tmp_path):
    maps = map_classes(make_set(n=120, n_classes=12), method="pca")
    save_maps(tmp_path / "maps.safetensors", maps, {"checkpoint_sha256": "abc"})
    loaded = load_maps(tmp_path / "maps.safetensors")
    assert list(loaded) == list(range(12))
    for k, mapped in maps.items():
        assert_same(loaded[k], mapped)


def test_files_of_another_kind_and_altered_ones_are_refused(tmp_path):
    path = tmp_path / "reps"
    make_set().save(path)
    with pytest.raises(CheckpointError, match=r"holds no class maps\. Got the kind 'representations'"):
        load_maps(path)
    save_maps(path, map_classes(make_set(), method="pca"), {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        load_maps(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_maps(tmp_path / "nothing")


def test_repr_says_what_it_shows():
    mapped = map_class(make_set(), 1, method="pca", n_adversarial=5)
    assert repr(mapped) == "ClassMap(class 1, 60 clean and 5 adversarial points)"


def test_maps_made_side_by_side_are_the_same():
    """Bit for bit. Processes are spawned: this takes seconds."""
    reps, settings = make_set(n=60), {"n_adversarial": 20, "perplexity": 5, "n_iter": 250}
    one, two = (map_classes(reps, n_jobs=n_jobs, **settings) for n_jobs in (1, 2))
    assert list(one) == list(two) == [0, 1]
    for k, mapped in one.items():
        assert_same(two[k], mapped)
        assert_same(mapped, map_class(reps, k, **settings))


@pytest.mark.parametrize("n_jobs", [0, -1, 1.0, True, None])
def test_the_number_of_processes_must_be_one_at_least(n_jobs):
    with pytest.raises(ValueError, match=rf"n_jobs must be a whole number of at least 1\. Got {n_jobs}"):
        map_classes(make_set(), n_jobs=n_jobs)


def test_all_classes_are_checked_before_any_is_mapped(monkeypatch):
    monkeypatch.setattr("analysis.maps.project", lambda *_, **__: pytest.fail("nothing is to be mapped"))
    with pytest.raises(ValueError, match="no adversarial part: pass attack= to extract"):
        map_classes(make_set(adversarial=False))
    with pytest.raises(ValueError, match=r"n_clean must be a whole number of at least 1\. Got 0"):
        map_classes(make_set(), n_clean=0)


# Aligned with another model's -----------------------------------------------------------------------------------------


def turned(mapped, angle, scale=1.0, shift=(0.0, 0.0)):
    """The same map in another position."""
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = {name: (getattr(mapped, name) @ turn + shift).astype("f4") for name in ("clean_coords", "adv_coords")}
    return dataclasses.replace(mapped, **moved)


def test_aligned_maps_lie_on_each_other_class_by_class():
    reference = map_classes(make_set(n_classes=3), method="pca", n_adversarial=15)
    maps = {k: turned(mapped, angle=1 + k, scale=2 + k, shift=(k, -5)) for k, mapped in reference.items()}
    aligned = align_maps(maps, reference)
    assert list(aligned) == [0, 1, 2]
    for k, mapped in aligned.items():
        np.testing.assert_allclose(mapped.clean_coords, reference[k].clean_coords, atol=1e-5)
        np.testing.assert_allclose(mapped.adv_coords, reference[k].adv_coords, atol=1e-5)
        assert mapped.clean_coords.dtype == mapped.adv_coords.dtype == np.float32
        # All but the coordinates is the map's own.
        coords = {name: getattr(mapped, name) for name in ("clean_coords", "adv_coords")}
        assert_same(mapped, dataclasses.replace(maps[k], **coords))


def test_aligning_changes_no_neighbours_and_not_the_maps_it_is_given():
    maps, reference = (map_classes(make_set(), method="pca", metric=metric) for metric in ("cosine", "euclidean"))
    before = {k: mapped.clean_coords.copy() for k, mapped in maps.items()}
    aligned = align_maps(maps, reference)
    for k, mapped in maps.items():
        np.testing.assert_array_equal(mapped.clean_coords, before[k])
        distances, new = (
            np.linalg.norm(m.clean_coords[:, None] - m.adv_coords[None], axis=2) for m in (mapped, aligned[k])
        )
        np.testing.assert_allclose(new / distances, (new / distances).mean(), rtol=1e-3)


def test_maps_of_other_classes_or_items_are_not_aligned():
    maps = map_classes(make_set(), method="pca")
    with pytest.raises(ValueError, match=r"expected maps of the same classes\. Got \[0, 1\] and \[0\]"):
        align_maps(maps, {0: maps[0]})
    for limit in ("n_clean", "n_adversarial"):
        fewer = map_classes(make_set(), method="pca", **{limit: 20})
        with pytest.raises(ValueError, match=r"maps of class 0 show other items\. Make both with the same settings"):
            align_maps(maps, fewer)


def test_a_class_of_few_images_gets_the_largest_perplexity_that_it_allows():
    reps = make_set(n=18)
    class_map = map_class(reps, 0)
    assert class_map.params["perplexity"] == 5 and len(class_map.clean_rows) == 9
    assert {each.params["perplexity"] for each in map_classes(reps).values()} == {5}
    with pytest.raises(ValueError, match="too few for perplexity=15"):
        map_class(reps, 0, perplexity=15)
