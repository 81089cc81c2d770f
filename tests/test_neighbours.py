import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
from oracles import neighbours
from tiny import changed

from analysis import neighbours as module
from analysis.features import METRICS
from analysis.neighbours import NeighbourResult, nearest_neighbours
from analysis.representations import RepresentationSet


def check_against_oracle(queries, gallery, k, metric, exclude=None):
    result = nearest_neighbours(queries, gallery, k, metric=metric, exclude=exclude)
    distances, indices = neighbours(queries, gallery, k, metric, exclude)
    np.testing.assert_allclose(result.distances, distances, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(result.indices, indices)
    assert result.distances.dtype == np.float32 and result.indices.dtype == np.int64
    return result


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("metric", METRICS)
def test_matches_brute_force(metric, k):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(12, 7)).astype(np.float32) * rng.uniform(0.01, 100, size=(12, 1)).astype(np.float32)
    gallery = rng.normal(size=(60, 7)).astype(np.float32) * rng.uniform(0.01, 100, size=(60, 1)).astype(np.float32)
    check_against_oracle(queries, gallery, k, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_matches_brute_force_without_the_query_itself(metric):
    gallery = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    result = check_against_oracle(gallery, gallery, 6, metric, exclude=np.arange(40))
    assert (result.indices != np.arange(40)[:, None]).all()
    mixed = np.where(np.arange(40) % 2, np.arange(40), -1)
    result = check_against_oracle(gallery, gallery, 39, metric, exclude=mixed)
    np.testing.assert_array_equal(result.indices[::2, 0], np.arange(0, 40, 2))
    np.testing.assert_array_equal(result.distances[::2, 0], 0)


@pytest.mark.parametrize("copies", [3, 30, 70])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_index(metric, copies):
    """70 copies are more than the candidates that FAISS is asked for, so that the boundary runs through a tie."""
    rng = np.random.default_rng(2)
    different = rng.normal(size=(4, 6)).astype(np.float32)
    which = rng.permutation(np.repeat(np.arange(4), copies))
    result = check_against_oracle(different, different[which], copies + 2, metric)
    for query in range(4):
        np.testing.assert_array_equal(result.indices[query, :copies], np.flatnonzero(which == query))


@pytest.mark.parametrize("metric", METRICS)
def test_gallery_of_one_repeated_row(metric):
    gallery = np.repeat(np.random.default_rng(3).normal(size=(1, 9)), 500, axis=0)
    queries = np.vstack([gallery[:1], gallery[:1] + 1])
    result = nearest_neighbours(queries, gallery, 4, metric=metric, exclude=[1, -1])
    np.testing.assert_array_equal(result.indices, [[0, 2, 3, 4], [0, 1, 2, 3]])
    np.testing.assert_array_equal(result.distances[0], 0)


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_closer_than_float32_products_resolve(metric):
    """Tight clusters far from the origin: |q|^2 + |x|^2 - 2 q.x in float32 is noise, and so is 1 - q.x."""
    rng = np.random.default_rng(4)
    gallery = (1000 + 0.02 * rng.normal(size=(300, 5))).astype(np.float32)
    result = nearest_neighbours(gallery[:20], gallery, 10, metric=metric)
    exact = np.array([[neighbour_distance(q, g, metric) for g in gallery] for q in gallery[:20].astype(np.float64)])
    np.testing.assert_allclose(result.distances, np.sort(exact, axis=1)[:, :10], rtol=1e-4, atol=1e-15)


def neighbour_distance(u, v, metric):
    v = v.astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(u - v)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return ((u - v) ** 2).sum() / 2


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_do_not_change_the_result(metric, monkeypatch):
    rng = np.random.default_rng(5)
    gallery = np.repeat(rng.normal(size=(25, 8)), 4, axis=0)
    queries = rng.normal(size=(31, 8))
    whole = nearest_neighbours(queries, gallery, 7, metric=metric)
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 200)
    monkeypatch.setattr(module, "_PAIR_ENTRIES", 200)
    blocked = nearest_neighbours(queries, gallery, 7, metric=metric)
    np.testing.assert_array_equal(blocked.indices, whole.indices)
    np.testing.assert_array_equal(blocked.distances, whole.distances)


