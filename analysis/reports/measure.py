"""What a report measures in the representations of one model; what takes long is stored, the rest follows from it."""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.detection import DetectionResult, detect
from analysis.extraction import extract
from analysis.landscape import Landscape, input_landscape, load_landscapes, save_landscapes
from analysis.maps import (
    ClassMap,
    PairMap,
    load_maps,
    load_pair_maps,
    map_class,
    map_pair,
    save_maps,
    save_pair_maps,
)
from analysis.ratio_errors import bootstrap_r_prime, class_ratio_errors
from analysis.ratios import ratio_r, ratio_r_prime
from analysis.reports.depth import blocks_of, measured_depth
from analysis.reports.inputs import Images, Subject, digest_of
from analysis.reports.store import kept, read_kept_json, write_kept_json
from analysis.representations import RepresentationSet
from analysis.retrieval import RetrievalResult, retrieve
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import CheckpointError
from tla_core.losses import angular_distance

LANDSCAPE_POINTS, LANDSCAPE_RADIUS = 25, 2.0  # along an axis; in eps
MAPPED_CLASSES, MAPPED_POINTS = 4, 250
RETRIEVED, WORST_CASES, LARGEST_MOVES = 3, 3, 10


@dataclass(frozen=True, eq=False)
class Represented:
    """The representations of one model, and what was measured at each block."""

    reps: RepresentationSet
    depth: list[dict[str, Any]]


def read_layers(subject: Subject, data: Images, layer: str) -> list[str]:
    """The blocks, the layer that the report is about, and the logits: what `extract` reads, tried on four images."""
    names = list(dict.fromkeys([*blocks_of(subject.model, data.images[0]), layer, "logits"]))
    extract(subject.model, data.images[:4], data.labels[:4], layer=names, keep_images=None)
    return names


def represented(
    subject: Subject, data: Images, attack: AttackConfig, layer: str, *, batch_size: int, progress: bool
) -> Represented:
    """Clean and adversarial representations of all images at every block, in one pass."""
    layers = read_layers(subject, data, layer)
    inputs = digest_of(subject, attack, layers=layers, layer=layer, n_given=data.n_given)
    arrays, blocks = subject.folder / "representations.safetensors", subject.folder / "depth.json"
    depth = read_kept_json(blocks, inputs)
    if depth is not None:
        with contextlib.suppress(FileNotFoundError, CheckpointError):  # what is damaged is made again
            reps = RepresentationSet.load(arrays)
            if reps.meta.get("inputs") == inputs:
                return Represented(reps, depth)
    sets = extract(
        subject.model, data.images, data.labels, layer=layers, attack=attack, indices=data.rows, batch_size=batch_size,
        class_names=data.class_names, keep_images="uint8", progress=progress,
        meta={"inputs": inputs, "model": subject.name, "dataset": data.name},
    )  # fmt: skip
    sets[layer].save(arrays)
    depth = measured_depth(sets, data.n_given)
    write_kept_json(blocks, inputs, depth)
    return Represented(sets[layer], depth)


def destinations(reps: RepresentationSet) -> np.ndarray:
    """Images of each true class (row) by what their adversarial examples are taken for: int (K, K)."""
    n = len(reps.class_names)
    counts = np.zeros((n, n), dtype=np.int64)
    np.add.at(counts, (reps.labels, reps.adv_predictions), 1)
    return counts


def most_mistaken(counts: list[np.ndarray]) -> tuple[list[int], tuple[int, int] | None]:
    """Of all models together: classes by how many of their examples are mistaken, and the most frequent pair."""
    total = np.sum(counts, axis=0)
    wrong = total - np.diag(np.diag(total))
    size = np.maximum(total.sum(axis=1), 1)
    order = [int(k) for k in np.argsort(-wrong.sum(axis=1) / size, kind="stable") if total[k].sum()]
    attacked, mistaken_for = np.unravel_index(np.argmax(wrong), wrong.shape)
    return order, (int(attacked), int(mistaken_for)) if wrong.max() else None


def ratios_of(reps: RepresentationSet, n_given: int) -> dict[str, Any]:
    """r and r', overall and by class, with bootstrap errors; r' is estimated for all images that were given."""
    r, r_prime = ratio_r(reps), ratio_r_prime(reps, drawn_from=n_given)
    return {
        "r": r.value, "r_prime": r_prime.value,
        "r_prime_error": _spread(bootstrap_r_prime(reps, drawn_from=n_given, n_resamples=200)),
        "r_by_class": r.per_class, "r_errors": class_ratio_errors(reps, "r"),
        "r_prime_by_class": r_prime.per_class,
        "r_prime_errors": class_ratio_errors(reps, "r_prime", drawn_from=n_given),
    }  # fmt: skip


