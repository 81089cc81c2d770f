"""Distances, neighbours and confidence of each image in each model, all in the representation space, never in a map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.features import unit_rows
from analysis.neighbours import nearest_neighbours
from analysis.ratios import ratio, ratio_r_prime
from analysis.representations import RepresentationSet

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Measures:
    """Measures of the n shown images in one model, with angular distances; None for an adversarial part that it lacks.

    Attributes
    ----------
    inner : ndarray of shape (K,), float64
        Mean distance between two clean images of a class, over all images; nan for a class without pairs.
    r_prime : float
        r' of all images, shown or not (`analysis.ratio_r_prime`); nan without an adversarial part.
    class_distance, adv_class_distance : ndarray of shape (n,), float32
        Mean distance to all clean images of the true class, shown or not; a clean image itself is left out.
    moved : ndarray of shape (n,), float32
        Distance between an image's clean and adversarial representation.
    neighbours, adv_neighbours : ndarray of shape (n, k), int32
        Rows, among those shown, of the nearest clean images, the nearest first and the image's own left out.
    confidence, adv_confidence : ndarray of shape (n,), float32
        Probability of the predicted class; None without logits.

    Notes
    -----
    r' of a selection S needs no features: with c_i = `adv_class_distance`, it is the mean, over the true classes k of
    the selected images that have an `inner` above 0, of (mean of c_i over the images of S in k) / inner_k. For S = all
    images that is `analysis.ratio_r_prime`.
    """

    inner: np.ndarray
    r_prime: float
    class_distance: np.ndarray
    neighbours: np.ndarray
    adv_class_distance: np.ndarray | None = None
    moved: np.ndarray | None = None
    adv_neighbours: np.ndarray | None = None
    confidence: np.ndarray | None = None
    adv_confidence: np.ndarray | None = None


def measure(reps: RepresentationSet, rows: np.ndarray, k: int) -> Measures:
    """Measure the rows that are shown; class distances are to all images, neighbours are among the shown ones."""
    unit = unit_rows(reps.features)
    n_classes = len(reps.class_names)
    if reps.adv_features is None:
        none = np.empty((0, reps.features.shape[1]))
        ratios = ratio(none, np.empty(0, np.int64), reps.features, reps.labels, n_classes=n_classes)
    else:
        ratios = ratio_r_prime(reps)
    gallery = reps.features[rows]
    own_rows = np.arange(len(rows))

    def neighbours(queries):
        if k == 0:
            return np.empty((len(rows), 0), np.int32)
        return nearest_neighbours(queries, gallery, k, exclude=own_rows).indices.astype(np.int32)

    # Each image is among the m of its class, at distance 0: the mean over the others is m / (m - 1) times as much.
    counts = np.bincount(reps.labels, minlength=n_classes)[reps.labels[rows]]
    with np.errstate(divide="ignore"):
        correction = np.where(counts > 1, counts / np.maximum(counts - 1, 1), np.nan)
    class_distance = _to_class(unit[rows], reps.labels[rows], unit, reps.labels) * correction
    values = {
        "inner": ratios.inner,
        "r_prime": ratios.value,
        "class_distance": class_distance.astype(np.float32),
        "neighbours": neighbours(gallery),
        "confidence": _confidence(reps.logits, rows),
    }
    if reps.adv_features is not None:
        adv = unit_rows(reps.adv_features[rows])
        values |= {
            "adv_class_distance": _to_class(adv, reps.labels[rows], unit, reps.labels).astype(np.float32),
            "moved": _distance(np.einsum("nd,nd->n", unit[rows], adv)).astype(np.float32),
            "adv_neighbours": neighbours(reps.adv_features[rows]),
            "adv_confidence": _confidence(reps.adv_logits, rows),
        }
    return Measures(**values)


def _to_class(queries, classes, gallery, labels):
    """Mean angular distance of each query to the gallery's rows of its class."""
    distances = np.empty(len(queries))
    for k in np.unique(classes):
        members = gallery[labels == k]
        class_rows = np.flatnonzero(classes == k)
        for start in range(0, len(class_rows), _ROWS_AT_ONCE):
            part = class_rows[start : start + _ROWS_AT_ONCE]
            distances[part] = _distance(queries[part] @ members.T).mean(axis=1)
    return distances


def _distance(cosines):
    return np.maximum(0, 1 - np.abs(cosines))


def _confidence(logits, rows):
    if logits is None:
        return None
    shifted = logits[rows] - logits[rows].max(axis=1, keepdims=True)
    return (1 / np.exp(shifted).sum(axis=1)).astype(np.float32)
