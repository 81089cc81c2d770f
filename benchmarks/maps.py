"""The maps of Fig. 1-3, one for each class, side by side, beside openTSNE called one after the other."""

import os
from collections.abc import Iterator

import numpy as np
import torch

from analysis.maps import ClassMap, map_classes
from analysis.representations import RepresentationSet
from benchmarks.inputs import Setup
from benchmarks.representations import class_representations
from benchmarks.timing import Line, times_in_turn

# Of the mean Kullback-Leibler divergence, at the same neighbours: no worse, but for which optimum happens to be found.
DIVERGENCE_TOLERANCE = 0.01


def class_maps(
    setup: Setup, *, classes: int = 8, points: int = 1000, features: int = 128, n_iter: int = 750
) -> Iterator[Line]:
    """Maps of clean and adversarial points of each class; both sides may use all threads.

    Parameters
    ----------
    setup : Setup
    classes, points, features : int
        Panels; points of each, half of them adversarial; and the width of a representation.
    n_iter : int
    """
    threads = torch.get_num_threads()
    reps = two_kinds_of_representations(classes, points, features)
    settings = {"n_clean": points // 2, "n_adversarial": points // 2, "n_iter": n_iter}
    ours: dict[int, ClassMap] = {}
    peers: list[float] = []

    def side_by_side() -> None:
        ours.update(map_classes(reps, n_jobs=threads, **settings))

    def one_after_the_other() -> None:
        peers[:] = [_opentsne(np.concatenate([reps.features[of], reps.adv_features[of]]), n_iter, threads)
                    for of in (reps.labels == k for k in range(classes))]  # fmt: skip

    (times,) = times_in_turn(
        side_by_side, {"openTSNE": one_after_the_other}, pairs=setup.pairs, device=torch.device("cpu")
    ).values()
    divergence = np.mean([ours[k].params["kl_divergence"] for k in range(classes)])
    worse = float(divergence / np.mean(peers) - 1)
    yield Line(
        "t-SNE maps of classes, side by side", "openTSNE, one after the other", times,
        {
            "maps": classes, "points": points, "features": features, "n_iter": n_iter, "data": "synthetic classes",
            "both": f"perplexity 15, cosine, exact neighbours, {threads} threads in all, {os.cpu_count()} processors",
            "gradient": "ours over all pairs; the peer's by Barnes-Hut, its default for so many points",
            "results": f"mean divergence {divergence:.4f}, {worse:+.2%} beside the peer's",
        },
        f"the divergence is worse by {worse:.2%}" if worse > DIVERGENCE_TOLERANCE else "",
    )  # fmt: skip


def two_kinds_of_representations(classes: int, points: int, features: int) -> RepresentationSet:
    """For each class `points` / 2 clean rows, and as many adversarial ones, near the clean ones of two classes."""
    per_class = points // 2
    clean, labels = class_representations(classes * per_class, features, classes, 16, seed=1)
    adversarial, _ = class_representations(classes * per_class, features, classes, 16, seed=2)
    order = np.argsort(labels, kind="stable")
    predictions = np.roll(np.asarray(labels)[order], per_class // 2)
    return RepresentationSet.from_arrays(
        clean[order], np.asarray(labels)[order], predictions=np.asarray(labels)[order],
        adv_features=np.roll(adversarial[order], per_class // 2, axis=0), adv_predictions=predictions,
        class_names=tuple(map(str, range(classes))),
    )  # fmt: skip


def _opentsne(features: np.ndarray, n_iter: int, threads: int) -> float:
    """The divergence of a map by openTSNE, called as its users do, with our settings of the method."""
    from openTSNE import TSNE

    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    fitted = TSNE(
        perplexity=15, metric="cosine", neighbors="exact", n_iter=n_iter - 250, n_jobs=threads, random_state=0,
    ).fit(units)  # fmt: skip
    return float(fitted.kl_divergence)
