"""What every measure of representations checks and prepares: features, classes, metrics, rows of unit length."""

import numpy as np

METRICS = ("angular", "cosine", "euclidean")


def check_metric(metric, known=METRICS):
    """Raise ValueError, listing the known metrics, unless `metric` is one of them."""
    if metric not in known:
        raise ValueError(f"metric={metric!r} is unknown; expected one of {', '.join(known)}.")


def check_features(features, name, *, may_be_empty=False) -> np.ndarray:
    """The features as an array of finite real numbers of shape (n, d), in their own type; not copied.

    Raises
    ------
    ValueError
        For another number of dimensions, no columns, no rows (unless `may_be_empty`), values that are not real
        numbers, or NaN or infinity, naming the first such row. `name` is how messages call the argument.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} has shape {features.shape}; expected (n, d), one representation per row.")
    if len(features) == 0 and not may_be_empty:
        raise ValueError(f"{name} is empty, shape {features.shape}; expected at least one row.")
    if features.dtype.kind not in "fiu":
        raise ValueError(f"{name} has type {features.dtype}; expected real numbers. Convert it to float32.")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} row {np.argmin(finite)} holds NaN or infinity; expected finite numbers. Leave the row out, or "
            "look for a diverged model."
        )
    return features


def check_nonzero_rows(features, name, metric):
    """Raise ValueError, naming the first row of zeros: it has no direction, hence no angle to anything."""
    nonzero = features.any(axis=1)
    if not nonzero.all():
        raise ValueError(
            f"{name} row {np.argmin(nonzero)} is a zero vector; metric={metric!r} expects a direction. Leave the row "
            "out, or use metric='euclidean'."
        )


def check_labels(labels, name, n, *, any_sign=False) -> np.ndarray:
    """Classes as an array of whole numbers of shape (n,), in their own type; not copied.

    Raises
    ------
    ValueError
        For another shape, values that are not integers, or, unless `any_sign`, a negative one, naming the row. `name`
        is how messages call the argument.
    """
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{name} has shape {labels.shape}; expected ({n},), one class per row.")
    if n == 0:
        return np.empty(0, dtype=np.int64)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} has type {labels.dtype}; expected integers. Convert it with .astype('int64').")
    if not any_sign and labels.min() < 0:
        raise ValueError(f"{name} row {np.argmin(labels)} is {labels.min()}; expected classes from 0 upwards.")
    return labels


def unit_rows(features) -> np.ndarray:
    """New float64 array of the non-zero rows of `features` (n, d), each divided by its Euclidean norm."""
    unit = np.array(features, dtype=np.float64)
    # Dividing by the largest entry first keeps squares of very large and very small numbers in range.
    unit /= np.abs(unit).max(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit
