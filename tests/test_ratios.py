from types import SimpleNamespace

import numpy as np
import pytest
from oracles import distance, ratio_per_class
from tiny import changed

from analysis import ratios
from analysis.features import METRICS
from analysis.ratio_errors import bootstrap_r_prime
from analysis.ratios import ratio, ratio_r, ratio_r_prime
from analysis.representations import RepresentationSet


def make_case(seed=0, n=40, m=25, d=6, n_classes=4, signed=True):
    rng = np.random.default_rng(seed)
    features, cross = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    if not signed:
        features, cross = np.maximum(features + 0.5, 0) + 1e-3, np.maximum(cross + 0.5, 0)  # as after a ReLU
        cross[:, 0] += 0.1
    scales = rng.uniform(0.01, 100, size=(n, 1))
    return cross, rng.integers(0, n_classes, m), features * scales, rng.integers(0, n_classes, n)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_matches_double_loop(metric, signed):
    cross, cross_classes, features, labels = make_case(signed=signed)
    result = ratio(cross, cross_classes, features, labels, metric=metric)
    expected = ratio_per_class(cross, cross_classes, features, labels, metric, 4)
    np.testing.assert_allclose(result.per_class, expected, rtol=1e-10)
    assert result.value == pytest.approx(expected.mean(), rel=1e-10)
    assert result.left_out == ()
    np.testing.assert_allclose(result.cross / result.inner, expected, rtol=1e-10)


def test_hand_computed_example():
    # inner = (1, 1 - s), cross = (1 - s, 1 - s / 2) with s = 1 / sqrt(2), so that the ratios add up to 2.5
    result = ratio([[1, 1], [0, 1]], [0, 1], [[1, 0], [0, 1], [1, 0], [1, 1]], [0, 0, 1, 1])
    s = 0.5**0.5
    np.testing.assert_allclose(result.inner, [1, 1 - s], rtol=1e-14)
    np.testing.assert_allclose(result.cross, [1 - s, 1 - s / 2], rtol=1e-14)
    assert result.value == pytest.approx(1.25, rel=1e-14)
    assert repr(result) == "RatioResult(value=1.25, metric='angular', 2 of 2 classes)"




def test_absolute_value_makes_opposite_vectors_equal():
    features, labels = [[1.0, 0.0], [-0.6, 0.8]], [0, 0]
    angular = ratio([[-3.0, 0.0]], [0], features, labels)
    cosine = ratio([[-3.0, 0.0]], [0], features, labels, metric="cosine")
    assert angular.value == pytest.approx(0.2 / 0.4)
    assert cosine.value == pytest.approx((2 + 0.4) / 2 / 1.6)


@pytest.mark.parametrize("entries", [1, 9, 50])
@pytest.mark.parametrize("metric", METRICS)
def test_blocks_do_not_change_the_result(metric, entries, monkeypatch):
    case = make_case(seed=1)
    whole = ratio(*case, metric=metric)
    monkeypatch.setattr(ratios, "_BLOCK_ENTRIES", entries)
    np.testing.assert_allclose(ratio(*case, metric=metric).per_class, whole.per_class, rtol=1e-12)


def test_no_tile_exceeds_the_block(monkeypatch):
    sizes = []
    tile = ratios._tile
    monkeypatch.setattr(ratios, "_BLOCK_ENTRIES", 20)
    monkeypatch.setattr(ratios, "_tile", lambda a, b, metric: sizes.append(len(a) * len(b)) or tile(a, b, metric))
    ratio(*make_case())
    assert max(sizes) <= 20


@pytest.mark.parametrize("metric", METRICS)
def test_rotation_leaves_ratios(metric):
    cross, cross_classes, features, labels = make_case(seed=2)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    before = ratio(cross, cross_classes, features, labels, metric=metric)
    after = ratio(cross @ rotation, cross_classes, features @ rotation, labels, metric=metric)
    np.testing.assert_allclose(after.per_class, before.per_class, rtol=1e-10)


