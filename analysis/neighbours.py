"""Nearest neighbours among representations: FAISS proposes candidates in float32, float64 decides."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis.features import check_features, check_metric, check_nonzero_rows, unit_rows

# Candidates beyond k: they settle ties at the boundary, and neighbours that float32 puts in the wrong order.
_SPARE = 16
# Where more rows than that tie, the number of candidates grows by this factor.
_WIDEN = 8
# Queries are answered in blocks of at most 4 million candidates.
_BLOCK_ENTRIES = 4_000_000
# Differences are formed 2 MB of float64 at a time: in the processor's cache, 2.5 times as fast as 32 MB at a time.
_PAIR_ENTRIES = 250_000
# The largest k of FAISS's selection on a GPU.
_GPU_WIDEST = 2048
INDEXES = ("exact", "approximate", "auto")
# The numbers of gallery rows and of queries from which "auto" is approximate: below, comparing everything takes little
# longer than building an inverted file.
APPROXIMATE_FROM, _FEWEST_QUERIES = 100_000, 1000
# Training rows per cell: fewer than 39 place the centroids badly, says FAISS, and more than 64 move them little.
_ROWS_PER_CELL = (39, 64)
# Cells are added until this share of the true neighbours is found, measured on this many queries. Their 10 neighbours
# each leave a standard error of at most 0.01, so that the recall of all queries is above 0.95.
_TARGET_RECALL, _TRIAL_QUERIES = 0.98, 256


class NeighbourResult(NamedTuple):
    """Neighbours of each query, unpackable as ``distances, indices = result``.

    Attributes
    ----------
    distances : ndarray of shape (q, k), float32
        From the nearest to the farthest.
    indices : ndarray of shape (q, k), int64
        Rows of the gallery; equal distances in ascending order of index.
    """

    distances: np.ndarray
    indices: np.ndarray

    def __repr__(self):
        n_queries, k = self.distances.shape
        span = f", distances {self.distances.min():.4g} to {self.distances.max():.4g}"
        return f"NeighbourResult({n_queries} queries, k={k}{span})"


def nearest_neighbours(queries, gallery, k, *, metric="angular", exclude=None, index="exact") -> NeighbourResult:
    """The k rows of the gallery nearest to each query, exactly unless asked otherwise.

    Parameters
    ----------
    queries : array_like of shape (q, d)
        Representations to search for.
    gallery : array_like of shape (n, d), or iterable of blocks
        Representations to search in. Blocks are arrays of shape (m, d), or paths of stored sets, whose clean features
        are taken; a list of them, or a generator. Only one is in memory at a time, rows are counted through all of
        them, and the result is that of all rows in one array.
    k : int
        Number of neighbours, from 1 to n, or to n - 1 where `exclude` leaves a row out.
    metric : {"angular", "cosine", "euclidean"}
        1 - |cos|, in [0, 1]: a vector and its opposite are the same; 1 - cos, in [0, 2]; or the Euclidean distance,
        not squared.
    exclude : array_like of int, shape (q,), optional
        For each query one gallery row to leave out, usually the query itself; -1 leaves none out.
    index : {"exact", "approximate", "auto"}
        "approximate" searches a part of the gallery only, so large that it holds 98 % of the k nearest rows of 256 of
        the queries. A few neighbours are missed; the distances of the others are exact. "auto" is approximate from
        100,000 rows and 1,000 queries on, and exact below. It is chosen for each block.

    Returns
    -------
    NeighbourResult
        ``distances, indices``, both of shape (q, k), sorted by (distance, index).

    Raises
    ------
    ValueError
        For k out of range, NaN, infinity or (angular, cosine) a zero vector, naming the row; for wrong shapes, an
        empty array, an `exclude` of another length or out of range, or an unknown metric or index. Of blocks, k and
        `exclude` are compared with their rows when all were read.
    FileNotFoundError, CheckpointError
        For a path without a stored set, or a damaged one.
    ImportError
        Where FAISS is not installed, saying how to install it.

    Notes
    -----
    FAISS's flat indexes see every row, in float32 and, for Euclidean distances, through |q|^2 + |x|^2 - 2 q.x, which
    confuses near neighbours. So more than k candidates are taken and their distances computed anew in float64; a
    query whose k-th neighbour is not clearly nearer than all that FAISS left out is compared with the whole gallery
    in float64. A GPU is used where FAISS supports one.

    The approximate index is an inverted file: seeded k-means divides the n rows into about sqrt(n) cells, and a query
    is compared with the rows of the nearest cells only, on the CPU. There are as many of these as the
    recall measured on evenly spaced queries needs, so that features without clusters cost time, not recall. The same
    input gives the same result. Where the cells hold fewer than k rows, the whole gallery is searched.

    Examples
    --------
    >>> distances, indices = nearest_neighbours([[1, 0]], [[0, 1], [1, 1], [-3, 0]], 2)
    >>> indices
    array([[2, 1]])
    """
    check_metric(metric)
    if index not in INDEXES:
        raise ValueError(f"index={index!r} is unknown; expected one of {', '.join(INDEXES)}.")
    if _in_blocks(gallery):
        return _nearest_in_blocks(queries, gallery, k, metric, exclude, index)
    queries, gallery = check_features(queries, "queries"), check_features(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries has {queries.shape[1]} columns, gallery {gallery.shape[1]}; expected the same number. Take both "
            "from the same layer of the same model."
        )
    exclude = _check_exclude(exclude, len(queries), len(gallery))
    _check_k(k, len(gallery), (exclude >= 0).any())
    large = len(gallery) >= APPROXIMATE_FROM and len(queries) >= _FEWEST_QUERIES
    approximate = index == "approximate" or (index == "auto" and large)
    queries, gallery, unit = _prepare(queries, gallery, metric)
    if metric == "angular" and queries.min() >= 0 and gallery.min() >= 0:
        metric = "cosine"  # no product is negative, as after a ReLU: nothing lies near the opposite of a query
    distances = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)
    open_rows, width = np.arange(len(queries)), min(k + 1 + _SPARE, len(gallery))
    search, entries_per_query = _flat_index(gallery, metric), width
    if approximate and width < len(gallery):
        trials = np.linspace(0, len(queries) - 1, min(len(queries), _TRIAL_QUERIES)).astype(np.int64)
        search = _inverted_file(gallery, metric, search, queries[trials], exclude[trials], k)
    while len(open_rows) > 0:
        undecided_rows = []
        step = max(1, _BLOCK_ENTRIES // entries_per_query)
        for rows in (open_rows[start : start + step] for start in range(0, len(open_rows), step)):
            candidates, approximate_scores, limit = _candidates(search, queries[rows], width, len(gallery), metric)
            scores = _scores(queries[rows], gallery, candidates, metric)
            # What an inverted file left out is given up, so that nothing is too far away to be an answer.
            limit = np.full(len(rows), np.inf) if approximate else limit - _allowance(scores, approximate_scores)
            scores[(candidates == exclude[rows, None]) | (candidates < 0)] = np.inf
            if metric == "euclidean":
                scores, limit = unit * np.sqrt(scores), unit * np.sqrt(np.maximum(limit, 0))
            distances[rows], indices[rows] = _nearest(scores.astype(np.float32), candidates, k)
            undecided_rows.append(rows[distances[rows, -1] >= limit.astype(np.float32)])
        open_rows = np.concatenate(undecided_rows)
        if entries_per_query == len(gallery):
            width = min(width * _WIDEN, len(gallery))
        search, entries_per_query, approximate = _all_products(gallery, metric), len(gallery), False
    return NeighbourResult(distances, indices)


def _prepare(queries, gallery, metric):
    """Float64 queries and gallery with entries in [-1, 1], and the unit in which their distances are."""
    if metric != "euclidean":
        check_nonzero_rows(queries, "queries", metric)
        check_nonzero_rows(gallery, "gallery", metric)
        return unit_rows(queries), unit_rows(gallery), 1.0
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    # A power of two rounds nothing.
    unit = np.exp2(np.frexp(max(np.abs(queries).max(), np.abs(gallery).max()))[1])
    return queries / unit, gallery / unit, unit


def _in_blocks(gallery):
    """Whether a gallery is given in blocks."""
    if isinstance(gallery, Iterator | str | Path):
        return True
    first = gallery[0] if isinstance(gallery, list | tuple) and gallery else None
    return isinstance(first, str | Path) or np.ndim(first) == 2


def _nearest_in_blocks(queries, blocks, k, metric, exclude, index):
    """The neighbours in each block by itself, merged by (distance, index)."""
    queries = check_features(queries, "queries")
    if metric != "euclidean":
        check_nonzero_rows(queries, "queries", metric)
    # How many rows there are, the last block tells.
    exclude = _check_exclude(exclude, len(queries), np.iinfo(np.int64).max)
    some_excluded = (exclude >= 0).any()
    _check_k(k, np.iinfo(np.int64).max, some_excluded)
    best, n_rows = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)), 0
    for number, block in enumerate([blocks] if isinstance(blocks, str | Path) else blocks):
        features = _features_of(block)
        try:
            # One more than k, since one row of each query may be left out.
            width = min(k + int(some_excluded), len(check_features(features, "gallery")))
            distances, indices = nearest_neighbours(queries, features, width, metric=metric, index=index)
        except ValueError as error:
            raise ValueError(f"block {number} of the gallery: {error}") from error
        indices += n_rows
        distances[indices == exclude[:, None]] = np.inf
        best = _nearest(*map(np.hstack, zip(best, (distances, indices), strict=True)), k)
        n_rows += len(features)
    _check_exclude(exclude, len(queries), n_rows)
    _check_k(k, n_rows, some_excluded)
    return NeighbourResult(*best)


def _features_of(block):
    from analysis.representations import RepresentationSet

    return RepresentationSet.load(block).features if isinstance(block, str | Path) else np.asarray(block)


def _centre(gallery, metric):
    """What to subtract before float32, which keeps more of Euclidean distances then; others need the origin."""
    return gallery.mean(axis=0) if metric == "euclidean" else 0.0


def _in_float32(rows, centre):
    return np.subtract(rows, centre, out=np.empty(rows.shape, np.float32), casting="same_kind")


def _candidates(search, queries, width, n_gallery, metric):
    """Candidates (q, c) with approximate scores (q, c), and limits (q,) for the scores of all other rows.

    A score is the distance, squared for "euclidean". Candidates are gallery rows, `width` or more to a query, some of
    them perhaps twice; but for rounding, no row outside them has a score below the limit.
    """
    if width == n_gallery:
        all_rows = np.broadcast_to(np.arange(width), (len(queries), width))
        return all_rows, None, np.full(len(queries), np.inf)
    values, candidates = search(queries, width)
    limit = values[:, -1]
    if metric == "euclidean":
        return candidates, values, limit
    if metric == "angular":
        opposite_values, opposite_candidates = search(-queries, width)
        limit = np.maximum(limit, opposite_values[:, -1])
        values, candidates = np.abs(np.hstack([values, opposite_values])), np.hstack([candidates, opposite_candidates])
    return candidates, 1 - values, 1 - limit


def _import_faiss():
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "nearest_neighbours needs FAISS, which is not installed. Run pip install 'tla-toolkit[cpu]', or "
            "'tla-toolkit[gpu]' on a machine with an NVIDIA GPU; never both, they own the same module."
        ) from error
    _one_thread_in_forks(faiss.omp_set_num_threads)
    return faiss


@functools.cache
def _one_thread_in_forks(set_threads):
    """The threads of OpenMP do not live on in a fork, which would wait for them without end."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: set_threads(1))


