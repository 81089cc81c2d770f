"""Measure how extraction, ratios, neighbours, maps and the explorer grow, each at three sizes, and extrapolate.

    OMP_NUM_THREADS=1 python -m benchmarks.growth [--json PATH] [--shrink K]

Seconds are those of the processor, the least of three runs: a machine that others use too changes them less than the
clock's. A formula says with which power a cost grows: cost = a + b * size^power. Its a and b are fitted to the three
measurements, it says the cost at another size, and the misfit is how far it is from a measurement at the most. The
power that was measured is that between the two larger sizes.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

import analysis
import tla_core as tla
from analysis.neighbours import nearest_neighbours
from analysis.ratios import ratio
from analysis.representations import RepresentationSet
from benchmarks.inputs import ROOT, Setup, conditions, test_images, untrained_model
from benchmarks.representations import class_representations, peak_bytes
from tla_core.checkpoint import write_json

FEATURES, SPREAD, REPEATS = 64, 16, 3
IMAGES, CLASSES = 10_000_000, 1000
ATTACK = tla.AttackConfig(eps=0.3, step_size=0.1, steps=4)


@dataclass(frozen=True)
class Case:
    """A cost that grows with one number.

    Attributes
    ----------
    name : str
    unit : {"s", "bytes"}
    of : str
        What is counted.
    sizes : tuple of int
    target : int
        That the cost is extrapolated to.
    power : float
        Of the formula.
    cost : callable
        Size -> cost.
    """

    name: str
    unit: str
    of: str
    sizes: tuple[int, ...]
    target: int
    power: float
    cost: Callable[[int], float]

    def record(self, costs: Sequence[float]) -> dict[str, Any]:
        """The entry of the JSON file."""
        # Least squares of the relative errors.
        sizes, values = np.array(self.sizes, np.float64), np.array(costs, np.float64)
        terms = np.stack([np.ones(3), (sizes / sizes[-1]) ** self.power], axis=1)
        fit, _ = nnls(terms / values[:, None], np.ones(3))  # no cost is less than nothing
        slope = np.log(values[-1] / values[-2]) / np.log(sizes[-1] / sizes[-2])
        return {
            "name": self.name, "unit": self.unit, "of": self.of, "sizes": list(self.sizes), "costs": list(costs),
            "power": self.power, "measured_power": float(slope), "target": self.target,
            "misfit": float(np.abs(terms @ fit / values - 1).max()),
            "extrapolated": float(fit @ [1, (self.target / sizes[-1]) ** self.power]),
        }  # fmt: skip


def cases(shrink: int = 1) -> Iterator[Case]:
    """What is measured, at sizes divided by `shrink`."""

    def sizes(first: int) -> tuple[int, ...]:
        return tuple(max(first // shrink, 4) * factor for factor in (1, 2, 4))

    pairs = sizes(8000)
    yield Case("extraction, PGD-4", "s", "images", sizes(1000), IMAGES, 1, _seconds(_extraction))
    yield Case("extraction, stored", "bytes", "images", sizes(1000), IMAGES, 1, _stored)
    yield Case("ratio, pairs of a class", "s", "images", pairs, IMAGES, 2, _seconds(_ratio(np.asarray)))
    yield Case(
        "ratio, pairs of a class", "s", "classes", (4, 8, 16), CLASSES, -1, _seconds(_ratio_by_classes(pairs[-1]))
    )
    yield Case("ratio, no negative features", "s", "images", sizes(32_000), IMAGES, 1, _seconds(_ratio(np.abs)))
    queries = sizes(1000)[0]
    yield Case("10 neighbours, fixed queries", "s", "gallery rows", sizes(32_000), IMAGES, 1, _seconds(_fixed(queries)))
    yield Case("10 neighbours of all", "s", "images", pairs, IMAGES, 2, _seconds(_of_all))
    yield Case("neighbours, one array, peak", "bytes", "gallery rows", sizes(32_000), IMAGES, 1, _peak(queries, None))
    block = sizes(32_000)[0] // 4
    yield Case("neighbours, blocks, peak", "bytes", "gallery rows", sizes(32_000), IMAGES, 0, _peak(queries, block))
    yield Case("t-SNE, 250 iterations", "s", "points of a map", sizes(1000), 10_000, 2, _seconds(_map))
    yield Case("explorer, file", "bytes", "points of a panel", sizes(1000), 20_000, 1, lambda n: _explorer(n, 2, n))
    yield Case("explorer, file", "bytes", "models", (1, 2, 4), 6, 1, lambda m: _explorer(sizes(1000)[0], m, 2000))
    images = _seconds(lambda n: lambda: _explorer(n, 1, sizes(500)[0]))
    yield Case("explorer, few of the images shown", "s", "images", pairs, IMAGES, 2, images)


def _seconds(prepare: Callable[[int], Callable[[], object]]) -> Callable[[int], float]:
    """The processor's seconds of what is prepared for a size."""

    def cost(size: int) -> float:
        run, times = prepare(size), []
        for _ in range(REPEATS):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return min(times)

    return cost