def test_scaling_each_vector_leaves_angular_ratios():
    cross, cross_classes, features, labels = make_case(seed=4)
    rng = np.random.default_rng(5)
    before = ratio(cross, cross_classes, features, labels)
    scaled = features * 10 ** rng.uniform(-150, 150, size=(len(features), 1))
    after = ratio(cross * rng.uniform(0.1, 10, size=(len(cross), 1)), cross_classes, scaled, labels)
    np.testing.assert_allclose(after.per_class, before.per_class, rtol=1e-10)


def test_permutation_leaves_ratios():
    cross, cross_classes, features, labels = make_case(seed=6)
    order = np.random.default_rng(7).permutation(len(labels))
    before = ratio(cross, cross_classes, features, labels)
    np.testing.assert_allclose(
        ratio(cross, cross_classes, features[order], labels[order]).per_class, before.per_class, rtol=1e-12
    )


def test_float32_input_is_computed_in_float64():
    cross, cross_classes, features, labels = make_case(seed=8)
    cross, features = cross.astype(np.float32), features.astype(np.float32)
    expected = ratio_per_class(cross, cross_classes, features, labels, "angular", 4)
    result = ratio(cross, cross_classes, features, labels)
    assert result.per_class.dtype == np.float64
    np.testing.assert_allclose(result.per_class, expected, rtol=1e-12)


def test_classes_without_a_ratio_are_left_out():
    x = np.random.default_rng(9).normal(size=(10, 5))
    labels = np.array([0, 0, 0, 1, 2, 2, 4, 4, 4, 4])  # one image of 1; none of 3 and 5
    result = ratio(x[:4] + 1, [0, 1, 3, 4], x, labels, n_classes=6)
    assert result.left_out == (1, 2, 3, 5)  # 2 has no adversary
    assert np.isnan(result.per_class[[1, 2, 3, 5]]).all()
    assert np.isnan(result.inner[[1, 3, 5]]).all() and result.inner[2] > 0
    assert np.isnan(result.cross[[2, 3, 5]]).all() and result.cross[1] > 0
    assert result.value == pytest.approx(result.per_class[[0, 4]].mean())
    assert repr(result).endswith("2 of 6 classes, left out: 1, 2, 3, 5)")
    many = ratio(x[:4] + 1, [0, 1, 3, 4], x, labels, n_classes=1000)
    assert repr(many).endswith("2 of 1000 classes, left out: 1, 2, 3, 5, 6, 7, 8, 9 and 990 more)")


@pytest.mark.parametrize("metric", METRICS)
def test_identical_duplicates_have_inner_distance_zero(metric):
    rng = np.random.default_rng(10)
    duplicates = np.repeat(rng.normal(size=(1, 300)).astype(np.float32) * 1e3, 7, axis=0)
    others = rng.normal(size=(5, 300)).astype(np.float32)
    labels = [0] * 7 + [1] * 5
    result = ratio(others, [0, 0, 0, 1, 1], np.vstack([duplicates, others]), labels, metric=metric)
    assert result.inner[0] == 0 and result.left_out == (0,)
    assert np.isfinite(result.value)


@pytest.mark.parametrize("metric", ["angular", "cosine"])
def test_multiples_of_one_vector_have_inner_distance_zero(metric):
    rng = np.random.default_rng(11)
    multiples = rng.normal(size=(1, 50)).astype(np.float32) * rng.uniform(0.1, 9, size=(8, 1)).astype(np.float32)
    assert ratio(multiples + 1, [0] * 8, multiples, [0] * 8, metric=metric).left_out == (0,)


def test_small_but_real_spread_is_kept():
    rng = np.random.default_rng(12)
    features = 1 + 1e-4 * rng.normal(size=(6, 4))
    expected = ratio_per_class(features[::-1] + 0.1, [0] * 6, features, [0] * 6, "angular", 1)
    np.testing.assert_allclose(ratio(features[::-1] + 0.1, [0] * 6, features, [0] * 6).per_class, expected, rtol=1e-6)


