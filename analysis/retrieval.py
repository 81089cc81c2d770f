"""Retrieval of the right class by nearest neighbours, clean and under attack, and kNN accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.features import check_labels
from analysis.frames import frame, names_of, stacked
from analysis.neighbours import nearest_neighbours


@dataclass(frozen=True, eq=False, repr=False)
class RetrievedNeighbours:
    """The k nearest clean images of each query, and whether they are of its class.

    Attributes
    ----------
    rows : ndarray of shape (q,), int64
        Rows of the `RepresentationSet` that the queries are, clean or attacked.
    labels : ndarray of shape (q,), int64
        True classes of the queries.
    indices : ndarray of shape (q, k), int64
        Rows of the neighbours, the nearest first.
    distances : ndarray of shape (q, k), float32
    neighbour_labels : ndarray of shape (q, k), int64
        True classes of the neighbours.
    """

    rows: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    distances: np.ndarray
    neighbour_labels: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether each neighbour has the query's true class: bool (q, k)."""
        return self.neighbour_labels == self.labels[:, None]

    @property
    def precision_at_k(self) -> np.ndarray:
        """Share of each query's k neighbours that have its true class: float64 (q,), in [0, 1]."""
        return self.correct.mean(axis=1)

    @property
    def first_correct(self) -> np.ndarray:
        """Whether the nearest neighbour has the query's true class: bool (q,)."""
        return self.correct[:, 0]

    @property
    def mean_precision(self) -> float:
        """`precision_at_k`, averaged over the queries."""
        return float(self.precision_at_k.mean())

    @property
    def first_accuracy(self) -> float:
        """Share of the queries whose nearest neighbour has their true class."""
        return float(self.first_correct.mean())

    def __repr__(self):
        n_queries, k = self.indices.shape
        precision = f"precision@{k} {self.mean_precision:.3f}, nearest correct {self.first_accuracy:.3f}"
        return f"RetrievedNeighbours({n_queries} queries, k={k}, {precision})"


@dataclass(frozen=True, eq=False, repr=False)
class RetrievalResult:
    """What clean images, and the adversarial examples made from them, retrieve from the clean images.

    Attributes
    ----------
    clean : RetrievedNeighbours
    adversarial : RetrievedNeighbours or None
        None where the set has no adversarial part.
    metric : str
        The distance: "angular", "cosine" or "euclidean".
    """

    clean: RetrievedNeighbours
    adversarial: RetrievedNeighbours | None
    metric: str

    def to_dataframe(self, class_names=None):
        """One row for each neighbour: the ``query`` (``"clean"`` or ``"adversarial"``), its ``row`` and ``class``; the
        ``rank`` of the neighbour (1 is the nearest), ``neighbour_row``, ``neighbour_class``, ``distance``, ``correct``.

        `class_names` stand for the classes' numbers where they are given.
        """
        parts = {"clean": self.clean, "adversarial": self.adversarial}
        return stacked(({"query": kind}, _frame(each, class_names)) for kind, each in parts.items() if each is not None)

    def __repr__(self):
        n_queries, k = self.clean.indices.shape
        adversarial = "" if self.adversarial is None else f", adversarial {self.adversarial.mean_precision:.3f}"
        precision = f"precision@{k} clean {self.clean.mean_precision:.3f}{adversarial}"
        return f"RetrievalResult({n_queries} queries, metric={self.metric!r}, {precision})"


def _frame(retrieved: RetrievedNeighbours, class_names):
    n_queries, k = retrieved.indices.shape
    return frame({
        "row": np.repeat(retrieved.rows, k), "class": names_of(np.repeat(retrieved.labels, k), class_names),
        "rank": np.tile(np.arange(1, k + 1), n_queries), "neighbour_row": retrieved.indices.ravel(),
        "neighbour_class": names_of(retrieved.neighbour_labels.ravel(), class_names),
        "distance": retrieved.distances.ravel(), "correct": retrieved.correct.ravel(),
    })  # fmt: skip


