"""The errors of r and r' class by class, by the bootstrap."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from analysis.features import unit_rows
from analysis.ratios import bootstrap_r_prime, mean_distances, ratio_r
from tla_core.validation import check_one_of, check_whole


def class_ratio_errors(reps, which, *, n_resamples=200, random_state=0) -> np.ndarray:
    """Standard error of each class's r or r' (angular), the spread of resamples of its images.

    Parameters
    ----------
    reps : RepresentationSet
        With an adversarial part.
    which : {"r", "r_prime"}
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
    check_one_of("which", which, ("r", "r_prime"))
    check_whole("n_resamples", n_resamples, 2)
    options = {"n_resamples": n_resamples, "random_state": random_state}
    resamples = _resampled_r if which == "r" else _resampled_r_prime
    return np.array([_spread(values) for values in resamples(reps, **options)])


def _resampled_r_prime(reps, **options):
    labels = np.asarray(reps.labels)
    for k in range(len(reps.class_names)):
        of_class = labels == k
        if not of_class.any():
            yield np.empty(0)
            continue
        yield bootstrap_r_prime(
            SimpleNamespace(
                features=reps.features[of_class], adv_features=reps.adv_features[of_class], labels=labels[of_class],
                class_names=reps.class_names,
            ),
            **options,
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
        of_clean, of_mistaken = (
            rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=n_resamples).astype(np.float64)
            for part in (clean, mistaken)
        )
        across = np.einsum("bi,bi->b", of_mistaken @ (1 - np.abs(mistaken @ clean.T)), of_clean)
        yield across / (len(mistaken) * len(clean)) / mean_distances(clean, of_clean)


def _spread(values):
    known = values[np.isfinite(values)]
    return known.std(ddof=1) if len(known) > 1 else np.nan
