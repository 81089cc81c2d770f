"""Ratios of distances between and within classes: how far adversarial examples lie from a class, in units of that
class's own spread. r takes the adversaries mistaken *for* a class, r' those crafted *from* it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np

from analysis.features import check_features, check_labels, check_metric, check_nonzero_rows, unit_rows
from analysis.frames import frame, names_of

# Products and distances are formed one square tile at a time: 4 million float64 entries are 32 MB.
_BLOCK_ENTRIES = 4_000_000
# An inner distance below this share of the features' scale is rounding: neighbouring float32 numbers differ by 6e-8,
# which is 2e-15 in 1 - cos, and float64 sums over up to a million entries err by less than 1e-12.
ROUNDING = 1e-12
_LEFT_OUT_SHOWN = 8


@dataclass(frozen=True, eq=False, repr=False)
class RatioResult:
    """Ratio of cross-class to inner-class distance, overall and per class.

    Attributes
    ----------
    value : float
        Mean of `per_class` over the classes that have a ratio, 0 or more; nan where none has one.
    per_class : ndarray of shape (K,), float64
        ``cross / inner``; nan for a class that was left out.
    left_out : tuple of int
        Classes without adversaries, with fewer than two clean images, or with an inner distance of 0.
    inner, cross : ndarray of shape (K,), float64
        Mean inner-class and cross-class distances; nan where there are no pairs.
    metric : str
        The distance: "angular", "cosine" or "euclidean".
    """

    value: float
    per_class: np.ndarray
    left_out: tuple[int, ...]
    inner: np.ndarray
    cross: np.ndarray
    metric: str

    def to_dataframe(self, class_names=None):
        """One row for each class: ``class``, ``ratio``, ``inner``, ``cross``; nan where there is none.

        `class_names` stand for the classes' numbers where they are given.
        """
        classes = names_of(range(len(self.per_class)), class_names)
        return frame({"class": classes, "ratio": self.per_class, "inner": self.inner, "cross": self.cross})

    def __repr__(self):
        n_classes = len(self.per_class)
        n_others = len(self.left_out) - _LEFT_OUT_SHOWN
        others = f" and {n_others} more" if n_others > 0 else ""
        listed = ", ".join(map(str, self.left_out[:_LEFT_OUT_SHOWN])) + others
        left_out = f", left out: {listed}" if self.left_out else ""
        used = f"{n_classes - len(self.left_out)} of {n_classes} classes{left_out}"
        return f"RatioResult(value={self.value:.4g}, metric={self.metric!r}, {used})"


def ratio(cross_features, cross_classes, features, labels, *, metric="angular", n_classes=None) -> RatioResult:
    """Mean distance from adversaries to a class's clean images, over the mean distance within that class.

    With c_i the representations of the clean images of class k, and c'_q those of the adversaries assigned to it::

        inner_k = mean over unordered pairs i < j of D(c_i, c_j)
        cross_k = mean over all pairs (q, i) of D(c'_q, c_i)
        value   = mean over classes k of cross_k / inner_k

    Parameters
    ----------
    cross_features : array_like of shape (m, d)
        Representations of the adversaries; m may be 0 (every class is left out then).
    cross_classes : array_like of int, shape (m,)
        The class, 0 or more, whose clean images each adversary is compared with.
    features : array_like of shape (n, d)
        Representations of the clean images.
    labels : array_like of int, shape (n,)
        True classes of the clean images, 0 or more.
    metric : {"angular", "cosine", "euclidean"}
        D: 1 - |cos|, in [0, 1]; 1 - cos, in [0, 2]; or the Euclidean distance, not squared.
    n_classes : int, optional
        K, the number of classes; by default 1 + the highest class in `labels` and `cross_classes`.

    Returns
    -------
    RatioResult
        Computed in float64, whatever the type of the features.

    Raises
    ------
    ValueError
        For NaN, infinity or (angular, cosine) a zero vector, naming the row; for wrong shapes or lengths, an empty
        `features`, negative or non-integer classes, a class that `n_classes` excludes, or an unknown metric.

    Notes
    -----
    The definition is that of Table 3 of the supplement of "Metric Learning for Adversarial Robustness" (Mao et al.,
    2019). Only one tile of at most 4 million distances is held at a time; 1 - cos, and 1 - |cos| where no feature is
    negative, need no pairs at all.

    Examples
    --------
    >>> ratio([[1, 1], [0, 1]], [0, 1], [[1, 0], [0, 1], [1, 0], [1, 1]], [0, 0, 1, 1])
    RatioResult(value=1.25, metric='angular', 2 of 2 classes)
    """
    check_metric(metric)
    features = check_features(features, "features")
    cross_features = check_features(cross_features, "cross_features", may_be_empty=True)
    if cross_features.shape[1] != features.shape[1]:
        raise ValueError(
            f"cross_features has {cross_features.shape[1]} columns, features {features.shape[1]}; expected the same "
            "number. Take both from the same layer of the same model."
        )
    labels = check_labels(labels, "labels", len(features))
    cross_classes = check_labels(cross_classes, "cross_classes", len(cross_features))
    if metric != "euclidean":
        check_nonzero_rows(features, "features", metric)
        check_nonzero_rows(cross_features, "cross_features", metric)

    # Mean distances, class by class.
    highest = max(labels.max(), cross_classes.max(initial=0))
    n_classes = int(highest) + 1 if n_classes is None else _check_n_classes(n_classes, highest)
    inner, cross = np.full(n_classes, np.nan), np.full(n_classes, np.nan)
    for k in range(n_classes):
        clean = features[labels == k]
        adversaries = cross_features[cross_classes == k]
        if len(clean) == 0:
            continue
        clean, adversaries = prepare_rows(clean, metric), prepare_rows(adversaries, metric)
        if len(clean) > 1:
            inner[k] = _mean_inner(clean, metric)
        if len(adversaries) > 0:
            cross[k] = _mean_cross(adversaries, clean, metric)

    # Their ratios, where both are there.
    has_ratio = np.isfinite(cross) & (inner > 0)
    per_class = np.full(n_classes, np.nan)
    per_class[has_ratio] = cross[has_ratio] / inner[has_ratio]
    value = float(per_class[has_ratio].mean()) if has_ratio.any() else float("nan")
    return RatioResult(value, per_class, tuple(np.flatnonzero(~has_ratio).tolist()), inner, cross, metric)


def ratio_r(reps, *, metric="angular") -> RatioResult:
    """r: how far adversarial examples stay from the class they are mistaken for. Higher is better.

    Parameters
    ----------
    reps : RepresentationSet
        With an adversarial part: its `adv_features`, `adv_predictions`, `features`, `labels` and `class_names`.
    metric : {"angular", "cosine", "euclidean"}
        See `ratio`.

    Returns
    -------
    RatioResult
        Class k compares the adversarial examples predicted as k, but of another true class, with the clean images
        of k (section 3 of the method; column r of the first arXiv version, 1909.00900v1).

    Raises
    ------
    ValueError
        Where `reps` has no adversarial part, and as `ratio`.
    """
    adversaries, predictions = _adversarial(reps, "adv_features", metric), _adversarial(reps, "adv_predictions", metric)
    mistaken = predictions != np.asarray(reps.labels)
    cross_features, cross_classes = adversaries[mistaken], predictions[mistaken]
    n_classes = _n_classes(reps, predictions)
    return ratio(cross_features, cross_classes, reps.features, reps.labels, metric=metric, n_classes=n_classes)


def ratio_r_prime(reps, *, metric="angular", drawn_from=None) -> RatioResult:
    """r': how far an attack moves images away from their own class. Lower is better.

    Parameters
    ----------
    reps : RepresentationSet
        With an adversarial part: its `adv_features`, `features`, `labels` and `class_names`.
    metric : {"angular", "cosine", "euclidean"}
        See `ratio`.
    drawn_from : int, optional
        How many images those of `reps` were drawn from: the ratio over all these images is estimated then. An
        adversarial example is compared with its own clean image too, which is near. That pair is one of n in `reps`,
        with n images of its class, and a smaller share among all images.

    Returns
    -------
    RatioResult
        Class k compares all adversarial examples crafted from images of true class k, successful or not, with the
        clean images of k (section 3 of the method; Table 3 of the supplement).

    Raises
    ------
    ValueError
        Where `reps` has no adversarial part or more images than `drawn_from`, and as `ratio`.
    """
    adversaries = _adversarial(reps, "adv_features", metric)
    sample_ratio = ratio(
        adversaries, reps.labels, reps.features, reps.labels, metric=metric, n_classes=_n_classes(reps)
    )
    if drawn_from is None or drawn_from == len(reps.labels):
        return sample_ratio
    if drawn_from < len(reps.labels):
        raise ValueError(f"drawn_from={drawn_from}; expected at least the {len(reps.labels)} images of reps.")
    labels = np.asarray(reps.labels)
    u, v = (prepare_rows(np.asarray(part), metric) for part in (adversaries, reps.features))
    if metric == "euclidean":
        own_distances = np.linalg.norm(u - v, axis=1)
    else:
        cosines = (u * v).sum(1)
        own_distances = 1 - (np.abs(cosines) if metric == "angular" else cosines)
    has_ratio = np.isfinite(sample_ratio.per_class)
    cross, per_class = sample_ratio.cross.copy(), sample_ratio.per_class.copy()
    for k in np.flatnonzero(has_ratio):
        is_in_class = labels == k
        n, total = is_in_class.sum(), is_in_class.sum() * drawn_from / len(labels)
        other_distance = (n * sample_ratio.cross[k] - own_distances[is_in_class].mean()) / (n - 1)
        cross[k] = (own_distances[is_in_class].mean() + (total - 1) * other_distance) / total
        per_class[k] = cross[k] / sample_ratio.inner[k]
    value = float(per_class[has_ratio].mean()) if has_ratio.any() else float("nan")
    return RatioResult(value, per_class, sample_ratio.left_out, sample_ratio.inner, cross, metric)


def prepare_rows(features, metric):
    """float64, and of unit length but for Euclidean distances: what `pairwise_distances` takes."""
    return features.astype(np.float64) if metric == "euclidean" else unit_rows(features)


def _mean_cross(a, b, metric):
    if _has_closed_form(metric, a, b):
        return max(0.0, 1 - a.mean(axis=0) @ b.mean(axis=0))
    total = sum(_tile(a[rows], b[columns], metric).sum() for rows in _spans(len(a)) for columns in _spans(len(b)))
    mean = total / (len(a) * len(b))
    return mean if metric == "euclidean" else max(0.0, 1 - mean)


def _mean_inner(a, metric):
    n_pairs = len(a) * (len(a) - 1) / 2
    if _has_closed_form(metric, a):
        total = a.sum(axis=0)
        mean = 1 - (total @ total - len(a)) / 2 / n_pairs
    else:
        total = 0.0
        for rows in _spans(len(a)):
            tile = _tile(a[rows], a[rows], metric)
            total += (tile.sum() - np.trace(tile)) / 2
            total += sum(_tile(a[rows], a[columns], metric).sum() for columns in _spans(len(a), rows.stop))
        mean = total / n_pairs if metric == "euclidean" else 1 - total / n_pairs
    scale = np.linalg.norm(a, axis=1).max() if metric == "euclidean" else 1.0
    return mean if mean > ROUNDING * scale else 0.0


def _has_closed_form(metric, *features):
    """The mean of u.v over pairs is a product of sums; |u.v| is u.v where no entry is negative, as after a ReLU."""
    return metric == "cosine" or (metric == "angular" and all(part.min() >= 0 for part in features))


def _tile(a, b, metric):
    """|cos| of unit rows, or Euclidean distances: (len(a), len(b))."""
    if metric == "euclidean":
        # Differences, since |a|^2 + |b|^2 - 2 a.b loses half of the digits for near neighbours.
        from scipy.spatial.distance import cdist

        return cdist(a, b)
    products = a @ b.T
    return np.abs(products, out=products)


def pairwise_distances(a, b, metric):
    """Distances of rows as `prepare_rows` leaves them: (len(a), len(b))."""
    if metric == "euclidean":
        return _tile(a, b, metric)
    products = a @ b.T if metric == "cosine" else _tile(a, b, metric)
    return np.subtract(1, products, out=products)


def _spans(n, start=0):
    side = isqrt(_BLOCK_ENTRIES)
    return [slice(first, min(first + side, n)) for first in range(start, n, side)]


def _adversarial(reps, field, metric):
    """One adversarial array of `reps`, checked while it has all rows, so that messages number them as `reps` does."""
    values = getattr(reps, field, None)
    if values is None:
        raise ValueError(f"reps.{field} is None; expected adversarial examples. Pass attack= to analysis.extract.")
    if len(values) != len(reps.labels):
        raise ValueError(
            f"reps.{field} has {len(values)} rows, reps.labels {len(reps.labels)}; expected one adversarial example "
            "per image. Extract them together."
        )
    if field != "adv_features":
        return np.asarray(values)
    check_metric(metric)
    values = check_features(values, "reps.adv_features")
    if metric != "euclidean":
        check_nonzero_rows(values, "reps.adv_features", metric)
    return values


def _n_classes(reps, predictions=()):
    names = getattr(reps, "class_names", None)
    highest = max(np.max(reps.labels, initial=-1), np.max(predictions, initial=-1))
    return max(0 if names is None else len(names), 1 + int(highest))


def _check_n_classes(n_classes, highest):
    if not isinstance(n_classes, int | np.integer) or isinstance(n_classes, bool) or n_classes <= highest:
        raise ValueError(f"n_classes={n_classes!r}; expected an integer above the highest class, {highest}, or None.")
    return int(n_classes)