def test_no_adversaries_at_all_gives_nan():
    result = ratio(np.empty((0, 3)), [], np.eye(3), [0, 0, 1])
    assert np.isnan(result.value) and result.left_out == (0, 1)


def test_inputs_are_not_mutated():
    case = make_case(seed=13)
    copies = [array.copy() for array in case]
    for metric in METRICS:
        ratio(*case, metric=metric)
    for array, copy in zip(case, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def make_reps(**changes):
    rng = np.random.default_rng(14)
    labels = np.repeat([0, 1, 2], 8)
    features = rng.normal(size=(24, 5)).astype(np.float32)
    fields = {
        "features": features,
        "adv_features": features + rng.normal(size=(24, 5)).astype(np.float32),
        "labels": labels,
        "adv_predictions": rng.integers(0, 3, 24),
        "class_names": ("a", "b", "c", "d"),
    }
    return SimpleNamespace(**(fields | changes))


def test_r_takes_adversaries_mistaken_for_a_class():
    reps = make_reps()
    wrong = reps.adv_predictions != reps.labels
    expected = ratio_per_class(
        reps.adv_features[wrong], reps.adv_predictions[wrong], reps.features, reps.labels, "angular", 4
    )
    result = ratio_r(reps)
    np.testing.assert_allclose(result.per_class, expected, rtol=1e-10)
    assert result.left_out == (3,)  # named, but without images


def test_r_prime_takes_all_adversaries_of_a_class():
    reps = make_reps()
    expected = ratio_per_class(reps.adv_features, reps.labels, reps.features, reps.labels, "euclidean", 4)
    np.testing.assert_allclose(ratio_r_prime(reps, metric="euclidean").per_class, expected, rtol=1e-10)


def test_r_of_a_model_that_no_attack_fools_is_nan():
    reps = make_reps(adv_predictions=np.repeat([0, 1, 2], 8))
    assert np.isnan(ratio_r(reps).value)
    assert ratio_r(reps).left_out == (0, 1, 2, 3)


def test_predictions_beyond_the_named_classes_are_left_out():
    predictions = np.full(24, 9)
    assert ratio_r(make_reps(adv_predictions=predictions)).left_out == tuple(range(10))
    assert len(ratio_r_prime(make_reps(class_names=None)).per_class) == 3


@pytest.mark.parametrize("function", [ratio_r, ratio_r_prime])
def test_representations_without_adversaries_raise(function):
    with pytest.raises(ValueError, match=r"reps\.adv_features is None.*Pass attack= to analysis\.extract"):
        function(make_reps(adv_features=None))
    with pytest.raises(ValueError, match=r"10 rows, reps\.labels 24; expected one adversarial example per image"):
        function(make_reps(adv_features=np.ones((10, 5))))
    with pytest.raises(ValueError, match=r"reps\.adv_features row 20 is a zero vector"):
        function(make_reps(adv_features=np.where(np.arange(24)[:, None] == 20, 0.0, np.ones((24, 5)))))


def test_r_without_adversarial_predictions_raises():
    with pytest.raises(ValueError, match=r"reps\.adv_predictions is None"):
        ratio_r(make_reps(adv_predictions=None))


X = np.arange(1.0, 13.0).reshape(4, 3)
Y = np.array([0, 0, 1, 1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_raise(metric, bad):
    with pytest.raises(ValueError, match=r"^features row 2 holds NaN or infinity"):
        ratio(X, Y, changed(X, (2, 1), bad), Y, metric=metric)
    with pytest.raises(ValueError, match=r"^cross_features row 3 holds NaN or infinity"):
        ratio(changed(X, (3, 0), bad), Y, X, Y, metric=metric)


@pytest.mark.parametrize("metric", ["angular", "cosine"])
def test_zero_vectors_raise(metric):
    with pytest.raises(ValueError, match=r"^features row 1 is a zero vector; metric='" + metric):
        ratio(X, Y, changed(X, 1, 0), Y, metric=metric)
    with pytest.raises(ValueError, match=r"^cross_features row 2 is a zero vector"):
        ratio(changed(X, 2, 0), Y, X, Y, metric=metric)


def test_zero_vectors_have_euclidean_distances():
    assert np.isfinite(ratio(changed(X, 2, 0), Y, changed(X, 1, 0), Y, metric="euclidean").value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y, X[0], Y), r"^features has shape \(3,\); expected \(n, d\)"),
        ((X[None], Y, X, Y), r"cross_features has shape \(1, 4, 3\)"),
        ((X, Y, X[:, :0], Y), r"^features has shape \(4, 0\)"),
        ((X, Y, X[:0], Y[:0]), "^features is empty"),
        ((X[:, :2], Y, X, Y), "cross_features has 2 columns, features 3"),
        ((X, Y, X, Y[:3]), r"^labels has shape \(3,\); expected \(4,\)"),
        ((X, Y[:, None], X, Y), r"cross_classes has shape \(4, 1\); expected \(4,\)"),
        ((X, Y, X, Y - 1), "^labels row 0 is -1; expected classes from 0"),
        ((X, changed(Y, 2, -3), X, Y), "cross_classes row 2 is -3"),
        ((X, Y, X, Y.astype(float)), r"^labels has type float64; expected integers.*astype"),
        ((X, Y > 0, X, Y), "cross_classes has type bool"),
        ((X, Y, X.astype(str), Y), "^features has type <U32; expected real numbers"),
        ((X, Y, X * 1j, Y), "^features has type complex128"),
    ],
)
def test_wrong_arrays_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        ratio(*arguments)


