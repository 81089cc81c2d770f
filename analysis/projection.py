"""Projections of representations to two dimensions: t-SNE (openTSNE), UMAP (umap-learn) and PCA (scikit-learn)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from analysis.features import check_features, check_metric, check_nonzero_rows, unit_rows
from analysis.frames import points
from tla_core.validation import check_number, check_whole

METHODS = ("tsne", "umap", "pca")
METRICS = ("cosine", "euclidean")

_EARLY_EXAGGERATION_ITER = 250
# All pairs below, openTSNE's interpolation from here on. An iteration on one thread of a 2-core cloud machine took,
# for 1,000 points, 0.7 ms over all pairs and 6 ms by Barnes-Hut; for 20,000, 0.18 s and, by interpolation, 0.45 s.
_FFT_FROM = 20_000
# Below this size a full decomposition takes a blink; above it, two components by ARPACK are as exact and far cheaper.
_FULL_SVD_UP_TO = 500


@dataclass(frozen=True, eq=False, repr=False)
class Projection:
    """A two-dimensional map of representations, with everything that made it.

    Attributes
    ----------
    coords : ndarray of shape (n, 2), float64, C-contiguous
        One point per row of the features; no units, only relative positions mean anything.
    params : dict
        JSON-able: method, size of the data, every parameter as it was resolved, versions of the libraries and, for
        t-SNE, `kl_divergence`.
    """

    coords: np.ndarray
    params: dict

    def to_dataframe(self):
        """One row for each point: ``row`` of the features, ``x``, ``y``."""
        return points(self.coords, row=np.arange(len(self.coords)))

    def __repr__(self):
        names = ("perplexity", "n_neighbors", "n_iter", "metric", "random_state", "kl_divergence")
        values = {name: self.params[name] for name in names if name in self.params}
        texts = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
        settings = "".join(f", {name}={value}" for name, value in texts.items())
        return f"Projection({self.params['method']}, {len(self.coords)} points{settings})"


def project(
    features, *, method="tsne", perplexity=15, n_iter="auto", metric="cosine", random_state=0, n_jobs=1, n_neighbors=15
) -> Projection:
    """Map representations to the plane. The same arguments give the same map, bit for bit, on one machine.

    Parameters
    ----------
    features : array_like of shape (n, d)
        Representations, two columns or more. Clean and adversarial ones that are to share a map go in together.
    method : {"tsne", "umap", "pca"}
        t-SNE by openTSNE with exact neighbours; UMAP; or the first two principal components.
    perplexity : float, at least 1
        t-SNE only: the effective number of neighbours; needs 3 * perplexity other points. 15 is the supplement's.
    n_iter : "auto" or int
        t-SNE: total number of iterations, of which the first 250 are early exaggeration; "auto" is 750, openTSNE's
        default; the supplement's figures used 5000. UMAP: number of epochs; "auto" is 500, or 200 above 10,000
        points. PCA ignores it.
    metric : {"cosine", "euclidean"}
        "cosine" divides each row by its norm and, for t-SNE and UMAP, compares rows by 1 - cos.
    random_state : int
        Seeds the jitter of t-SNE's starting points, and UMAP.
    n_jobs : int, at least 1
        Threads of t-SNE (neighbours, interpolation): they change its speed, not its map. UMAP and PCA always use one.
    n_neighbors : int, at least 2
        UMAP only: size of the neighbourhoods; 15 is umap-learn's default.

    Returns
    -------
    Projection

    Raises
    ------
    ValueError
        For NaN, infinity or (cosine) a zero vector, naming the row; for constant features, too few points for the
        perplexity or `n_neighbors`, fewer than 250 iterations of t-SNE, an unknown method or metric, and values out
        of range.

    Notes
    -----
    t-SNE (van der Maaten and Hinton, 2008) starts from the first two principal components; the settings not named
    here are openTSNE's (Policar et al., 2019), which also does the iterations. Below 20,000 points their gradient is
    taken over all pairs (`analysis.tsne_gradient`), by one thread; from there on openTSNE interpolates. Exact
    neighbours compare all pairs: 2 s for 5,000 points, 8 s for 10,000 and 20 s for 20,000, with 640 features and one
    thread of a 2-core cloud machine, and up to four times as much for twice as many. There 1,000 points take 1 s in
    all, with the default number of iterations.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; expected one of {', '.join(METHODS)}.")
    check_metric(metric, METRICS)
    check_whole("random_state", random_state, 0, 2**32 - 1)
    check_whole("n_jobs", n_jobs, 1)
    features = check_features(features, "features")
    if features.shape[1] < 2:
        raise ValueError(f"features has {features.shape[1]} column; expected 2 or more. Plot a single one directly.")
    if metric == "cosine":
        check_nonzero_rows(features, "features", metric)
    precision = np.finfo(features.dtype if features.dtype.kind == "f" else np.float64).eps
    features = unit_rows(features) if metric == "cosine" else np.array(features, dtype=np.float64)
    # Multiples of one row differ, as unit rows, by the rounding of their entries.
    _check_not_constant(features, metric, tolerance=4 * precision if metric == "cosine" else 0.0)

    if method == "tsne":
        coords, params = _tsne(features, perplexity, n_iter, metric, random_state, n_jobs)
    elif method == "umap":
        coords, params = _umap(features, n_neighbors, n_iter, metric, random_state)
    else:
        coords, params = _pca(features, metric, random_state)
    params = {"method": method, "n_points": features.shape[0], "n_features": features.shape[1]} | params
    return Projection(np.ascontiguousarray(coords, dtype=np.float64), params)


