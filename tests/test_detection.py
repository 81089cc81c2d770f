import numpy as np
import pytest

from analysis import detection as module
from analysis.detection import DetectionResult, class_log_densities, detect, detection_auc


def make_case(seed=0, m=120, n=90, d=5, n_classes=3):
    """Training features and labels; features, half of them far away, and a noisy account of which are misclassified."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(n_classes, d))
    mixing = rng.normal(size=(d, d))
    train_labels = np.arange(m) % n_classes
    train = centres[train_labels] + rng.normal(size=(m, d)) @ mixing
    far = rng.random(n) < 0.5
    features = centres[rng.integers(0, n_classes, n)] + rng.normal(size=(n, d)) @ mixing * np.where(far, 2, 1)[:, None]
    return train, train_labels, features, far ^ (rng.random(n) < 0.1)


# oracles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "d"), [(120, 5), (40, 60)])
def test_densities_are_those_of_scipys_gaussians(m, d):
    from scipy.stats import multivariate_normal
    from sklearn.covariance import OAS

    train, labels, features, _ = make_case(m=m, d=d)
    classes, densities = class_log_densities(train, labels, features)
    means = np.stack([train[labels == k].mean(axis=0) for k in range(3)])
    covariance = OAS(assume_centered=True).fit(train - means[labels]).covariance_
    expected = np.stack([multivariate_normal(mean, covariance).logpdf(features) for mean in means], axis=1)
    np.testing.assert_array_equal(classes, [0, 1, 2])
    np.testing.assert_allclose(densities, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(("m", "d"), [(120, 5), (40, 60)])
def test_with_a_covariance_of_its_own_each_class_has_its_gaussian(m, d):
    from scipy.stats import multivariate_normal
    from sklearn.covariance import OAS

    train, labels, features, wrong = make_case(m=m, d=d)
    train[labels == 1] *= 3
    _, densities = class_log_densities(train, labels, features, covariance="own")
    expected = []
    for k in range(3):
        mean = train[labels == k].mean(axis=0)
        covariance = OAS(assume_centered=True).fit(train[labels == k] - mean).covariance_
        expected.append(multivariate_normal(mean, covariance).logpdf(features))
    np.testing.assert_allclose(densities, np.stack(expected, axis=1), rtol=1e-9, atol=1e-8)
    found = detect(train, labels, features, wrong, covariance="own")
    np.testing.assert_array_equal(found.scores, -densities.max(axis=1))
    assert detection_auc(train, labels, features, wrong, covariance="own") == found.auc


@pytest.mark.parametrize("decimals", [12, 0])
def test_curve_and_area_are_those_of_scikit_learn(decimals, monkeypatch):
    """With scores rounded to whole numbers, there are ties between the two kinds."""
    from sklearn.metrics import roc_auc_score, roc_curve

    fitted = module.class_log_densities
    monkeypatch.setattr(module, "class_log_densities", lambda *case, **k: (None, fitted(*case, **k)[1].round(decimals)))
    case = make_case(seed=1)
    found = detect(*case)
    assert decimals or len(found.thresholds) < len(found.scores)
    false_positive, true_positive, thresholds = roc_curve(case[3], found.scores, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive_rate, false_positive, rtol=1e-14)
    np.testing.assert_allclose(found.true_positive_rate, true_positive, rtol=1e-14)
    np.testing.assert_array_equal(found.thresholds, thresholds)
    assert found.auc == pytest.approx(roc_auc_score(case[3], found.scores), rel=1e-12)


def test_area_is_that_of_torchmetrics():
    pytest.importorskip("torchmetrics")
    import torch
    from torchmetrics.functional.classification import binary_auroc

    found = detect(*make_case(seed=2))
    # As ranks: torchmetrics takes scores outside [0, 1] for logits, and a sigmoid would round large ones to 1.
    ranks = torch.from_numpy(np.searchsorted(np.sort(found.scores), found.scores) / len(found.scores))
    assert found.auc == pytest.approx(float(binary_auroc(ranks, torch.from_numpy(found.misclassified).int())), rel=1e-6)


def test_error_of_the_area_is_the_spread_over_samples():
    rng = np.random.default_rng(0)
    areas, errors = [], []
    for _ in range(300):
        scores = np.concatenate([rng.exponential(2, 60), rng.exponential(1, 90)])
        misclassified = np.arange(150) < 60
        pairs = scores[:60, None] > scores[60:]
        found = DetectionResult(float(pairs.mean()), scores, *np.zeros((3, 2)), misclassified)
        areas.append(found.auc)
        errors.append(found.auc_error)
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.1)


def test_area_is_the_share_of_pairs_in_the_right_order():
    found = detect(*make_case(seed=3))
    positive, negative = found.scores[found.misclassified], found.scores[~found.misclassified]
    pairs = [(p > q) + (p == q) / 2 for p in positive for q in negative]
    assert found.auc == pytest.approx(np.mean(pairs), rel=1e-12)


# behaviour ------------------------------------------------------------------------------------------------------------


def test_inputs_far_from_every_class_are_detected():
    train, labels, _, _ = make_case()
    features = np.concatenate([train[:30], train[:30] + 50])
    far = np.arange(60) >= 30
    assert detection_auc(train, labels, features, far) == 1
    assert detection_auc(train, labels, features, ~far) == 0


def test_what_lies_amid_its_class_is_dense_and_between_classes_is_not():
    train = np.array([[-1.0, 0], [1, 0], [0, 1], [0, -1], [19, 0], [21, 0], [20, 1], [20, -1]])
    found = detect(train, np.repeat([0, 1], 4), [[0, 0], [20, 0], [10, 0]], [False, False, True])
    assert found.auc == 1
    assert found.scores[0] == pytest.approx(found.scores[1]) and found.scores[2] > found.scores[0] + 10


def test_area_depends_neither_on_scale_nor_on_origin_nor_on_rotation():
    train, labels, features, wrong = make_case(seed=4)
    before = detect(train, labels, features, wrong)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))[0]
    for change in (lambda x: x * 1e-12, lambda x: x * 1e12, lambda x: x + 1e4, lambda x: x @ rotation):
        after = detect(change(train), labels, change(features), wrong)
        assert after.auc == pytest.approx(before.auc, rel=1e-12)


def test_order_of_the_rows_and_names_of_the_classes_do_not_matter():
    train, labels, features, _ = make_case(seed=6)
    before = class_log_densities(train, labels, features)[1]
    order = np.random.default_rng(7).permutation(len(labels))
    classes, after = class_log_densities(train[order], 10 * labels[order] - 5, features)
    np.testing.assert_array_equal(classes, [-5, 5, 15])
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_fewer_images_than_features_of_which_half_never_change():
    rng = np.random.default_rng(8)
    train = np.maximum(rng.normal(size=(200, 1024)), 0).astype(np.float32)
    train[:, ::2] = 0
    labels = np.arange(200) % 10
    clean = np.maximum(rng.normal(size=(50, 1024)), 0).astype(np.float32)
    clean[:, ::2] = 0
    revived = clean.copy()
    revived[:, ::2] = 1  # units that no training image activates
    found = detect(train, labels, np.concatenate([clean, revived]), np.arange(100) >= 50)
    assert np.isfinite(found.scores).all() and found.auc == 1


def test_a_covariance_that_ledoit_wolf_would_leave_singular():
    """Two images per class, at equal distances: shrinkage estimated from the scatter of products is 0."""
    train = [[-1.0, 7.0], [1.0, 7.0], [4.0, 7.0], [6.0, 7.0]]
    found = detect(train, [0, 0, 1, 1], [[0.0, 7.0], [5.0, 7.0], [0.0, 9.0]], [False, False, True])
    assert np.isfinite(found.scores).all() and found.auc == 1


def test_features_far_from_the_origin_keep_their_digits():
    train, labels, features, _ = make_case(seed=9)
    before = class_log_densities(train, labels, features)[1]
    after = class_log_densities(train + 1e6, labels, features + 1e6)[1]
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_the_result_reads_and_the_curve_runs_from_corner_to_corner():
    found = detect(*make_case(seed=10))
    assert isinstance(found, DetectionResult)
    assert repr(found) == f"DetectionResult(auc={found.auc:.4f}, {found.misclassified.sum()} misclassified of 90)"
    for rate in (found.false_positive_rate, found.true_positive_rate):
        assert rate[0] == 0 and rate[-1] == 1 and (np.diff(rate) >= 0).all()
    assert (np.diff(found.thresholds) < 0).all() and found.thresholds[0] == np.inf
    assert detection_auc(*make_case(seed=10)) == found.auc


def test_inputs_stay_as_they_are():
    case = make_case(seed=11)
    before = [array.copy() for array in case]
    detect(*case)
    for array, copy in zip(case, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# bad input ------------------------------------------------------------------------------------------------------------

TRAIN = np.array([[0.0, 1], [1, 0], [5, 6], [6, 5]])
LABELS = np.array([0, 0, 1, 1])
X = np.array([[0.0, 0], [6, 6]])
WRONG = np.array([True, False])


def with_nan(array):
    array = array.copy()
    array[1, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ((TRAIN, LABELS, X, [True, True]), "misclassified is all True: there is no negative"),
        ((TRAIN, LABELS, X, [False, False]), "misclassified is all False: there is no positive"),
        ((TRAIN, LABELS, X, [1, 0]), "misclassified has type int64; expected booleans"),
        ((TRAIN, LABELS, X, [True]), r"misclassified has shape \(1,\); expected \(2,\)"),
        ((with_nan(TRAIN), LABELS, X, WRONG), "train_features row 1 holds NaN or infinity"),
        ((TRAIN, LABELS, with_nan(X), WRONG), "features row 1 holds NaN or infinity"),
        ((TRAIN, [0, 0, 1, 2], X, WRONG), "class 1 of train_labels has 1 row; expected 2 or more"),
        ((TRAIN, LABELS[:3], X, WRONG), r"train_labels has shape \(3,\); expected \(4,\)"),
        ((TRAIN, LABELS * 1.0, X, WRONG), "train_labels has type float64; expected integers"),
        ((TRAIN, LABELS, X[:, :1], WRONG), "features has 1 columns, train_features 2"),
        ((TRAIN[:0], LABELS[:0], X, WRONG), "train_features is empty"),
        ((np.full((4, 2), 0.1), LABELS, X, WRONG), "train_features do not vary within their classes"),
        ((np.repeat([[0.1, 0.7], [0.3, 0.9]], 2, axis=0), LABELS, X, WRONG), "do not vary within their classes"),
        ((np.zeros((4, 2)), LABELS, X, WRONG), "do not vary within their classes"),
    ],
)
def test_wrong_arguments_raise(case, message):
    with pytest.raises(ValueError, match=message):
        detect(*case)


def test_a_class_that_does_not_vary_has_no_covariance_of_its_own():
    train = np.array([[0.0, 1], [0, 1], [5, 6], [6, 5]])
    assert np.isfinite(class_log_densities(train, LABELS, X)[1]).all()
    with pytest.raises(ValueError, match="train_features do not vary within class 0"):
        class_log_densities(train, LABELS, X, covariance="own")
    with pytest.raises(ValueError, match="covariance is 'tied'; expected one of 'shared', 'own'"):
        class_log_densities(TRAIN, LABELS, X, covariance="tied")