def gallery_with_ties(dtype, seed=7):
    """90 rows, each of 30 three times over all of them, far from the origin; and the sizes of blocks, some below k."""
    rows = np.random.default_rng(seed).normal(size=(30, 6)) * 3 + 40
    return np.vstack([rows, rows[::-1], rows]).astype(dtype), (1, 2, 40, 3, 44)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_a_gallery_in_blocks_gives_what_it_gives_in_one_array(metric, dtype):
    for seed in range(5):
        gallery, sizes = gallery_with_ties(dtype, seed)
        blocks = np.split(gallery, np.cumsum(sizes)[:-1])
        mixed = np.where(np.arange(90) % 3, np.arange(90), -1)
        for k, exclude in ((1, None), (7, None), (90, None), (7, mixed), (89, mixed), (4, np.arange(90)[::-1])):
            whole = nearest_neighbours(gallery, gallery, k, metric=metric, exclude=exclude)
            for given in (blocks, tuple(blocks), iter(blocks), [gallery]):
                result = nearest_neighbours(gallery, given, k, metric=metric, exclude=exclude)
                np.testing.assert_array_equal(result.indices, whole.indices)
                np.testing.assert_array_equal(result.distances, whole.distances)
                assert result.distances.dtype == np.float32 and result.indices.dtype == np.int64


def test_a_far_row_changes_no_distance_in_other_blocks():
    """Distances are of the rows as they are: the mean that is subtracted for FAISS rounds, here at 1e-8."""
    near = np.random.default_rng(8).normal(size=(50, 6))
    gallery = np.vstack([near, np.full((1, 6), 1e10)])
    whole = nearest_neighbours(near, gallery, 20, metric="euclidean")
    result = nearest_neighbours(near, [near, gallery[50:]], 20, metric="euclidean")
    np.testing.assert_array_equal(result.distances, whole.distances)
    np.testing.assert_array_equal(result.indices, whole.indices)


def test_blocks_may_be_stored_sets(tmp_path):
    gallery, sizes = gallery_with_ties(np.float32)
    paths = []
    for number, block in enumerate(np.split(gallery, np.cumsum(sizes)[:-1])):
        paths.append(tmp_path / f"{number}.safetensors")
        RepresentationSet.from_arrays(block, np.zeros(len(block), np.int64)).save(paths[-1])
    whole = nearest_neighbours(gallery, gallery, 5, exclude=np.arange(90))
    np.testing.assert_array_equal(nearest_neighbours(gallery, paths, 5, exclude=np.arange(90)).indices, whole.indices)
    first = nearest_neighbours(gallery, str(paths[2]), 5)  # one path is one block
    np.testing.assert_array_equal(first.indices, nearest_neighbours(gallery, gallery[3:43], 5).indices)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        nearest_neighbours(gallery, [*paths, tmp_path / "none.safetensors"], 5)


def test_one_block_is_in_memory_at_a_time():
    alive = []

    def blocks():
        for seed in range(4):
            block = np.random.default_rng(seed).normal(size=(9, 3))
            alive.append(weakref.ref(block))
            yield block
            del block

    def watched():
        for block in blocks():
            assert sum(reference() is not None for reference in alive) <= 2  # this one, and the one before
            yield block

    assert nearest_neighbours(np.ones((2, 3)), watched(), 20).indices.max() > 26


def test_more_candidates_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(6)
    gallery, queries = rng.normal(size=(200, 8)), rng.normal(size=(15, 8))
    few = nearest_neighbours(queries, gallery, 5)
    monkeypatch.setattr(module, "_SPARE", 150)
    np.testing.assert_array_equal(nearest_neighbours(queries, gallery, 5).indices, few.indices)


