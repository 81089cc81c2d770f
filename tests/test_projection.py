import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny import changed

from analysis import tsne_gradient
from analysis.projection import align, project


def make_classes(seed=0, n=200, d=20, n_classes=4, spread=0.3):
    """Features float32 (n, d) in separate directions, and labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    centres = np.linalg.qr(rng.normal(size=(d, n_classes)))[0].T
    return (centres[labels] + spread * rng.normal(size=(n, d)) / d**0.5).astype(np.float32), labels


def neighbour_accuracy(coords, labels):
    """Share of points whose nearest point in the map is of the same class."""
    distances = np.linalg.norm(coords[:, None] - coords[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(axis=1)] == labels).mean()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_tsne_keeps_classes_together(metric):
    features, labels = make_classes()
    before = features.copy()
    result = project(features, metric=metric, n_iter=400)
    assert result.coords.shape == (200, 2) and result.coords.dtype == np.float64 and result.coords.flags.c_contiguous
    assert np.isfinite(result.coords).all()
    assert neighbour_accuracy(np.random.default_rng(0).normal(size=(200, 2)), labels) < 0.5
    assert neighbour_accuracy(result.coords, labels) > 0.95
    np.testing.assert_array_equal(features, before)


def test_tsne_is_the_same_with_more_threads_and_again():
    features, _ = make_classes(n=400, d=30, spread=1.5)
    first, again, threads = (project(features, n_iter=280, n_jobs=jobs) for jobs in (1, 1, 2))
    np.testing.assert_array_equal(again.coords, first.coords)
    np.testing.assert_array_equal(threads.coords, first.coords)
    assert again.params == first.params
    assert threads.params == first.params | {"n_jobs": 2}


def test_tsne_is_the_same_whatever_blas_threads():
    script = """
import hashlib, numpy as np
from analysis.projection import align, project
x = np.random.default_rng(0).normal(size=(300, 200)) + np.arange(300)[:, None] % 5
p = project(x, n_iter=255)
print(hashlib.sha256(p.coords.tobytes()).hexdigest(), p.params["kl_divergence"])
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), threads),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


def test_tsne_parameters_are_resolved():
    features, _ = make_classes(n=60)
    params = project(features, n_iter="auto").params
    assert json.loads(json.dumps(params)) == params
    assert params["n_iter"] == 750 and params["early_exaggeration_iter"] == 250
    assert params["perplexity"] == 15 and params["metric"] == "cosine" and params["neighbors"] == "exact"
    assert params["learning_rate"] == {"early_exaggeration": 5.0, "final": 60.0}
    assert (params["n_points"], params["n_features"]) == (60, 20)
    assert params["kl_divergence"] > 0
    assert params["versions"]["openTSNE"]


def test_n_iter_is_the_total(monkeypatch):
    import openTSNE.tsne

    counts = []
    step = openTSNE.tsne.gradient_descent.__call__

    def count(self, *args, n_iter, **kwargs):
        counts.append(n_iter)
        return step(self, *args, n_iter=n_iter, **kwargs)

    monkeypatch.setattr(openTSNE.tsne.gradient_descent, "__call__", count)
    features, _ = make_classes(n=60)
    for n_iter, expected in ((250, [250, 0, 0]), (np.int64(300), [250, 50, 0]), ("auto", [250, 500, 0])):
        counts.clear()
        project(features, n_iter=n_iter)
        assert counts == expected


def test_kl_divergence_falls_with_iterations():
    features, _ = make_classes(n=150, spread=1.0)
    short, long = (project(features, n_iter=n_iter).params["kl_divergence"] for n_iter in (260, 600))
    assert long < short


def test_cosine_ignores_lengths():
    features, _ = make_classes(n=100)
    scales = 2.0 ** np.random.default_rng(1).integers(-20, 20, size=(100, 1))
    np.testing.assert_array_equal(project(features * scales, n_iter=260).coords, project(features, n_iter=260).coords)


def test_random_state_changes_the_map():
    features, _ = make_classes(n=100, spread=1.5)
    assert (project(features, random_state=1, n_iter=260).coords != project(features, n_iter=260).coords).any()


