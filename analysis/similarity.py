"""How alike two representations of the same images are, whatever their axes and their number of units."""

from __future__ import annotations

import numpy as np

from analysis.features import check_features

# Centred features below this share of their scale are rounding of float32.
_ROUNDING = 1e-7


def linear_cka(first, second) -> float:
    """Linear centred kernel alignment of two representations of the same images.

    Parameters
    ----------
    first, second : array_like of shape (n, d) and (n, e)
        Row i of both is the same image, such as clean and attacked, or in two models. 3 rows or more.

    Returns
    -------
    float
        In [0, 1]: 1 where one is the other turned, shifted and scaled; 0 where no unit of one is correlated with any
        of the other.

    Raises
    ------
    ValueError
        For NaN, infinity, different numbers of rows, fewer than 3, or a representation that is the same for all images.

    Notes
    -----
    ``|Y'X|^2 / (|X'X| |Y'Y|)`` in Frobenius norms, of centred X and Y: Kornblith et al., "Similarity of Neural Network
    Representations Revisited" (2019), equation 5. Computed in float64 over units or over images, whichever are fewer.
    With more units than images it is biased upwards: numbers of unlike sizes are not to be compared.

    Examples
    --------
    >>> x = np.array([[0.0, 1], [1, 0], [2, 2], [3, 1]])
    >>> round(linear_cka(x, 3 * x[:, ::-1] + 5), 6)
    1.0
    """
    first, second = check_features(first, "first"), check_features(second, "second")
    if len(first) != len(second) or len(first) < 3:
        raise ValueError(f"first and second must have as many rows, 3 or more. Got {len(first)} and {len(second)}.")
    x, y = _centred(first, "first"), _centred(second, "second")
    if max(x.shape[1], y.shape[1]) > len(x):
        k, m = x @ x.T, y @ y.T
        shared = np.vdot(k, m)
    else:
        k, m = x.T @ x, y.T @ y
        shared = np.linalg.norm(y.T @ x) ** 2
    return float(np.clip(shared / (np.linalg.norm(k) * np.linalg.norm(m)), 0, 1))


def _centred(features, name):
    features = np.asarray(features, dtype=np.float64)
    scale = np.abs(features).max()
    centred = features - features.mean(axis=0)
    if not np.abs(centred).max() > _ROUNDING * scale:
        raise ValueError(f"{name} is the same for all images; expected some spread. Look for a collapsed layer.")
    return centred / np.abs(centred).max()