def align(coords, reference, *, others=None):
    """Rotate, mirror, scale and shift a map so that it lies on another one of the same items as well as it can.

    For display: maps of two models are comparable only by who is near whom, and an accidental rotation hides that.

    Parameters
    ----------
    coords, reference : array_like of shape (n, 2)
        Row i of both is the same item.
    others : array_like of shape (m, 2), optional
        Further points of the map of `coords`, which the reference does not hold: they move along.

    Returns
    -------
    ndarray of shape (n, 2), float64, or a pair of these with `others`
        Distances within the map change by one factor, so that both maps have the same spread.

    Raises
    ------
    ValueError
        For different shapes, NaN or infinity, or a map of which all points are the same.

    Notes
    -----
    Orthogonal Procrustes analysis (Schoenemann, 1966).
    """
    coords, reference = np.asarray(coords, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.shape != reference.shape:
        raise ValueError(f"maps of shapes {coords.shape} and {reference.shape}; expected (n, 2) twice, the same items.")
    if not (np.isfinite(coords).all() and np.isfinite(reference).all()):
        raise ValueError("a map holds NaN or infinity; expected finite coordinates.")
    from scipy.linalg import orthogonal_procrustes

    if any((each == each[:1]).all() for each in (coords, reference)):
        raise ValueError("all points of a map are the same; there is nothing to align.")
    map_deviations, reference_deviations = coords - coords.mean(axis=0), reference - reference.mean(axis=0)
    rotation, _ = orthogonal_procrustes(map_deviations, reference_deviations)
    turn = rotation * (np.linalg.norm(reference_deviations) / np.linalg.norm(map_deviations))
    turned_map = map_deviations @ turn + reference.mean(axis=0)
    if others is None:
        return turned_map
    return turned_map, (np.asarray(others, dtype=np.float64) - coords.mean(axis=0)) @ turn + reference.mean(axis=0)


def _tsne(features, perplexity, n_iter, metric, random_state, n_jobs):
    n_points = len(features)
    _check_perplexity(perplexity, n_points)
    n_iter = 750 if n_iter == "auto" else n_iter
    _check_n_iter(n_iter, _EARLY_EXAGGERATION_ITER, "The early exaggeration of t-SNE alone takes 250.")

    from openTSNE import TSNE
    from openTSNE.initialization import pca

    from analysis.tsne_gradient import exact_gradient

    # metric="cosine" on the unit rows, not "euclidean": openTSNE's affinities fall with the squared distance, here with
    # (1 - cos)^2, and Euclidean distances between unit rows would make that 1 - cos: another map. For both metrics it
    # finds the neighbours by Euclidean distance between unit rows, and then computes their distances directly.
    settings = {
        "perplexity": float(perplexity),
        "metric": metric,
        "neighbors": "exact",
        "early_exaggeration": 12,
        "early_exaggeration_iter": _EARLY_EXAGGERATION_ITER,
        "initial_momentum": 0.8,
        "final_momentum": 0.8,
        "exaggeration": 1,
        "dof": 1,
        "negative_gradient_method": "exact" if n_points < _FFT_FROM else "fft",
        "n_interpolation_points": 3,
        "min_num_intervals": 50,
        "ints_in_interval": 1,
        "max_step_norm": 5,
        "learning_rate": "auto",
        "random_state": int(random_state),
        "n_jobs": int(n_jobs),
    }
    solver = _svd_solver(features)
    method = exact_gradient if settings["negative_gradient_method"] == "exact" else "fft"
    with _one_blas_thread():
        start = pca(features, svd_solver=solver, random_state=random_state)
        tsne = TSNE(n_iter=int(n_iter) - _EARLY_EXAGGERATION_ITER, **settings | {"negative_gradient_method": method})
        embedding = tsne.fit(features, initialization=start)
        # Threads add up the divergence, though not the gradients, in an order that varies: once more on one.
        embedding.optimize(n_iter=0, n_jobs=1, inplace=True)
    rates = {"early_exaggeration": n_points / settings["early_exaggeration"], "final": float(n_points)}
    params = settings | {
        "n_iter": int(n_iter),
        "learning_rate": rates,
        "initialization": "pca",
        "svd_solver": solver,
        "kl_divergence": float(embedding.kl_divergence),
        "versions": _versions("openTSNE", "scikit-learn", "scipy", "numpy"),
    }
    return np.array(embedding), params


def _umap(features, n_neighbors, n_iter, metric, random_state):
    n_points = len(features)
    check_whole("n_neighbors", n_neighbors, 2)
    if n_points <= n_neighbors:
        raise ValueError(
            f"features has {n_points} rows, too few for n_neighbors={n_neighbors}; expected more rows than neighbours. "
            f"The largest n_neighbors possible is {n_points - 1}."
        )
    if n_iter == "auto":
        n_iter = 500 if n_points <= 10_000 else 200
    _check_n_iter(n_iter, 1, "These are UMAP's epochs.")

    import warnings

    from umap import UMAP

    settings = {
        "n_neighbors": int(n_neighbors),
        "metric": metric,
        "min_dist": 0.1,
        "spread": 1.0,
        "init": "spectral",
        "learning_rate": 1.0,
        "negative_sample_rate": 5,
        "random_state": int(random_state),
        "n_jobs": 1,
    }
    with warnings.catch_warnings(), _one_blas_thread():
        warnings.filterwarnings("ignore", message="n_jobs value .* overridden to 1", category=UserWarning)
        coords = UMAP(n_epochs=int(n_iter), **settings).fit_transform(features)
    versions = _versions("umap-learn", "pynndescent", "numba", "scikit-learn", "scipy", "numpy")
    return coords, settings | {"n_iter": int(n_iter), "versions": versions}


def _pca(features, metric, random_state):
    from sklearn.decomposition import PCA

    solver = _svd_solver(features)
    model = PCA(n_components=2, svd_solver=solver, random_state=random_state)
    with _one_blas_thread():
        coords = model.fit_transform(features)
    # The sign of a component is arbitrary: its largest loading is made positive, whatever the solver.
    largest = np.abs(model.components_).argmax(axis=1)
    coords *= np.sign(model.components_[[0, 1], largest])
    params = {
        "metric": metric,
        "random_state": int(random_state),
        "svd_solver": solver,
        "explained_variance_ratio": model.explained_variance_ratio_.tolist(),
        "versions": _versions("scikit-learn", "scipy", "numpy"),
    }
    return coords, params


def _one_blas_thread():
    """The number of BLAS threads changes the last bits of products, and t-SNE grows them into another map.

    Only libraries that are loaded by now are limited: import first.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def _svd_solver(features):
    return "full" if min(features.shape) <= _FULL_SVD_UP_TO else "arpack"


def _versions(*packages):
    return {package: version(package) for package in packages}


def _check_n_iter(n_iter, at_least, note):
    if not isinstance(n_iter, int | np.integer) or isinstance(n_iter, bool) or n_iter < at_least:
        raise ValueError(f"n_iter={n_iter!r}; expected 'auto' or an integer of at least {at_least}. {note}")


def _check_perplexity(perplexity, n_points):
    check_number("perplexity", perplexity, 1.0)
    if n_points - 1 < 3 * perplexity:
        largest = (n_points - 1) / 3
        advice = (
            f"The largest possible is perplexity={largest:.6g}; method='pca' needs none."
            if largest >= 1
            else "t-SNE needs at least 4 points."
        )
        raise ValueError(
            f"features has {n_points} rows, too few for perplexity={perplexity}; expected at least "
            f"{int(np.ceil(3 * perplexity)) + 1}. {advice}"
        )


def _check_not_constant(features, metric, tolerance):
    if (np.ptp(features, axis=0) <= tolerance * np.abs(features).max(axis=0)).all():
        kind = "direction" if metric == "cosine" else "values"
        raise ValueError(
            f"features is constant, all {len(features)} rows have the same {kind}; expected rows that differ. There is "
            "nothing to map: look for dead units, or extract another layer."
        )