def _flat_index(gallery, metric):
    """A function (queries, width) -> squared distances or products (q, width) in float32, indices; best first."""
    faiss, centre = _import_faiss(), _centre(gallery, metric)
    on_cpu = (faiss.IndexFlatL2 if metric == "euclidean" else faiss.IndexFlatIP)(gallery.shape[1])
    on_cpu.add(_in_float32(gallery, centre))
    on_gpu = resources = None
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        try:
            resources = faiss.StandardGpuResources()
            on_gpu = faiss.index_cpu_to_gpu(resources, 0, on_cpu)
        except RuntimeError:
            # The GPU has no room for the gallery: the answers are the same without it.
            on_gpu = None

    def search(queries, width):
        index = on_gpu if on_gpu is not None and width <= _GPU_WIDEST else on_cpu
        return index.search(_in_float32(queries, centre), width)

    return search


def _inverted_file(gallery, metric, search_all, trials, exclude, k):
    """As `_flat_index`, but in the nearest cells only; indices are -1 where these hold too few rows.

    `search_all` is the function of `_flat_index`, which finds the true neighbours of the queries `trials`.
    """
    faiss, centre = _import_faiss(), _centre(gallery, metric)
    n_rows, n_features = gallery.shape
    n_cells = max(1, min(isqrt(n_rows), n_rows // _ROWS_PER_CELL[0]))
    if metric == "euclidean":
        file = faiss.IndexIVFFlat(faiss.IndexFlatL2(n_features), n_features, n_cells, faiss.METRIC_L2)
    else:
        file = faiss.IndexIVFFlat(faiss.IndexFlatIP(n_features), n_features, n_cells, faiss.METRIC_INNER_PRODUCT)
    file.cp.seed, file.cp.min_points_per_centroid, file.cp.max_points_per_centroid = 0, 1, _ROWS_PER_CELL[1]
    rows = _in_float32(gallery, centre)
    file.train(rows)
    file.add(rows)

    def search(queries, width):
        return file.search(_in_float32(queries, centre), width)

    def nearest(search_function):
        candidates, _, _ = _candidates(search_function, trials, k + 1, n_rows, metric)
        scores = _scores(trials, gallery, candidates, metric)
        scores[(candidates == exclude[:, None]) | (candidates < 0)] = np.inf
        return _nearest(scores, candidates, k)[0]

    true_distances = nearest(search_all)[:, -1:]
    file.nprobe = 1
    while file.nprobe < n_cells and np.mean(nearest(search) <= true_distances) < _TARGET_RECALL:
        file.nprobe = min(max(file.nprobe + 1, file.nprobe * 3 // 2), n_cells)
    return search


def _all_products(gallery, metric):
    """As `_flat_index`, in float64, for the queries that float32 cannot decide; of these there may be none."""

    @functools.cache
    def centred():
        centre = _centre(gallery, metric)
        rows = gallery - centre if metric == "euclidean" else gallery
        return centre, rows, np.einsum("nd,nd->n", rows, rows)

    def search(queries, width):
        centre, rows, norms = centred()
        queries = queries - centre
        badness = queries @ rows.T
        badness *= -1 if metric != "euclidean" else -2
        if metric == "euclidean":
            badness += norms + np.einsum("qd,qd->q", queries, queries)[:, None]
        best = np.argpartition(badness, width - 1, axis=1)[:, :width]
        values = np.take_along_axis(badness, best, 1)
        order = np.argsort(values, axis=1)
        values, best = np.take_along_axis(values, order, 1), np.take_along_axis(best, order, 1)
        return values if metric == "euclidean" else -values, best

    return search


def _scores(queries, gallery, candidates, metric):
    """Float64 scores of the candidates (r, c). Equal rows score equally: sums run over differences, row by row."""
    pairs = candidates.ravel()
    scores = np.empty(len(pairs))
    step = max(1, _PAIR_ENTRIES // gallery.shape[1])
    for start in range(0, len(pairs), step):
        part = slice(start, min(start + step, len(pairs)))
        query_rows = queries[np.arange(part.start, part.stop) // candidates.shape[1]]
        differences = gallery[pairs[part]]
        if metric == "angular":
            differences *= np.where(np.einsum("pd,pd->p", query_rows, differences) < 0, -1.0, 1.0)[:, None]
        differences -= query_rows
        scores[part] = np.einsum("pd,pd->p", differences, differences)
    if metric != "euclidean":
        # 1 - u.v = |u - v|^2 / 2 for unit vectors, and exactly 0 for equal ones.
        scores /= 2
    return scores.reshape(candidates.shape)


def _allowance(exact, approximate):
    """How far below the limit the score of a row outside the candidates may lie: four times the largest error seen."""
    if approximate is None:
        return 0.0
    return 4 * max(np.abs(exact - approximate).max(), np.finfo(approximate.dtype).eps)


def _nearest(distances, candidates, k):
    """The first k of each row by (distance, index), counting each candidate once."""
    order = np.argsort(candidates, axis=1)
    candidates, distances = np.take_along_axis(candidates, order, 1), np.take_along_axis(distances, order, 1)
    distances[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = np.inf
    order = np.argsort(distances, axis=1, stable=True)[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(candidates, order, 1)


def _check_exclude(exclude, n_queries, n_gallery):
    if exclude is None:
        return np.full(n_queries, -1)
    exclude = np.asarray(exclude)
    if exclude.shape != (n_queries,):
        raise ValueError(f"exclude has shape {exclude.shape}; expected ({n_queries},), one gallery row per query.")
    if exclude.dtype.kind not in "iu":
        raise ValueError(f"exclude has type {exclude.dtype}; expected integers, with -1 where no row is left out.")
    is_wrong = (exclude < -1) | (exclude >= n_gallery)
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise ValueError(f"exclude row {row} is {exclude[row]}; expected -1, or a gallery row up to {n_gallery - 1}.")
    return exclude.astype(np.int64)


def _check_k(k, n_gallery, some_excluded):
    largest = n_gallery - int(some_excluded)
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= largest:
        rows_text = f"{n_gallery} rows, less the excluded one" if some_excluded else f"{n_gallery} rows"
        raise ValueError(f"k={k!r}; expected an integer from 1 to {largest}: the gallery has {rows_text}.")