def test_tsne_of_duplicates_is_finite():
    features = np.repeat(make_classes(n=4)[0], 60, axis=0)
    assert np.isfinite(project(features, n_iter=300).coords).all()


def test_repr():
    text = repr(project(make_classes(n=60)[0], n_iter=250))
    assert text.startswith("Projection(tsne, 60 points, perplexity=15, n_iter=250, metric=cosine, random_state=0, kl_")


def test_umap_keeps_classes_together_and_is_seeded(recwarn):
    features, labels = make_classes(n=120)
    first, again = (project(features, method="umap", n_iter=60) for _ in range(2))
    assert neighbour_accuracy(first.coords, labels) > 0.95
    np.testing.assert_array_equal(again.coords, first.coords)
    assert json.loads(json.dumps(first.params)) == first.params
    assert first.params["n_neighbors"] == 15 and first.params["n_iter"] == 60 and first.params["n_jobs"] == 1
    assert not [warning for warning in recwarn if "n_jobs" in str(warning.message)]
    assert "n_neighbors=15" in repr(first)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (520, 510)])
def test_pca_matches_the_singular_value_decomposition(shape):
    features = np.random.default_rng(2).normal(size=shape) + 5
    centred = features - features.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(vt[[0, 1], np.abs(vt[:2]).argmax(axis=1)])
    result = project(features, method="pca", metric="euclidean")
    np.testing.assert_allclose(result.coords, u[:, :2] * s[:2] * signs, atol=1e-7)
    np.testing.assert_array_equal(result.coords, project(features, method="pca", metric="euclidean").coords)
    assert json.loads(json.dumps(result.params)) == result.params


def test_pca_signs_do_not_depend_on_the_solver(monkeypatch):
    features = np.random.default_rng(3).normal(size=(60, 10))
    full = project(features, method="pca").coords
    monkeypatch.setattr("analysis.projection._FULL_SVD_UP_TO", 5)
    np.testing.assert_allclose(project(features, method="pca").coords, full, atol=1e-9)


def test_pca_of_unit_rows_by_default():
    features, _ = make_classes(n=60)
    np.testing.assert_allclose(
        project(features * 7, method="pca").coords, project(features, method="pca").coords, atol=1e-6
    )


X = np.random.default_rng(4).normal(size=(60, 5)).astype(np.float32)


@pytest.mark.parametrize("method", ["tsne", "umap", "pca"])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (changed(X, (7, 2), np.nan), "^features row 7 holds NaN or infinity"),
        (changed(X, (8, 2), np.inf), "^features row 8 holds NaN or infinity"),
        (changed(X, 9, 0), "^features row 9 is a zero vector; metric='cosine'"),
        (X[0], r"^features has shape \(5,\); expected \(n, d\)"),
        (X[:0], "^features is empty"),
        (X[:, :1], "^features has 1 column; expected 2 or more"),
        (np.ones((60, 5)), "^features is constant, all 60 rows have the same direction"),
        (X[:1] * np.linspace(0.1, 7, 60, dtype=np.float32)[:, None], "^features is constant"),
        (X.astype(str), "^features has type <U32"),
    ],
)
def test_wrong_features_raise(method, features, message):
    with pytest.raises(ValueError, match=message):
        project(features, method=method)


