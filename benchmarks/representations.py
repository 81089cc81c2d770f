"""Distance ratios beside scipy's cdist, neighbours beside scikit-learn's, and what a gallery of a million costs."""

import dataclasses
import platform
import tracemalloc
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np

from analysis import ratios
from analysis.neighbours import APPROXIMATE_FROM, nearest_neighbours
from analysis.ratios import ratio
from benchmarks.inputs import Setup
from benchmarks.timing import Line, times_in_turn

RATIO_TOLERANCE, DISTANCE_TOLERANCE = 1e-10, 1e-5  # relative; the second is float32's, with some room
LEAST_RECALL = 0.95


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the inputs are.

    Attributes
    ----------
    images, features, classes : int
        Of the representations whose ratios and neighbours are timed; half as many are clean images as rows in all.
    queries : int
        Of the galleries that grow.
    galleries : (int, int)
        Numbers of vectors between which the cost of one must not rise.
    gallery_features : int
    spread : int
        Directions in which a class of the galleries varies.
    checked : int
        Queries whose neighbours in the larger gallery are compared with the exact ones.
    """

    images: int = 10_000
    features: int = 640
    classes: int = 10
    queries: int = 10_000
    galleries: tuple[int, int] = (10_000, 1_000_000)
    gallery_features: int = 64
    spread: int = 16
    checked: int = 500


def class_representations(n: int, features: int, classes: int, spread: int, *, seed: int) -> tuple:
    """Synthetic representations (n, features) float32 and classes (n,): what the layers of a classifier look like.

    Each class has a centre of its own and varies around it in `spread` directions of its own, and by little in all
    others. The centres and directions are always the same; the seed draws the vectors.
    """
    shared = np.random.default_rng(0)
    centres = shared.standard_normal((classes, features), dtype=np.float32)
    directions = shared.standard_normal((classes, spread, features), dtype=np.float32) * np.float32(spread**-0.5)
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    vectors = np.float32(0.1) * rng.standard_normal((n, features), dtype=np.float32)
    for k in range(classes):
        place = rng.standard_normal((int((labels == k).sum()), spread), dtype=np.float32)
        vectors[labels == k] += centres[k] + np.float32(0.7) * place @ directions[k]
    return vectors, labels


def distance_ratios(setup: Setup, sizes: Sizes | None = None) -> Iterator[Line]:
    """The angular ratio: with negative features, where all pairs count, and without, where a closed form holds."""
    sizes = sizes or Sizes()
    clean, labels = class_representations(sizes.images, sizes.features, sizes.classes, sizes.spread, seed=1)
    adversarial, _ = class_representations(sizes.images, sizes.features, sizes.classes, sizes.spread, seed=2)
    adversarial_classes = (labels + 1) % sizes.classes
    for kind, move in (("negative features", lambda x: x), ("no negative features", np.abs)):
        name = f"ratio, angular, {sizes.images:,} x {sizes.features}, {kind}"
        setup.say(name)
        case = move(adversarial), adversarial_classes, move(clean), labels

        def ours(case: tuple = case) -> np.ndarray:
            return ratio(*case).per_class

        def peer(case: tuple = case) -> np.ndarray:
            return ratios_by_cdist(*case)

        found = np.abs(ours() / peer() - 1).max()
        peak = peak_bytes(ours)
        block = ratios._BLOCK_ENTRIES * 8
        failures = [f"the ratios differ by {found:.1e} of them"] if not found <= RATIO_TOLERANCE else []
        if peak > block:
            failures.append(f"ours takes {peak / 1e6:.0f} MB, more than one block of {block / 1e6:.0f} MB")
        (times,) = times_in_turn(ours, {"cdist": peer}, pairs=setup.pairs, device=setup.device, warm_up=False).values()
        yield Line(
            name, "scipy's cdist, class by class", times,
            {
                **_conditions("scipy"), "classes": sizes.classes, "data": _described(sizes.spread),
                "results": f"the ratios differ by {found:.1e} of them",
                "peak_memory_mb": round(peak / 1e6, 1), "block_mb": round(block / 1e6, 1),
                "memory": "allocated by numpy at most, less the input; ours",
            }, "; ".join(failures),
        )  # fmt: skip


def ratios_by_cdist(cross_features, cross_classes, features, labels) -> np.ndarray:
    """Angular ratios per class (K,), by scipy's distances between all pairs."""
    from scipy.spatial.distance import cdist

    def angular(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return 1 - np.abs(1 - cdist(a, b, "cosine"))

    found = []
    for k in np.unique(labels):
        clean = features[labels == k].astype(np.float64)
        adversaries = cross_features[cross_classes == k].astype(np.float64)
        within = angular(clean, clean)
        inner = (within.sum() - np.trace(within)) / (len(clean) * (len(clean) - 1))
        found.append(angular(adversaries, clean).mean() / inner)
    return np.array(found)


def exact_neighbours(setup: Setup, sizes: Sizes | None = None) -> Iterator[Line]:
    """Exact neighbours of each of the representations among as many others."""
    from sklearn.neighbors import NearestNeighbors

    sizes = sizes or Sizes()
    gallery, _ = class_representations(sizes.images, sizes.features, sizes.classes, sizes.spread, seed=1)
    queries, _ = class_representations(sizes.images, sizes.features, sizes.classes, sizes.spread, seed=2)
    k = min(10, sizes.images)
    for metric in ("cosine", "euclidean"):
        name = f"{k} exact neighbours, {metric}, {sizes.images:,} of {sizes.images:,} x {sizes.features}"
        setup.say(name)

        def ours(metric: str = metric) -> np.ndarray:
            return nearest_neighbours(queries, gallery, k, metric=metric).distances

        def peer(metric: str = metric) -> np.ndarray:
            return NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(gallery).kneighbors(queries)[0]

        expected = peer()
        found = np.abs(ours() - expected).max() / expected.max()
        (times,) = times_in_turn(
            ours, {"scikit-learn": peer}, pairs=setup.pairs, device=setup.device, warm_up=False
        ).values()
        said = f"the distances differ by {found:.1e} of the largest"
        yield Line(
            name, "scikit-learn's NearestNeighbors, brute", times,
            {
                **_conditions("faiss-cpu", "scikit-learn"), "data": _described(sizes.spread), "results": said,
                "time": "with building the index",
            }, "" if found <= DISTANCE_TOLERANCE else said,
        )  # fmt: skip


def growing_gallery(setup: Setup, sizes: Sizes | None = None) -> Iterator[Line]:
    """Neighbours in many vectors beside those in few, for each vector: above 1, time grows less than linearly."""
    sizes = sizes or Sizes()
    few, many = sizes.galleries
    settings = sizes.gallery_features, sizes.classes, sizes.spread
    gallery, _ = class_representations(many, *settings, seed=1)
    queries, _ = class_representations(sizes.queries, *settings, seed=2)
    checked = np.linspace(0, sizes.queries - 1, min(sizes.checked, sizes.queries)).astype(np.int64)
    for metric in ("angular", "euclidean"):
        name = f"10 neighbours, {metric}, {sizes.queries:,} in {many:,} x {sizes.gallery_features}, per vector"
        setup.say(name)

        def search(n: int, metric: str = metric, index: str = "auto") -> np.ndarray:
            return nearest_neighbours(queries, gallery[:n], 10, metric=metric, index=index).distances

        found = search(many)[checked]
        exact = nearest_neighbours(queries[checked], gallery, 10, metric=metric).distances
        recall = float(np.mean(found <= exact[:, -1:]))
        (times,) = times_in_turn(
            lambda: search(many), {"few": lambda: search(few)}, pairs=min(setup.pairs, 2), device=setup.device,
            warm_up=False,
        ).values()  # fmt: skip
        line = Line(
            name, f"{few:,} vectors", tuple((ours / many, peer / few) for ours, peer in times),
            {
                **_conditions("faiss-cpu"), "classes": sizes.classes, "data": _described(sizes.spread),
                "index": f"auto: approximate from {APPROXIMATE_FROM:,} vectors, exact below",
                "recall_at_10": recall, "recall_measured_on": f"{len(checked):,} queries",
                "time": "with building the index",
            }, own=True,
        )  # fmt: skip
        failures = [f"recall@10 is {recall:.3f}, below {LEAST_RECALL}"] if recall < LEAST_RECALL else []
        yield dataclasses.replace(line, failure="; ".join(failures))


def peak_bytes(run: Callable[[], object]) -> int:
    """Memory that numpy allocates at most while something runs, on top of what there was."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _described(spread: int) -> str:
    return f"synthetic float32: a centre for each class, {spread} directions in which it varies, and a little noise"


def _conditions(*packages: str) -> dict[str, Any]:
    return {"versions": {name: version(name) for name in ("numpy", *packages)}, "python": platform.python_version()}