def test_opposite_vectors_are_near_by_angle_only():
    gallery = [[-2.0, 0.0], [1.0, 1.0], [0.0, 3.0]]
    distances, indices = nearest_neighbours([[1.0, 0.0]], gallery, 3)
    np.testing.assert_array_equal(indices, [[0, 1, 2]])
    np.testing.assert_allclose(distances, [[0, 1 - 0.5**0.5, 1]], rtol=1e-6)
    distances, indices = nearest_neighbours([[1.0, 0.0]], gallery, 3, metric="cosine")
    np.testing.assert_array_equal(indices, [[1, 2, 0]])
    np.testing.assert_allclose(distances, [[1 - 0.5**0.5, 1, 2]], rtol=1e-6)
    distances, indices = nearest_neighbours([[0.0, 0.0]], gallery, 3, metric="euclidean")
    np.testing.assert_array_equal(indices, [[1, 0, 2]])
    np.testing.assert_allclose(distances, [[2**0.5, 2, 3]], rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_common_scale_changes_nothing_but_euclidean_distances(metric):
    rng = np.random.default_rng(7)
    gallery, queries = rng.normal(size=(50, 6)), rng.normal(size=(8, 6))
    before = nearest_neighbours(queries, gallery, 4, metric=metric)
    for scale in (2.0**-60, 2.0**60):
        after = nearest_neighbours(queries * scale, gallery * scale, 4, metric=metric)
        np.testing.assert_array_equal(after.indices, before.indices)
        factor = scale if metric == "euclidean" else 1
        np.testing.assert_allclose(after.distances, before.distances * factor, rtol=1e-6)


def test_result_unpacks_and_reads():
    result = nearest_neighbours([[1, 0]], [[0, 1], [1, 1], [-3, 0]], 2)
    distances, indices = result
    assert isinstance(result, NeighbourResult) and distances is result.distances and indices is result.indices
    assert repr(result) == "NeighbourResult(1 queries, k=2, distances 0 to 0.2929)"


def test_inputs_are_not_mutated():
    rng = np.random.default_rng(8)
    gallery, queries, exclude = rng.normal(size=(30, 4)), rng.normal(size=(5, 4)), np.arange(5)
    copies = gallery.copy(), queries.copy(), exclude.copy()
    for metric in METRICS:
        nearest_neighbours(queries, gallery, 3, metric=metric, exclude=exclude)
    for array, copy in zip((gallery, queries, exclude), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("full", [False, True])
def test_gpu_is_used_where_faiss_has_one(monkeypatch, full):
    """A stand-in for faiss-gpu: this says what is called, not that a GPU gives the answers."""
    import faiss

    asked = []

    def to_gpu(resources, device, index):
        if full:
            raise RuntimeError("out of memory")
        asked.append((resources, device))
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    rng = np.random.default_rng(9)
    check_against_oracle(rng.normal(size=(5, 4)), rng.normal(size=(50, 4)), 3, "angular")
    assert asked == ([] if full else [("resources", 0)])


def test_threads_of_torch_stay():
    import torch

    before = torch.get_num_threads()
    nearest_neighbours(np.eye(4), np.eye(4), 2)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_of_a_process_that_searched_with_two_threads_searches_too():
    code = (
        "import os, signal, numpy, analysis\n"
        "x = numpy.random.default_rng(0).normal(size=(4000, 32))\n"
        "before = analysis.nearest_neighbours(x, x, 5).indices\n"
        "if not os.fork():\n"
        "    signal.alarm(60)\n"
        "    os._exit(int((analysis.nearest_neighbours(x, x, 5).indices != before).any()))\n"
        "assert os.wait()[1] == 0"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "2"}, check=True)


def test_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'tla-toolkit\[cpu\]'.*'tla-toolkit\[gpu\]'.*never both"):
        nearest_neighbours(np.eye(3), np.eye(3), 1)


X = np.arange(1.0, 16.0).reshape(5, 3)
Q = X[:2]


@pytest.mark.parametrize("metric", METRICS)
def test_nan_and_infinity_raise(metric):
    with pytest.raises(ValueError, match="gallery row 3 holds NaN or infinity"):
        nearest_neighbours(Q, changed(X, (3, 0), np.nan), 1, metric=metric)
    with pytest.raises(ValueError, match="queries row 1 holds NaN or infinity"):
        nearest_neighbours(changed(Q, (1, 2), -np.inf), X, 1, metric=metric)


@pytest.mark.parametrize("metric", ["angular", "cosine"])
def test_zero_vectors_raise(metric):
    with pytest.raises(ValueError, match="gallery row 4 is a zero vector; metric='" + metric):
        nearest_neighbours(Q, changed(X, 4, 0), 1, metric=metric)
    with pytest.raises(ValueError, match="queries row 0 is a zero vector"):
        nearest_neighbours(changed(Q, 0, 0), X, 1, metric=metric)


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "exclude", "message"),
    [
        (Q, X, 0, None, "k=0; expected an integer from 1 to 5: the gallery has 5 rows"),
        (Q, X, -1, None, "k=-1; expected an integer from 1 to 5"),
        (Q, X, 6, None, "k=6; expected an integer from 1 to 5"),
        (Q, X, 5, [-1, 3], "k=5; expected an integer from 1 to 4: the gallery has 5 rows, less the excluded one"),
        (Q, X, 2.0, None, r"k=2\.0; expected an integer"),
        (Q, X, True, None, "k=True; expected an integer"),
        (Q[:, :2], X, 1, None, "queries has 2 columns, gallery 3"),
        (Q[0], X, 1, None, r"queries has shape \(3,\); expected \(n, d\)"),
        (Q[:0], X, 1, None, "queries is empty"),
        (Q, X[:0], 1, None, "gallery is empty"),
        (Q, X, 1, [0], r"exclude has shape \(1,\); expected \(2,\)"),
        (Q, X, 1, [[0], [1]], r"exclude has shape \(2, 1\)"),
        (Q, X, 1, [0.0, 1.0], "exclude has type float64; expected integers"),
        (Q, X, 1, [0, 5], "exclude row 1 is 5; expected -1, or a gallery row up to 4"),
        (Q, X, 1, [-2, 0], "exclude row 0 is -2"),
        (Q, [X, X], 11, None, "k=11; expected an integer from 1 to 10: the gallery has 10 rows"),
        (Q, [X, X], 10, [-1, 3], "k=10; expected an integer from 1 to 9: the gallery has 10 rows, less the excluded"),
        (Q, [X, X], 0, None, "k=0; expected an integer from 1"),
        (Q, [X, X], 1, [0, 10], "exclude row 1 is 10; expected -1, or a gallery row up to 9"),
        (Q, [X, X[:, :2]], 1, None, "block 1 of the gallery: queries has 3 columns, gallery 2"),
        (Q, [X, X[:0]], 1, None, "block 1 of the gallery: gallery is empty"),
        (Q, [X, X * np.nan], 1, None, "block 1 of the gallery: gallery row 0 holds NaN"),
        (Q, [X, X * 0], 1, None, "block 1 of the gallery: gallery row 0 is a zero vector"),
        (Q * 0, [X, X], 1, None, "^queries row 0 is a zero vector"),
        (Q, iter(()), 1, None, "k=1; expected an integer from 1 to 0: the gallery has 0 rows"),
    ],
)
def test_wrong_arguments_raise(queries, gallery, k, exclude, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(queries, gallery, k, exclude=exclude)


def test_unknown_metric_raises():
    with pytest.raises(ValueError, match="metric='dot' is unknown; expected one of angular, cosine, euclidean"):
        nearest_neighbours(Q, X, 1, metric="dot")


# the approximate index ------------------------------------------------------------------------------------------------


def clustered(n, seed, d=16, n_classes=10):
    """Rows around ten centres, as representations of classes lie; negative entries too."""
    centres = np.random.default_rng(0).normal(size=(n_classes, d))
    rng = np.random.default_rng(seed)
    return (centres[np.arange(n) % n_classes] + 0.3 * rng.normal(size=(n, d))).astype(np.float32)


def recall(found, exact):
    return np.mean(found.distances <= exact.distances[:, -1:])


@pytest.mark.parametrize("metric", METRICS)
def test_approximate_finds_most_of_the_exact_neighbours(metric):
    gallery, queries = clustered(6000, 1), clustered(400, 2)
    exact = nearest_neighbours(queries, gallery, 10, metric=metric)
    found = nearest_neighbours(queries, gallery, 10, metric=metric, index="approximate")
    assert 0.95 <= recall(found, exact) < 1
    # What is found has the exact distance, in the exact order.
    same = found.indices == exact.indices
    np.testing.assert_array_equal(found.distances[same], exact.distances[same])
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert found.distances.dtype == np.float32 and found.indices.dtype == np.int64


@pytest.mark.parametrize("metric", METRICS)
def test_approximate_searches_a_part_of_the_gallery(metric, monkeypatch):
    cells = spy_on_cells(monkeypatch)
    nearest_neighbours(clustered(400, 2), clustered(6000, 1), 10, metric=metric, index="approximate")
    assert cells[-1] < 77 / 2, "of the 77 cells"


def spy_on_cells(monkeypatch):
    """The numbers of cells that are tried, in order."""
    import faiss

    cells = []

    class Spy(faiss.IndexIVFFlat):
        def search(self, *args):
            cells.append(self.nprobe)
            return super().search(*args)

    monkeypatch.setattr(faiss, "IndexIVFFlat", Spy)
    return cells


def test_features_without_clusters_cost_cells_and_not_recall(monkeypatch):
    rng = np.random.default_rng(3)
    gallery, queries = rng.normal(size=(4000, 48)), rng.normal(size=(300, 48))
    cells = spy_on_cells(monkeypatch)
    found = nearest_neighbours(queries, gallery, 10, index="approximate")
    assert recall(found, nearest_neighbours(queries, gallery, 10)) > 0.95
    assert cells[0] == 1 and cells[-1] > 63 / 2


@pytest.mark.parametrize("metric", METRICS)
def test_recall_counts_what_remains_when_each_query_is_left_out(metric):
    """Every query is its own nearest row: finding that says nothing of the neighbour that is asked for."""
    gallery, itself = clustered(5000, 4), np.arange(5000)
    exact = nearest_neighbours(gallery, gallery, 1, metric=metric, exclude=itself)
    found = nearest_neighbours(gallery, gallery, 1, metric=metric, exclude=itself, index="approximate")
    assert (found.indices[:, 0] != itself).all()
    assert recall(found, exact) > 0.95


def test_approximate_is_the_same_each_time():
    gallery, queries = clustered(5000, 5), clustered(300, 6)
    first, again = (nearest_neighbours(queries, gallery, 5, index="approximate") for _ in range(2))
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.distances, again.distances)


