import numpy as np
import pytest
from oracles import neighbours

from analysis.features import METRICS
from analysis.representations import RepresentationSet
from analysis.retrieval import knn_accuracy, knn_predict, retrieve


def make_reps(seed=0, n=60, d=6, n_classes=4, attacked=True):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, d))
    features = centres[labels] + 0.8 * rng.normal(size=(n, d))
    adversarial = features + rng.normal(size=(n, d)) if attacked else None
    return RepresentationSet.from_arrays(features, labels, adv_features=adversarial)


# retrieve -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_retrieves_what_comparing_everything_does(metric, exclude_self):
    reps = make_reps()
    found = retrieve(reps, k=5, metric=metric, exclude_self=exclude_self)
    exclude = np.arange(60) if exclude_self else None
    for part, queries in ((found.clean, reps.features), (found.adversarial, reps.adv_features)):
        distances, indices = neighbours(queries, reps.features, 5, metric, exclude)
        np.testing.assert_array_equal(part.indices, indices)
        np.testing.assert_allclose(part.distances, distances, rtol=1e-5, atol=1e-7)
        same_class = [[reps.labels[i] == reps.labels[q] for i in row] for q, row in enumerate(indices)]
        np.testing.assert_array_equal(part.correct, same_class)
        np.testing.assert_allclose(part.precision_at_k, [sum(row) / 5 for row in same_class])
        np.testing.assert_array_equal(part.first_correct, [row[0] for row in same_class])
        assert part.mean_precision == pytest.approx(np.mean(same_class))
        assert part.first_accuracy == pytest.approx(np.mean([row[0] for row in same_class]))
        np.testing.assert_array_equal(part.rows, np.arange(60))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_precision_is_that_of_torchmetrics(k):
    pytest.importorskip("torchmetrics")
    import torch
    from sklearn.metrics import pairwise_distances
    from torchmetrics.retrieval import RetrievalPrecision

    reps = make_reps(seed=1)
    # Above 0: torchmetrics takes what is not for irrelevant.
    nearness = np.exp(-pairwise_distances(reps.adv_features.astype(np.float64), reps.features.astype(np.float64)))
    relevant = reps.labels[:, None] == reps.labels[None]
    query = np.broadcast_to(np.arange(60)[:, None], (60, 60))
    measure = RetrievalPrecision(top_k=k)
    expected = measure(*(torch.from_numpy(a.ravel()) for a in (nearness, relevant)), torch.from_numpy(query.ravel()))
    found = retrieve(reps, k=k, metric="euclidean", exclude_self=False)
    assert found.adversarial.mean_precision == pytest.approx(float(expected), rel=1e-6)


def test_some_rows_retrieve_what_they_do_among_all():
    reps = make_reps(seed=2)
    everything, some = retrieve(reps), retrieve(reps, rows=[7, 3])
    for all_of_it, part in ((everything.clean, some.clean), (everything.adversarial, some.adversarial)):
        np.testing.assert_array_equal(part.rows, [7, 3])
        np.testing.assert_array_equal(part.labels, reps.labels[[7, 3]])
        np.testing.assert_array_equal(part.indices, all_of_it.indices[[7, 3]])
        np.testing.assert_array_equal(part.precision_at_k, all_of_it.precision_at_k[[7, 3]])


def test_an_image_is_no_neighbour_of_itself_nor_of_its_adversarial_example():
    reps = make_reps(seed=3)
    reps = RepresentationSet.from_arrays(reps.features, reps.labels, adv_features=reps.features)
    found = retrieve(reps, k=4)
    for part in (found.clean, found.adversarial):
        assert (part.indices != np.arange(60)[:, None]).all()
    found = retrieve(reps, k=4, exclude_self=False)
    for part in (found.clean, found.adversarial):
        np.testing.assert_array_equal(part.indices[:, 0], np.arange(60))
        assert part.first_accuracy == 1


def test_without_an_adversarial_part_only_clean_images_are_queries():
    found = retrieve(make_reps(attacked=False))
    assert found.adversarial is None and "adversarial" not in repr(found)