def _spread(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def detection_of_images(reps: RepresentationSet) -> DetectionResult:
    """Gaussians fitted to every other clean image of each class; the others, clean and attacked, are scored.

    Raises
    ------
    ValueError
        As `detect`, such as for a class with fewer than two images to fit.
    """
    place = np.empty(len(reps), dtype=np.int64)
    for k in np.unique(reps.labels):
        members = np.flatnonzero(reps.labels == k)
        place[members] = np.arange(len(members))
    fitted, scored = place % 2 == 0, place % 2 == 1
    labels = reps.labels[scored]
    return detect(
        reps.features[fitted], reps.labels[fitted],
        np.concatenate([reps.features[scored], reps.adv_features[scored]]),
        np.concatenate([reps.predictions[scored] != labels, reps.adv_predictions[scored] != labels]),
    )  # fmt: skip


def retrieval_of(reps: RepresentationSet) -> RetrievalResult:
    """What clean and adversarial images retrieve, themselves left out."""
    return retrieve(reps, k=min(RETRIEVED, len(reps) - 1))


def worst_cases(retrievals: list[RetrievalResult], moves: list[np.ndarray]) -> list[int]:
    """Rows whose neighbours the attacks spoil most, of all models together; of equal ones those that move farthest."""
    falls = [each.clean.precision_at_k - each.adversarial.precision_at_k for each in retrievals]
    return np.lexsort((-np.mean(moves, axis=0), -np.mean(falls, axis=0)))[:WORST_CASES].tolist()


def moves_of(reps: RepresentationSet) -> np.ndarray:
    """Angular distance of each image's adversarial representation from its clean one: float32 (n,)."""
    return angular_distance(torch.from_numpy(reps.features), torch.from_numpy(reps.adv_features)).numpy()


def class_maps(subject: Subject, reps: RepresentationSet, classes: list[int]) -> dict[int, ClassMap]:
    """Maps of some classes, as in Fig. 1; those of too few images for t-SNE are left out."""
    inputs = digest_of(subject, None, representations=reps.meta["inputs"], classes=classes, points=MAPPED_POINTS)

    def make() -> dict[int, ClassMap]:
        maps = {}
        for k in classes:
            n = min(int((reps.labels == k).sum()), MAPPED_POINTS)
            perplexity = min(15, (2 * n - 1) // 3)
            if perplexity >= 2:
                maps[k] = map_class(reps, k, n_clean=n, n_adversarial=n, perplexity=perplexity)
        return maps

    path = subject.folder / "maps.safetensors"
    maps = kept(path, inputs, make, lambda at, maps: save_maps(at, maps, {"inputs": inputs}), load_maps)
    return {k: maps[k] for k in classes if k in maps}


def pair_map(subject: Subject, reps: RepresentationSet, pair: tuple[int, int]) -> PairMap:
    """The map of the most frequent confusion, as in Fig. 4.

    Raises
    ------
    ValueError
        For too few images.
    """
    inputs = digest_of(subject, None, representations=reps.meta["inputs"], pair=pair)
    mistaken = (reps.labels == pair[0]) & (reps.adv_predictions == pair[1])
    points = int(np.isin(reps.labels, pair).sum() + mistaken.sum())
    path = subject.folder / "pair.safetensors"

    def make() -> list[PairMap]:
        return [map_pair(reps, *pair, perplexity=max(min(15, (points - 1) // 3), 1))]

    return kept(path, inputs, make, lambda at, maps: save_pair_maps(at, maps, {"inputs": inputs}), load_pair_maps)[0]


def landscapes_of(subject: Subject, data: Images, rows: list[int], radius: float) -> list[Landscape]:
    """The loss around some images: along the model's own gradient, or at random where there is none; and at random."""
    inputs = digest_of(subject, None, landscape=[rows, radius, LANDSCAPE_POINTS])

    def around(row: int) -> Landscape:
        options = {"radius": radius, "resolution": LANDSCAPE_POINTS}
        image, label = data.images[row], data.labels[row]
        try:
            return input_landscape(subject.model, image, label, directions="gradient", **options)
        except ValueError:  # no gradient at that image
            return input_landscape(subject.model, image, label, **options)

    path = subject.folder / "landscapes.safetensors"
    landscapes = kept(
        path, inputs, lambda: {str(row): around(row) for row in rows},
        lambda at, landscapes: save_landscapes(at, landscapes, {"inputs": inputs}), load_landscapes,
    )  # fmt: skip
    return list(landscapes.values())


def landscape_unit(eps: float, norm: str, image: torch.Tensor) -> float:
    """What eps is in pixel units along a direction whose every pixel moves by as much."""
    return eps if norm == "linf" else eps / image.numel() ** 0.5
