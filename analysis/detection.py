"""Detection of misclassified inputs by the density of their representation: one Gaussian per class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.features import check_features, check_labels
from analysis.frames import frame

# Class-centred features below this share of the features' scale are rounding of float64 sums.
_ROUNDING = 1e-12
COVARIANCES = ("shared", "own")


@dataclass(frozen=True, eq=False, repr=False)
class DetectionResult:
    """How well a low density tells misclassified inputs, and the ROC curve behind it.

    Attributes
    ----------
    auc : float
        Area under the ROC curve, in [0, 1]: how probable it is that a misclassified input has a higher score than a
        correctly classified one, ties counting half; 0.5 is chance.
    scores : ndarray of shape (n,), float64
        Minus the highest class log-density, in nats; higher is more suspect.
    false_positive_rate, true_positive_rate : ndarray of shape (t + 1,), float64
        From (0, 0) to (1, 1): the shares of correctly classified and of misclassified inputs whose score is at least
        the threshold.
    thresholds : ndarray of shape (t + 1,), float64
        Infinity, and then the t different scores in descending order.
    misclassified : ndarray of shape (n,), bool
        The positives.
    """

    auc: float
    scores: np.ndarray
    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray
    misclassified: np.ndarray

    @property
    def auc_error(self) -> float:
        """Standard error of the area (Hanley and McNeil 1982), as if scores were exponentially distributed."""
        positives = np.count_nonzero(self.misclassified)
        negatives = len(self.misclassified) - positives
        two_positives, two_negatives = self.auc / (2 - self.auc), 2 * self.auc**2 / (1 + self.auc)
        variance = self.auc * (1 - self.auc)
        variance += (positives - 1) * (two_positives - self.auc**2) + (negatives - 1) * (two_negatives - self.auc**2)
        return float(np.sqrt(variance / (positives * negatives)))

    def to_dataframe(self):
        """One row for each input: ``input``, its ``score`` (higher: more suspect), whether it is ``misclassified``."""
        n = len(self.scores)
        return frame({"input": np.arange(n), "score": self.scores, "misclassified": self.misclassified})

    def __repr__(self):
        positives, n = np.count_nonzero(self.misclassified), len(self.misclassified)
        return f"DetectionResult(auc={self.auc:.4f}, {positives} misclassified of {n})"


def detect(train_features, train_labels, features, misclassified, *, covariance="shared") -> DetectionResult:
    """Score inputs by the density of their representation, and compare the scores with what was misclassified.

    Parameters
    ----------
    train_features, train_labels : array_like of shape (m, d) and (m,)
        Representations that the Gaussians are fitted to, and their classes: see `class_log_densities`.
    features : array_like of shape (n, d)
        Representations of the inputs to score, clean or adversarial, from the same layer.
    misclassified : array_like of bool, shape (n,)
        The positives, such as ``predictions != labels``.
    covariance : {"shared", "own"}
        That of the Gaussians: see `class_log_densities`.

    Returns
    -------
    DetectionResult
        In float64, whatever the type of the features.

    Raises
    ------
    ValueError
        As `class_log_densities`; also where `misclassified` is not boolean, has another length, or is all True or all
        False, so that there is no ROC curve.

    Notes
    -----
    One Gaussian per class and the highest class density as the confidence: "Metric Learning for Adversarial
    Robustness" (Mao et al., 2019), where this AUC compares UM, AT, ALP and TLA.

    Examples
    --------
    >>> train = [[0, 0], [1, 0], [0, 1], [8, 8], [9, 8], [8, 9]]
    >>> detect(train, [0, 0, 0, 1, 1, 1], [[0.5, 0.5], [8, 8], [4, 4]], [False, False, True])
    DetectionResult(auc=1.0000, 1 misclassified of 3)
    """
    from sklearn.metrics import roc_curve

    features = check_features(features, "features")
    misclassified = _check_misclassified(misclassified, len(features))
    _, densities = class_log_densities(train_features, train_labels, features, covariance=covariance)
    scores = -densities.max(axis=1)
    curve = roc_curve(misclassified, scores, drop_intermediate=False)
    return DetectionResult(float(np.trapezoid(curve[1], curve[0])), scores, *curve, misclassified)


def detection_auc(train_features, train_labels, features, misclassified, *, covariance="shared") -> float:
    """Area under the ROC curve of `detect`, in [0, 1]; higher is better, and 0.5 is chance.

    Examples
    --------
    >>> detection_auc([[0], [1], [8], [9]], [0, 0, 1, 1], [[0.5], [4], [8.5]], [False, True, False])
    1.0
    """
    return detect(train_features, train_labels, features, misclassified, covariance=covariance).auc


def class_log_densities(
    train_features, train_labels, features, *, covariance="shared"
) -> tuple[np.ndarray, np.ndarray]:
    """Log-densities under one Gaussian per class, with a mean of its own and a covariance of all classes or its own.

    A covariance is that of class-centred training features (divided by their number), shrunk towards a multiple of the
    identity by oracle approximating shrinkage (`sklearn.covariance.oas`). It is therefore positive definite, with
    fewer images than features and with features that never change too.

    Parameters
    ----------
    train_features : array_like of shape (m, d)
        Representations that the Gaussians are fitted to.
    train_labels : array_like of int, shape (m,)
        Their true classes. Only classes that occur get a Gaussian, and each must have two rows or more.
    features : array_like of shape (n, d)
        Where the densities are evaluated.
    covariance : {"shared", "own"}
        One for all classes (linear discriminant analysis), or one for each (quadratic).

    Returns
    -------
    classes : ndarray of shape (K,), int64
        The classes that occur, ascending.
    log_densities : ndarray of shape (n, K), float64
        In nats.

    Raises
    ------
    ValueError
        For NaN or infinity, naming the row, wrong shapes or types, a class with a single row, or training features
        that do not vary within their classes; with a covariance of its own, within one of them.

    Notes
    -----
    Shrinkage: Y. Chen et al., "Shrinkage algorithms for MMSE covariance estimation", 2010. It assumes Gaussian data,
    as these densities do, and never vanishes; Ledoit and Wolf's can, and then leaves a singular covariance. The shared
    covariance is that of K. Lee et al., "A simple unified framework for detecting out-of-distribution samples", 2018.

    Examples
    --------
    >>> classes, densities = class_log_densities([[0], [2], [8], [10]], [3, 3, 7, 7], [[1], [9], [5]])
    >>> classes, densities.argmax(axis=1)
    (array([3, 7]), array([0, 1, 0]))
    """
    from scipy.linalg import solve_triangular
    from scipy.spatial.distance import cdist

    if covariance not in COVARIANCES:
        raise ValueError(f"covariance is {covariance!r}; expected one of {', '.join(map(repr, COVARIANCES))}.")
    train_features, features = check_features(train_features, "train_features"), check_features(features, "features")
    if features.shape[1] != train_features.shape[1]:
        raise ValueError(
            f"features has {features.shape[1]} columns, train_features {train_features.shape[1]}; expected the same "
            "number. Take both from the same layer of the same model."
        )
    classes, members = _check_classes(train_labels, len(train_features))
    train_features = train_features.astype(np.float64)
    means = np.stack([train_features[members == k].mean(axis=0) for k in range(len(classes))])
    deviations = train_features - means[members]
    rounding = _ROUNDING * np.abs(train_features).max()
    if covariance == "shared":
        factor, log_determinant = _factor_of_covariance(deviations, rounding, "their classes")
        # Differences from one mean first: far from the origin they keep digits that whitened coordinates would lose.
        origin = means[0]
        whitened = solve_triangular(factor, (features - origin).T, lower=True).T
        whitened_means = solve_triangular(factor, (means - origin).T, lower=True).T
        squares = cdist(whitened, whitened_means, "sqeuclidean")
    else:
        squares, log_determinant = np.empty((len(features), len(classes))), np.empty(len(classes))
        for k, mean in enumerate(means):
            factor, log_determinant[k] = _factor_of_covariance(
                deviations[members == k], rounding, f"class {classes[k]}"
            )
            squares[:, k] = np.square(solve_triangular(factor, (features - mean).T, lower=True)).sum(axis=0)
    return classes, -(features.shape[1] * np.log(2 * np.pi) + log_determinant + squares) / 2


def _factor_of_covariance(deviations, rounding, class_words):
    """Lower Cholesky factor of the shrunk covariance of centred features, and the log-determinant of the covariance."""
    from scipy.linalg import cholesky
    from sklearn.covariance import oas

    if np.abs(deviations).max() <= rounding:
        raise ValueError(
            f"train_features do not vary within {class_words}; expected some spread, since without it there is no "
            "density. Take another layer, or look for a collapsed model."
        )
    factor = cholesky(oas(deviations, assume_centered=True)[0], lower=True)
    return factor, 2 * np.log(np.diag(factor)).sum()


def _check_misclassified(misclassified, n):
    misclassified = np.asarray(misclassified)
    if misclassified.shape != (n,):
        raise ValueError(f"misclassified has shape {misclassified.shape}; expected ({n},), one entry per row.")
    if misclassified.dtype != np.bool_:
        raise ValueError(
            f"misclassified has type {misclassified.dtype}; expected booleans, such as predictions != labels."
        )
    if misclassified.all() or not misclassified.any():
        value, kind = ("True", "negative") if misclassified.all() else ("False", "positive")
        raise ValueError(
            f"misclassified is all {value}: there is no {kind}, so the ROC curve is undefined; expected inputs of"
            " both kinds. Score clean and adversarial examples together, or more of them."
        )
    return misclassified


def _check_classes(labels, n):
    labels = check_labels(labels, "train_labels", n, any_sign=True)
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"class {classes[np.argmin(counts)]} of train_labels has 1 row; expected 2 or more in each class. Leave "
            "the class out, or extract more training images."
        )
    return classes.astype(np.int64), members