def test_results_read():
    reps = RepresentationSet.from_arrays(np.eye(4)[[0, 0, 1, 1]] + 0.1, [0, 0, 1, 1], adv_features=np.eye(4)[[1] * 4])
    found = retrieve(reps, k=1)
    assert repr(found) == "RetrievalResult(4 queries, metric='angular', precision@1 clean 1.000, adversarial 0.500)"
    assert repr(found.adversarial) == ("RetrievedNeighbours(4 queries, k=1, precision@1 0.500, nearest correct 0.500)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 60}, "k=60; expected an integer from 1 to 59: the gallery has 60 rows, less the excluded one"),
        ({"k": 61, "exclude_self": False}, "k=61; expected an integer from 1 to 60"),
        ({"metric": "dot"}, "metric='dot' is unknown"),
        ({"index": "fast"}, "index='fast' is unknown; expected one of exact, approximate, auto"),
        ({"rows": [3, 60]}, "rows holds 60; expected rows of the set, from 0 to 59"),
        ({"rows": [-1]}, "rows holds -1"),
        ({"rows": [0.5]}, "rows has shape .* and type float64; expected one integer or more"),
        ({"rows": []}, r"rows has shape \(0,\)"),
        ({"rows": 3}, r"rows has shape \(\)"),
    ],
)
def test_retrieve_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        retrieve(make_reps(), **settings)


# kNN ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 50])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_votes_as_scikit_learn_does_where_no_votes_are_tied(metric, k):
    from sklearn.neighbors import KNeighborsClassifier

    reps = make_reps(seed=4, n=200, n_classes=5)
    peer = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(reps.features, reps.labels)
    voters = reps.labels[peer.kneighbors(reps.adv_features, return_distance=False)]
    counts = np.sort([np.bincount(row, minlength=5) for row in voters], axis=1)
    clear = counts[:, -1] > counts[:, -2]
    assert clear.sum() > 100
    queries, labels = reps.adv_features[clear], reps.labels[clear]
    ours = knn_predict(reps.features, reps.labels, queries, k=k, metric=metric)
    np.testing.assert_array_equal(ours, peer.predict(queries))
    accuracy = knn_accuracy(reps.features, reps.labels, queries, labels, k=k, metric=metric)
    assert accuracy == pytest.approx(peer.score(queries, labels))


def test_of_equally_many_votes_the_nearer_neighbour_decides():
    gallery, labels = np.array([[1.0], [2.0], [3.0], [4.0], [9.0]]), np.array([7, 3, 3, 7, 5])
    query = [[0.0]]
    predictions = [knn_predict(gallery, labels, query, k=k, metric="euclidean")[0] for k in (1, 2, 3, 4, 5)]
    assert predictions == [7, 7, 3, 7, 7]


@pytest.mark.parametrize("k", [2, 4, 9])
def test_matches_a_loop_over_votes_with_ties(k):
    reps = make_reps(seed=5)
    _, indices = neighbours(reps.adv_features, reps.features, k, "angular")
    expected = []
    for row in indices:
        voters = [int(reps.labels[i]) for i in row]
        expected.append(max(voters, key=lambda c: (voters.count(c), -voters.index(c))))
    found = knn_predict(reps.features, reps.labels, reps.adv_features, k=k)
    np.testing.assert_array_equal(found, expected)


def test_leaving_each_image_out_of_its_own_vote():
    reps = make_reps(seed=6)
    case = reps.features, reps.labels, reps.features, reps.labels
    assert knn_accuracy(*case, k=1) == 1
    left_out = knn_accuracy(*case, k=1, exclude=np.arange(60))
    assert left_out == pytest.approx(retrieve(reps, k=1).clean.first_accuracy) and left_out < 1


def test_a_random_order_of_labels_is_chance():
    rng = np.random.default_rng(7)
    features, labels = rng.normal(size=(1000, 5)), rng.integers(0, 4, 1000)
    assert knn_accuracy(features[:500], labels[:500], features[500:], labels[500:]) == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 61}, "k=61; expected an integer from 1 to 60: the gallery has 60 rows"),
        ({"gallery_labels": np.zeros(59, int)}, r"gallery_labels has shape \(59,\); expected \(60,\)"),
        ({"labels": np.zeros(61, int)}, r"labels has shape \(61,\); expected \(60,\)"),
        ({"labels": np.zeros(60)}, "labels has type float64; expected integers"),
        ({"metric": "dot"}, "metric='dot' is unknown"),
    ],
)
def test_knn_accuracy_refuses(changes, message):
    reps = make_reps()
    case = {"gallery_features": reps.features, "gallery_labels": reps.labels, "queries": reps.features,
            "labels": reps.labels}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**case | changes)


# both -----------------------------------------------------------------------------------------------------------------


def test_inputs_stay_as_they_are():
    reps = make_reps(seed=8)
    before = reps.features.copy(), reps.adv_features.copy(), reps.labels.copy()
    retrieve(reps)
    knn_accuracy(reps.features, reps.labels, reps.adv_features, reps.labels)
    for array, copy in zip((reps.features, reps.adv_features, reps.labels), before, strict=True):
        np.testing.assert_array_equal(array, copy)