def retrieve(reps, *, k=3, metric="angular", rows=None, exclude_self=True, index="exact") -> RetrievalResult:
    """Find the clean images nearest to each image, and nearest to the adversarial example made from it.

    Parameters
    ----------
    reps : RepresentationSet
        Its `features` and `labels` are the gallery; its `adv_features`, where there are any, are queries too.
    k : int
        Number of neighbours, from 1 to the number of images, less the query itself.
    metric : {"angular", "cosine", "euclidean"}
        See `nearest_neighbours`.
    rows : array_like of int, shape (q,), optional
        Rows of the images to query with; by default all.
    exclude_self : bool
        Leave the query's own image out of its neighbours: for an adversarial example, the clean image that it was
        made from, which says nothing about the class.
    index : {"exact", "approximate", "auto"}
        See `nearest_neighbours`.

    Returns
    -------
    RetrievalResult
        Whether a neighbour is right is judged by the true classes of both, predictions play no part.

    Raises
    ------
    ValueError
        For rows that the set does not hold, a k that is too large, and as `nearest_neighbours`.

    Notes
    -----
    Fig. 7 of the supplement of "Metric Learning for Adversarial Robustness" (Mao et al., 2019) shows k = 3.
    """
    rows = _check_rows(rows, len(reps.features))
    gallery_labels = np.asarray(reps.labels)

    def search(features):
        distances, indices = nearest_neighbours(
            features[rows], reps.features, k, metric=metric, exclude=rows if exclude_self else None, index=index
        )
        return RetrievedNeighbours(rows, gallery_labels[rows], indices, distances, gallery_labels[indices])

    adversarial = None if reps.adv_features is None else search(reps.adv_features)
    return RetrievalResult(search(reps.features), adversarial, metric)


def knn_predict(
    gallery_features, gallery_labels, queries, *, k=50, metric="angular", exclude=None, index="exact"
) -> np.ndarray:
    """The most frequent class among each query's k nearest neighbours; of a tie the class that has the nearest one.

    Parameters
    ----------
    gallery_features, gallery_labels : array_like of shape (n, d) and (n,)
        Representations to search in, and their classes.
    queries : array_like of shape (q, d)
    k : int
        Number of neighbours that vote, with equal weights.
    metric, exclude, index
        See `nearest_neighbours`.

    Returns
    -------
    ndarray of shape (q,)
        Classes, of the type of `gallery_labels`.

    Raises
    ------
    ValueError
        Where there are not as many labels as rows, and as `nearest_neighbours`.

    Examples
    --------
    >>> knn_predict([[1, 0], [1, 1], [0, 1], [0, 2]], [0, 0, 1, 1], [[2, 1], [1, 9]], k=2)
    array([0, 1])
    """
    gallery_labels = check_labels(gallery_labels, "gallery_labels", len(gallery_features), any_sign=True)
    _, indices = nearest_neighbours(queries, gallery_features, k, metric=metric, exclude=exclude, index=index)
    classes, members = np.unique(gallery_labels, return_inverse=True)
    voters = members[indices]
    votes = np.stack([(voters == member).sum(axis=1) for member in range(len(classes))], axis=1)
    # argmax takes the first of equal values, and the voters stand in the order of their distance.
    winner = np.take_along_axis(votes, voters, axis=1).argmax(axis=1)
    return classes[voters[np.arange(len(voters)), winner]]


def knn_accuracy(
    gallery_features, gallery_labels, queries, labels, *, k=50, metric="angular", exclude=None, index="exact"
) -> float:
    """Share of the queries that a vote of their k nearest neighbours classifies correctly: see `knn_predict`.

    Parameters
    ----------
    gallery_features, gallery_labels : array_like of shape (n, d) and (n,)
        Representations to search in, usually of clean images, and their classes.
    queries, labels : array_like of shape (q, d) and (q,)
        Representations to classify, clean or adversarial, and their true classes.
    k : int
        Number of neighbours that vote; 50 in the main text of Mao et al. (2019).
    metric, exclude, index
        See `nearest_neighbours`.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        As `knn_predict`, and where there are not as many labels as queries.
    """
    labels = check_labels(labels, "labels", len(queries), any_sign=True)
    predictions = knn_predict(
        gallery_features, gallery_labels, queries, k=k, metric=metric, exclude=exclude, index=index
    )
    return float(np.mean(predictions == labels))


def _check_rows(rows, n):
    if rows is None:
        return np.arange(n)
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) == 0:
        raise ValueError(f"rows has shape {rows.shape} and type {rows.dtype}; expected one integer or more, in a row.")
    is_wrong = (rows < 0) | (rows >= n)
    if is_wrong.any():
        raise ValueError(f"rows holds {rows[np.argmax(is_wrong)]}; expected rows of the set, from 0 to {n - 1}.")
    return rows.astype(np.int64)
