"""The gradient of t-SNE over all pairs of points, for openTSNE: exact, and faster than its own up to 20,000 points."""

import numpy as np
from numba import njit

# Sums may change their order, so that four or eight terms are added at a time; nothing else may be assumed. With
# numba's own model of errors a division could raise, and then sums would keep their order.
_OPTIONS = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}


def _compiled(function):
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache folder can be written
        return njit(**_OPTIONS)(function)


def exact_gradient(embedding, P, dof=1, reference_embedding=None, should_eval_error=False, **_):
    """Kullback-Leibler divergence of a map and its gradient, as openTSNE's ``negative_gradient_method`` takes it.

    Parameters
    ----------
    embedding : ndarray, (n, 2)
    P : scipy.sparse.csr_matrix, (n, n)
        Affinities, which sum to 1 where they are not exaggerated.
    dof : 1
        Degrees of freedom of the t distribution.
    reference_embedding : None
        A map that new points would be put into; not supported.
    should_eval_error : bool
        Otherwise the divergence is 0.

    Returns
    -------
    float
    ndarray, (n, 2), float64
        ``sum_j (p_ij - q_ij) w_ij (y_i - y_j)`` with w_ij = 1 / (1 + |y_i - y_j|^2), q = w / sum of all w; a quarter of
        the gradient of van der Maaten and Hinton (2008), as openTSNE has it.

    Raises
    ------
    ValueError
        For other degrees of freedom, another number of dimensions, or a reference.
    """
    if dof != 1 or reference_embedding is not None or embedding.shape[1] != 2:
        raise ValueError(
            "exact_gradient is of a map of its own, in two dimensions, with one degree of freedom. Got"
            f" {embedding.shape[1]} dimensions, dof={dof!r}, reference_embedding={reference_embedding!r:.40}."
        )
    y = np.ascontiguousarray(np.asarray(embedding, dtype=np.float64).T)
    forces = np.empty_like(y)
    total = _repulsion(y[0], y[1], forces[0], forces[1])
    divergence = _add_attraction(
        P.indptr, P.indices, P.data, y[0], y[1], forces[0], forces[1], total, should_eval_error
    )
    return divergence, np.ascontiguousarray(forces.T)


@_compiled
def _repulsion(y0, y1, force0, force1):
    """Fill in sum_j w_ij^2 (y_i - y_j), and return the sum of all w_ij with i != j."""
    total = 0.0
    for i in range(len(y0)):
        here0, here1 = y0[i], y1[i]
        weights, along0, along1 = 0.0, 0.0, 0.0
        for j in range(len(y0)):
            apart0, apart1 = here0 - y0[j], here1 - y1[j]
            weight = 1.0 / (1.0 + apart0 * apart0 + apart1 * apart1)
            weights += weight
            along0 += weight * weight * apart0
            along1 += weight * weight * apart1
        force0[i], force1[i] = along0, along1
        total += weights - 1.0  # less that of the point with itself
    return total


@_compiled
def _add_attraction(starts, neighbours, affinities, y0, y1, force0, force1, total, with_divergence):
    """Turn the sums of `_repulsion` into the gradient, and return the divergence, or 0."""
    divergence = 0.0
    for i in range(len(y0)):
        along0, along1 = 0.0, 0.0
        for k in range(starts[i], starts[i + 1]):
            apart0, apart1 = y0[i] - y0[neighbours[k]], y1[i] - y1[neighbours[k]]
            weight = 1.0 / (1.0 + apart0 * apart0 + apart1 * apart1)
            along0 += affinities[k] * weight * apart0
            along1 += affinities[k] * weight * apart1
            if with_divergence and affinities[k] > 0:
                divergence += affinities[k] * np.log(affinities[k] * total / weight)
        force0[i] = along0 - force0[i] / total
        force1[i] = along1 - force1[i] / total
    return divergence