@pytest.mark.parametrize("n_classes", [1, 0, -2, 2.0, True])
def test_wrong_n_classes_raises(n_classes):
    with pytest.raises(ValueError, match="expected an integer above the highest class, 1, or None"):
        ratio(X, Y, X, Y, n_classes=n_classes)


def test_unknown_metric_raises():
    for call in (lambda: ratio(X, Y, X, Y, metric="l2"), lambda: ratio_r(make_reps(), metric="l2")):
        with pytest.raises(ValueError, match="metric='l2' is unknown; expected one of angular, cosine, euclidean"):
            call()


@pytest.mark.parametrize("metric", ["angular", "cosine", "euclidean"])
def test_r_prime_of_a_part_estimates_that_of_all(metric):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    features = rng.normal(size=(200, 6)) + 2 * rng.normal(size=(4, 6))[labels]
    reps = RepresentationSet.from_arrays(features, labels, adv_features=features + 0.1 * rng.normal(size=(200, 6)))
    whole = ratio_r_prime(reps, metric=metric).cross
    plain, estimated = [], []
    for _ in range(300):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == k), 4, replace=False) for k in range(4)])
        part = reps.subset(rows)
        plain.append(ratio_r_prime(part, metric=metric).cross)
        found = ratio_r_prime(part, metric=metric, drawn_from=200)
        estimated.append(found.cross)
        np.testing.assert_allclose(found.per_class, found.cross / found.inner)
        assert found.value == pytest.approx(found.per_class.mean())
    np.testing.assert_allclose(np.mean(estimated, axis=0), whole, rtol=0.03)
    assert (np.mean(plain, axis=0) < 0.9 * whole).all()  # its own image is one of four
    assert ratio_r_prime(reps, metric=metric, drawn_from=200).value == ratio_r_prime(reps, metric=metric).value
    with pytest.raises(ValueError, match="drawn_from=199; expected at least the 200 images"):
        ratio_r_prime(reps, metric=metric, drawn_from=199)


# the bootstrap --------------------------------------------------------------------------------------------------------