def test_constant_rows_raise_but_multiples_have_euclidean_maps():
    with pytest.raises(ValueError, match="same values"):
        project(np.full((60, 5), 3.0), metric="euclidean", method="pca")
    project(X[:1] * np.linspace(0.1, 7, 60)[:, None], metric="euclidean", method="pca")
    project(changed(X, 9, 0), metric="euclidean", method="pca")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mds"}, "method='mds' is unknown; expected one of tsne, umap, pca"),
        ({"metric": "angular"}, "metric='angular' is unknown; expected one of cosine, euclidean"),
        ({"perplexity": 20}, "60 rows, too few for perplexity=20; expected at least 61.*is perplexity=19.6667"),
        ({"perplexity": 19.9}, "expected at least 61"),
        ({"perplexity": 0.5}, "perplexity must be a finite number, at least 1. Got 0.5"),
        ({"perplexity": np.nan}, "perplexity must be a finite number.* Got nan"),
        ({"perplexity": "auto"}, "perplexity must be a finite number.* Got 'auto'"),
        ({"n_iter": 249}, "n_iter=249; expected 'auto' or an integer of at least 250"),
        ({"n_iter": 500.0}, r"n_iter=500\.0; expected 'auto' or an integer"),
        ({"n_iter": "default"}, "n_iter='default'; expected 'auto'"),
        ({"n_iter": True}, "n_iter=True"),
        ({"n_iter": 0, "method": "umap"}, "n_iter=0; expected 'auto' or an integer of at least 1. These are UMAP's"),
        ({"n_neighbors": 60, "method": "umap"}, "60 rows, too few for n_neighbors=60.*possible is 59"),
        ({"n_neighbors": 1, "method": "umap"}, "n_neighbors must be a whole number of at least 2. Got 1"),
        ({"random_state": None}, "random_state must be a whole number of at least 0"),
        ({"random_state": 2**32}, "random_state must be .* at most 4294967295. Got 4294967296"),
        ({"n_jobs": -1}, "n_jobs must be a whole number of at least 1. Got -1"),
    ],
)
def test_wrong_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        project(X, **settings)


def test_three_points_are_too_few_for_tsne():
    with pytest.raises(ValueError, match="t-SNE needs at least 4 points"):
        project(X[:3], perplexity=1)
    assert project(X[:4], perplexity=1, n_iter=250).coords.shape == (4, 2)


def test_heavy_libraries_are_imported_late():
    script = "import sys, analysis.projection; print([m for m in ('openTSNE', 'umap', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


# Aligned --------------------------------------------------------------------------------------------------------------


MAP = np.random.default_rng(5).normal(size=(40, 2)) * [3, 1]


@pytest.mark.parametrize("angle", [0, 0.7, np.pi / 2, np.pi, 5])
@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("scale", [1, 1e-3, 250])
def test_align_undoes_rotation_mirroring_scale_and_shift(angle, mirror, scale):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [1, mirror]
    moved = scale * MAP @ turn + [100, -7]
    before = moved.copy()
    found = align(moved, MAP)
    np.testing.assert_allclose(found, MAP, atol=1e-9)
    assert found.shape == (40, 2) and found.dtype == np.float64
    np.testing.assert_array_equal(moved, before)


def test_align_lies_closer_than_any_turn_of_a_fine_grid():
    """The slow way: every degree, mirrored or not, at the reference's spread and centre."""
    reference = MAP + np.random.default_rng(6).normal(size=MAP.shape)
    other = MAP @ [[0, 1], [1, 0]] * 3 + 2
    found = align(other, reference)
    centred, wanted = other - other.mean(0), reference - reference.mean(0)
    centred *= np.linalg.norm(wanted) / np.linalg.norm(centred)
    distances = [
        np.linalg.norm(centred * [1, mirror] @ [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] - wanted)
        for mirror in (1, -1)
        for a in np.radians(np.arange(360))
    ]
    distance = np.linalg.norm(found - reference)
    assert min(distances) * 0.999 < distance <= min(distances) and distance < 0.5 * np.median(distances)
    np.testing.assert_allclose(found.mean(0), reference.mean(0), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found - found.mean(0)), np.linalg.norm(wanted))


def test_align_keeps_who_is_near_whom():
    reference = np.random.default_rng(7).normal(size=(40, 2))
    distances, aligned = (np.linalg.norm(m[:, None] - m[None], axis=2) for m in (MAP, align(MAP, reference)))
    off_diagonal = ~np.eye(40, dtype=bool)
    ratios = (aligned[off_diagonal]) / distances[off_diagonal]
    np.testing.assert_allclose(ratios, ratios[0])
    np.testing.assert_allclose(align(align(MAP, reference), reference), align(MAP, reference), atol=1e-9)
    np.testing.assert_allclose(align(MAP.tolist(), MAP), MAP, atol=1e-9)