def _representations(n: int, seed: int = 1, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return class_representations(n, FEATURES, classes, SPREAD, seed=seed)


def _extraction(n: int) -> Callable[[], RepresentationSet]:
    images, labels = test_images(n)
    model = untrained_model(Setup(), "lenet", images, width=1 / 16)

    def run() -> RepresentationSet:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an untrained model fails a masking check
            return analysis.extract(model, images, labels, attack=ATTACK)

    return run


def _stored(n: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.safetensors"
        _extraction(n)().save(path)
        return path.stat().st_size


def _ratio(move: Callable, classes: int = 10) -> Callable[[int], Callable[[], object]]:
    def prepare(n: int) -> Callable[[], object]:
        clean, labels = _representations(n, 1, classes)
        adversarial, _ = _representations(n, 2, classes)
        return lambda: ratio(move(adversarial), (labels + 1) % classes, move(clean), labels)

    return prepare


def _ratio_by_classes(n: int) -> Callable[[int], Callable[[], object]]:
    return lambda classes: _ratio(np.asarray, classes)(n)


def _fixed(n_queries: int) -> Callable[[int], Callable[[], object]]:
    def prepare(n: int) -> Callable[[], object]:
        queries, gallery = _representations(n_queries, 2)[0], _representations(n)[0]
        return lambda: nearest_neighbours(queries, gallery, min(10, n))

    return prepare


def _of_all(n: int) -> Callable[[], object]:
    gallery, _ = _representations(n)
    return lambda: nearest_neighbours(gallery, gallery, min(10, n - 1), exclude=np.arange(n))


def _peak(n_queries: int, block: int | None) -> Callable[[int], float]:
    """Bytes that numpy allocates at most; FAISS's own copy, 4 for each number, is not among them."""

    def blocks(n: int) -> Iterator[np.ndarray]:
        for number in range(n // block):
            yield _representations(block, number)[0]

    def cost(n: int) -> float:
        queries = _representations(n_queries, 2)[0]
        if block is None:
            gallery = _representations(n)[0]
            return peak_bytes(lambda: nearest_neighbours(queries, gallery, min(10, n))) + gallery.nbytes
        return peak_bytes(lambda: nearest_neighbours(queries, blocks(n), min(10, n)))

    return cost


def _map(n: int) -> Callable[[], object]:
    features, _ = _representations(n)
    perplexity = min(15, (n - 1) // 3)
    return lambda: analysis.project(features, n_iter=250, perplexity=perplexity)


def _explorer(n: int, models: int, shown: int) -> float:
    """Bytes of the explorer's file, two points for each image."""
    clean, labels = _representations(n)
    sets = {}
    for number in range(models):
        adversarial, _ = _representations(n, 2 + number)
        logits = np.eye(10, dtype=np.float32)[labels]
        sets[str(number)] = RepresentationSet.from_arrays(
            clean, labels, adv_features=adversarial, logits=logits, adv_logits=np.roll(logits, 1, axis=1)
        )
    with tempfile.TemporaryDirectory() as folder:
        explorer = analysis.EmbeddingExplorer(sets, methods=("pca",), max_points=shown, progress=False)
        return explorer.to_html(Path(folder) / "page.html").stat().st_size


def table(records: Sequence[dict[str, Any]]) -> str:
    """The table that is printed."""
    rows = [("cost", "in", "of", "at", "measured", "power", "formula", "misfit", "extrapolated")]
    for record in records:
        rows.append(
            (
                record["name"], record["unit"], record["of"], " / ".join(f"{size:,}" for size in record["sizes"]),
                " / ".join(f"{cost:.3g}" for cost in record["costs"]), f"{record['measured_power']:.2f}",
                f"{record['power']:g}", f"{record['misfit']:.0%}",
                f"{record['extrapolated']:.3g} at {record['target']:,}",
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "growth.json", help="where to write")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sizes by this number")
    given = parser.parse_args(arguments)
    if given.shrink < 1:
        parser.error(f"--shrink must be at least 1. Got {given.shrink}.")
    records = []
    for case in cases(given.shrink):
        print(f"{case.name}, {case.of}", file=sys.stderr, flush=True)
        records.append(case.record([case.cost(size) for size in case.sizes]))
    common = {**conditions(torch.device("cpu")), "features": FEATURES, "repeats": REPEATS}
    write_json(given.json, {"conditions": common, "records": records})
    print(table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