def resampled_r_prime(reps, counts, metric, drawn_from):
    """By loops over the images of a resample; {class: how often each of its images is drawn}."""
    values = []
    for k, drawn in counts.items():
        rows = np.flatnonzero(reps.labels == k)
        n = len(rows)
        pairs = [(i, j) for i in np.repeat(rows, drawn) for j in np.repeat(rows, drawn) if i != j]
        within = np.mean([distance(reps.features[i], reps.features[j], metric) for i, j in pairs])
        across = np.mean([distance(reps.adv_features[i], reps.features[j], metric) for i, j in pairs])
        own = np.mean([distance(reps.adv_features[i], reps.features[i], metric) for i in np.repeat(rows, drawn)])
        among = n if drawn_from is None else n * drawn_from / len(reps.labels)
        values.append((own / among + (1 - 1 / among) * across) / within)
    return np.mean(values)


def of_two_classes(seed=0, n=14):
    rng = np.random.default_rng(seed)
    features = rng.normal(loc=(3, 0, 0, 0), size=(n, 4))
    adv_features = features + rng.normal(size=(n, 4))
    return SimpleNamespace(
        features=features, adv_features=adv_features, labels=np.arange(n) % 2, class_names=("a", "b")
    )  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("drawn_from", [None, 140])
def test_a_resample_is_what_loops_over_its_images_say(metric, drawn_from):
    reps, rng = of_two_classes(), np.random.default_rng(5)
    counts = [rng.multinomial(7, np.full(7, 1 / 7), size=3) for _ in range(2)]
    expected = [resampled_r_prime(reps, {k: counts[k][b] for k in range(2)}, metric, drawn_from) for b in range(3)]
    found = bootstrap_r_prime(reps, metric=metric, drawn_from=drawn_from, n_resamples=3, random_state=5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_each_image_once_is_the_ratio_itself(monkeypatch):
    reps = of_two_classes()
    once = SimpleNamespace(multinomial=lambda n, p, size: np.ones((size, n), int))
    monkeypatch.setattr(np.random, "default_rng", lambda state: once)
    for drawn_from in (None, 50):
        (found,) = bootstrap_r_prime(reps, drawn_from=drawn_from, n_resamples=1)
        assert found == pytest.approx(ratio_r_prime(reps, drawn_from=drawn_from).value, rel=1e-12)


def test_the_spread_is_that_over_fresh_images():
    samples = [of_two_classes(seed, n=80) for seed in range(60)]
    over_samples = np.std([ratio_r_prime(reps).value for reps in samples], ddof=1)
    errors = [bootstrap_r_prime(reps, n_resamples=60).std(ddof=1) for reps in samples]
    assert np.mean(errors) == pytest.approx(over_samples, rel=0.25)


def test_models_of_the_same_images_are_resampled_alike():
    reps = of_two_classes()
    collapsed = SimpleNamespace(**vars(reps))
    collapsed.features = np.where((reps.labels == 0)[:, None], [[1.0, 2, 3, 4]], reps.features)
    only = SimpleNamespace(**{name: getattr(reps, name)[reps.labels == 1] for name in ("features", "adv_features")})
    only.labels, only.class_names = np.ones(7, int), reps.class_names
    assert ratio_r_prime(collapsed).left_out == (0,)
    both = bootstrap_r_prime(reps, random_state=1) - bootstrap_r_prime(reps, random_state=1)
    assert not both.any()
    rng = np.random.default_rng(1)
    rng.multinomial(7, np.full(7, 1 / 7), size=400)
    second = rng.multinomial(7, np.full(7, 1 / 7), size=400)[:2]
    expected = [resampled_r_prime(only, {1: drawn}, "angular", None) for drawn in second]
    np.testing.assert_allclose(bootstrap_r_prime(collapsed, random_state=1)[:2], expected, rtol=1e-12)


def test_a_resample_of_one_image_has_no_ratio():
    reps = of_two_classes(n=4)
    found = bootstrap_r_prime(reps, n_resamples=100)
    assert np.isnan(found).any() and np.isfinite(found).any()


@pytest.mark.parametrize("number", [0, 2.5, True])
def test_a_wrong_number_of_resamples_raises(number):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        bootstrap_r_prime(of_two_classes(), n_resamples=number)