@pytest.mark.parametrize(
    ("coords", "reference", "message"),
    [
        (MAP, MAP[:-1], r"maps of shapes \(40, 2\) and \(39, 2\); expected \(n, 2\) twice, the same items"),
        (np.ones((5, 3)), np.ones((5, 3)), r"maps of shapes \(5, 3\) and \(5, 3\)"),
        (MAP[0], MAP[0], r"maps of shapes \(2,\) and \(2,\)"),
        (changed(MAP, (3, 1), np.nan), MAP, "a map holds NaN or infinity; expected finite coordinates"),
        (MAP, changed(MAP, (0, 0), np.inf), "a map holds NaN or infinity"),
        (np.zeros((40, 2)), MAP, "all points of a map are the same; there is nothing to align"),
        (MAP[:3], np.full((3, 2), 0.1), "all points of a map are the same"),  # whose mean is not 0.1 exactly
        (MAP[:1], MAP[:1], "all points of a map are the same"),
        (MAP[:0], MAP[:0], "all points of a map are the same"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_maps_that_cannot_be_aligned_raise(coords, reference, message):
    with pytest.raises(ValueError, match=message):
        align(coords, reference)


def some_affinities(n, seed=0):
    """A random map and sparse symmetric affinities that sum to 1."""
    import scipy.sparse

    rng = np.random.default_rng(seed)
    affinities = scipy.sparse.random(n, n, density=0.2, format="csr", rng=rng)
    affinities = affinities + affinities.T
    affinities.setdiag(0)
    return 4 * rng.standard_normal((n, 2)), affinities / affinities.sum()


@pytest.mark.parametrize("n", [2, 17, 150])
def test_the_gradient_over_all_pairs_is_that_of_the_definition(n):
    from analysis.tsne_gradient import exact_gradient

    y, affinities = some_affinities(n)
    divergence, gradient = exact_gradient(y, affinities, should_eval_error=True)
    p, apart = affinities.toarray(), y[:, None] - y[None]
    w = 1 / (1 + (apart**2).sum(-1))
    np.fill_diagonal(w, 0)
    q = w / w.sum()
    np.testing.assert_allclose(gradient, (((p - q) * w)[..., None] * apart).sum(1), rtol=1e-9, atol=1e-15)
    assert exact_gradient(y, affinities)[0] == 0
    used = p > 0
    assert divergence == pytest.approx((p[used] * np.log(p[used] / q[used])).sum(), rel=1e-9)


def test_the_gradient_is_compiled_where_nothing_can_be_written(tmp_path):
    """In a read-only installation of a user without a home."""
    shutil.copy(tsne_gradient.__file__, tmp_path / "alone.py")
    (tmp_path / "__pycache__").write_text("no folder")
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    code = "import numpy, alone; print(alone._repulsion(*numpy.eye(4, 3)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) > 0, done.stderr


def test_the_gradient_over_all_pairs_is_barnes_hut_s_without_its_approximation():
    from openTSNE.tsne import kl_divergence_bh

    from analysis.tsne_gradient import exact_gradient

    y, affinities = some_affinities(300, seed=1)
    divergence, gradient = exact_gradient(y, affinities, should_eval_error=True)
    expected, theirs = kl_divergence_bh(y, affinities, 1, {"theta": 0.0}, should_eval_error=True)
    assert divergence == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(gradient, theirs, rtol=1e-9, atol=1e-12)


def test_a_map_is_no_worse_than_openTSNE_s_own():
    from openTSNE import TSNE

    features, _ = make_classes(n=200, spread=1.0)
    ours = project(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    theirs = TSNE(perplexity=15, metric="cosine", neighbors="exact", random_state=0).fit(unit)
    assert ours.params["negative_gradient_method"] == "exact"
    assert ours.params["kl_divergence"] < 1.02 * theirs.kl_divergence


@pytest.mark.parametrize("wrong", [{"dof": 2}, {"reference_embedding": np.zeros((3, 2))}])
def test_a_gradient_that_is_not_of_the_map_alone_is_refused(wrong):
    from analysis.tsne_gradient import exact_gradient

    with pytest.raises(ValueError, match="of a map of its own"):
        exact_gradient(*some_affinities(20), **wrong)
