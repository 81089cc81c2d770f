"""The errors of r and r', of all classes and class by class, by the bootstrap."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from analysis.features import unit_rows
from analysis.ratios import ROUNDING, pairwise_distances, prepare_rows, ratio_r, ratio_r_prime
from tla_core.validation import check_one_of, check_whole


def bootstrap_r_prime(reps, *, metric="angular", drawn_from=None, n_resamples=400, random_state=0) -> np.ndarray:
    """r' of resamples of the images, drawn with replacement within each class; their spread is the error of r'.

    An image is drawn together with its adversarial example. Representations of the same images get the same resamples
    from the same `random_state`, whatever the model: differences of two models' r' are paired then.

    Parameters
    ----------
    reps, metric, drawn_from
        As of `ratio_r_prime`.
    n_resamples : int
        1 or more.
    random_state : int

    Returns
    -------
    ndarray of shape (n_resamples,), float64
        Mean over the classes that have a ratio in `reps` and in the resample, where one image alone may be left of a
        small class; nan where none has one.

    Raises
    ------
    ValueError
        As `ratio_r_prime`, and for another `n_resamples`.

    Notes
    -----
    The bootstrap of B. Efron (1979), stratified by class. Pairs of an image with itself, which a resample holds, are
    left out of the inner-class distance; pairs of an adversarial example with its own clean image keep the share that
    they have in `reps`. One matrix of a class's distances is held at a time, 8 n_k^2 bytes.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> angles = np.linspace(0.1, 0.5, 20)
    >>> clean, adversarial = (np.stack([np.cos(a), np.sin(a)], axis=1) for a in (angles, angles + 0.2))
    >>> reps = SimpleNamespace(features=clean, adv_features=adversarial, labels=np.zeros(20, int), class_names=("a",))
    >>> resamples = bootstrap_r_prime(reps)
    >>> print(f"{ratio_r_prime(reps).value:.2f} +- {resamples.std(ddof=1):.2f}")
    2.22 +- 0.31
    """
    check_whole("n_resamples", n_resamples, 1)
    has_ratio = np.isfinite(ratio_r_prime(reps, metric=metric, drawn_from=drawn_from).per_class)
    labels, rng, ratios = np.asarray(reps.labels), np.random.default_rng(random_state), []
    for k in np.unique(labels):
        is_in_class = labels == k
        n = np.count_nonzero(is_in_class)
        # Drawn for a class without a ratio too: the next ones get the same images in every model.
        counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
        if not has_ratio[k]:
            continue
        clean, attacked = (
            prepare_rows(np.asarray(part)[is_in_class], metric) for part in (reps.features, reps.adv_features)
        )  # fmt: skip
        own, inner, across = _own_and_mean_distances(clean, attacked, counts, metric)
        among = n if drawn_from is None else n * drawn_from / len(labels)
        ratios.append((own + (among - 1) * across) / among / inner)
    if not ratios:
        return np.full(n_resamples, np.nan)
    known = np.isfinite(ratios)
    total, number = np.where(known, ratios, 0).sum(axis=0), known.sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def class_ratio_errors(reps, quantity, *, drawn_from=None, n_resamples=200, random_state=0) -> np.ndarray:
    """Standard error of each class's r or r' (angular), the spread of resamples of its images.

    Parameters
    ----------
    reps : RepresentationSet
        With an adversarial part.
    quantity : {"r", "r_prime"}
    drawn_from : int, optional
        As of `ratio_r_prime`; r has no pairs of an image with itself, and is the same for it.
    n_resamples : int
        2 or more.
    random_state : int

    Returns
    -------
    ndarray of shape (K,), float64
        nan for a class without a ratio, and where no two resamples have one.

    Raises
    ------
    ValueError
        As `ratio_r` and `bootstrap_r_prime`.

    Notes
    -----
    The bootstrap of B. Efron (1979). For r' an image is drawn together with its adversarial example, within its class.
    For r the clean images of a class and the adversarial examples that are mistaken for it, which other images are the
    origin of, are drawn independently, as many as there are.
    """
    check_one_of("quantity", quantity, ("r", "r_prime"))
    check_whole("n_resamples", n_resamples, 2)
    options = {"n_resamples": n_resamples, "random_state": random_state}
    if quantity == "r":
        resamples = _resampled_r(reps, **options)
    else:
        resamples = _resampled_r_prime(reps, drawn_from, **options)
    return np.array([_spread(values) for values in resamples])


def _resampled_r_prime(reps, drawn_from, **options):
    labels = np.asarray(reps.labels)
    times = 1 if drawn_from is None else drawn_from / len(labels)
    for k in range(len(reps.class_names)):
        is_in_class = labels == k
        if not is_in_class.any():
            yield np.empty(0)
            continue
        yield bootstrap_r_prime(
            SimpleNamespace(
                features=reps.features[is_in_class], adv_features=reps.adv_features[is_in_class],
                labels=labels[is_in_class], class_names=reps.class_names,
            ),
            drawn_from=times * is_in_class.sum(), **options,
        )  # fmt: skip


def _resampled_r(reps, *, n_resamples, random_state):
    has_ratio = np.isfinite(ratio_r(reps).per_class)
    labels, predictions, rng = np.asarray(reps.labels), reps.adv_predictions, np.random.default_rng(random_state)
    for k in range(len(reps.class_names)):
        if not has_ratio[k]:
            yield np.empty(0)
            continue
        clean = unit_rows(reps.features[labels == k])
        mistaken = unit_rows(reps.adv_features[(predictions == k) & (labels != k)])
        clean_counts, mistaken_counts = (
            rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=n_resamples).astype(np.float64)
            for part in (clean, mistaken)
        )
        across = np.einsum("bi,bi->b", mistaken_counts @ (1 - np.abs(mistaken @ clean.T)), clean_counts)
        yield across / (len(mistaken) * len(clean)) / _mean_distances(clean, clean_counts)


def _spread(values):
    known = values[np.isfinite(values)]
    return known.std(ddof=1) if len(known) > 1 else np.nan


def _mean_distances(clean, counts, metric="angular") -> np.ndarray:
    """Mean distance between two images of resamples of one class; nan where a resample has no two, or no distance.

    Parameters
    ----------
    clean : ndarray of shape (n, d)
        As `prepare_rows` leaves it: rows of unit length, but for Euclidean distances.
    counts : ndarray of shape (b, n), float64
        How often each resample holds each image; pairs of an image with itself are left out.
    """
    mean = _mean_of_two_images(pairwise_distances(clean, clean, metric), counts)
    scale = np.linalg.norm(clean, axis=1).max() if metric == "euclidean" else 1.0
    return np.where(mean > ROUNDING * scale, mean, np.nan)


def _mean_of_two_images(distances, counts):
    n_pairs = counts.shape[1] ** 2 - np.square(counts).sum(axis=1)
    n_pairs[n_pairs == 0] = np.nan
    np.fill_diagonal(distances, 0)
    return np.einsum("bi,bi->b", counts @ distances, counts) / n_pairs


def _own_and_mean_distances(clean, attacked, counts, metric):
    """Of resamples of one class: mean distances of adversarial examples from their own clean image, within the clean
    images, and from the other clean images; nan where a resample has no two images, or no distance between them."""
    distances = pairwise_distances(attacked, clean, metric)
    own = counts @ np.diagonal(distances) / len(clean)
    return own, _mean_distances(clean, counts, metric), _mean_of_two_images(distances, counts)