@pytest.mark.parametrize("metric", METRICS)
def test_where_the_cells_hold_too_few_rows_the_whole_gallery_is_searched(metric, monkeypatch):
    monkeypatch.setattr(module, "_TARGET_RECALL", 0)  # one cell is enough, but holds fewer than k rows
    gallery, queries = clustered(1000, 7), clustered(20, 8)
    exact = nearest_neighbours(queries, gallery, 600, metric=metric, exclude=np.arange(20))
    found = nearest_neighbours(queries, gallery, 600, metric=metric, exclude=np.arange(20), index="approximate")
    np.testing.assert_array_equal(found.indices, exact.indices)
    np.testing.assert_array_equal(found.distances, exact.distances)


@pytest.mark.parametrize("n", [2, 30, 100])
def test_approximate_works_in_the_smallest_galleries(n, capfd):
    gallery, queries = clustered(n, 9), clustered(5, 10)
    found = nearest_neighbours(queries, gallery, 2, index="approximate")
    np.testing.assert_array_equal(found.indices, nearest_neighbours(queries, gallery, 2).indices)
    assert "WARNING" not in "".join(capfd.readouterr())


def test_exact_is_the_default_and_auto_changes_with_the_sizes(monkeypatch):
    built = []
    inverted_file = module._inverted_file
    monkeypatch.setattr(module, "_inverted_file", lambda *args: built.append(1) or inverted_file(*args))
    monkeypatch.setattr(module, "APPROXIMATE_FROM", 2000)
    monkeypatch.setattr(module, "_FEWEST_QUERIES", 50)
    gallery, queries = clustered(2000, 11), clustered(50, 12)
    nearest_neighbours(queries, gallery, 3)
    nearest_neighbours(queries, gallery[:-1], 3, index="auto")
    nearest_neighbours(queries[:-1], gallery, 3, index="auto")
    assert not built
    nearest_neighbours(queries, gallery, 3, index="auto")
    assert len(built) == 1


def test_threads_of_torch_stay_with_an_approximate_index():
    import torch

    before = torch.get_num_threads()
    nearest_neighbours(clustered(20, 13), clustered(500, 14), 2, index="approximate")
    assert torch.get_num_threads() == before


def test_unknown_index_raises():
    with pytest.raises(ValueError, match="index='ivf' is unknown; expected one of exact, approximate, auto"):
        nearest_neighbours(Q, X, 1, index="ivf")


@pytest.mark.parametrize("copies", [3, 70])
def test_without_negative_entries_the_angle_is_that_of_the_cosine(copies):
    """As after a ReLU: the search for opposites is left out."""
    rng = np.random.default_rng(15)
    gallery = np.repeat(np.maximum(rng.normal(size=(40, 6)), 0) + 1e-3, copies, axis=0)
    queries = np.maximum(rng.normal(size=(9, 6)), 0) + 1e-3
    result = check_against_oracle(queries, gallery, 5, "angular")
    cosine = nearest_neighbours(queries, gallery, 5, metric="cosine")
    np.testing.assert_array_equal(result.indices, cosine.indices)
    np.testing.assert_array_equal(result.distances, cosine.distances)
