"""Compute what a scale costs on 1, 8 and 64 GPUs from the operations of its plan. Nothing is trained.

    python -m benchmarks.paper_cost [--scale paper] [--teraflops RATE] [--json PATH]

A pass is one forward pass of one image; a pass that gives the gradient of the image counts as two, a training pass as
three. Hours are operations / rate. The default rate is that of the paper's own training, by this count.
"""

import argparse
import heapq
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.scales.costs import total_steps
from analysis.scales.plan import Artefact, Plan
from analysis.scales.scale import load_scale
from benchmarks.full_training import PAPER_V100_HOURS, count_operations
from tla_core.checkpoint import write_json
from tla_core.config import TrainConfig
from tla_core.models import build_model
from tla_core.protocol import STRONGEST_IMAGES, accuracy_columns, analysis_attack, strongest_attacks

PAPERS_OWN = "supplement/cifar10/tla"
GPUS = (1, 8, 64)
# Dataset -> channels, pixels of a side, classes, training and test images.
SHAPES = {
    "mnist": (1, 28, 10, 60_000, 10_000), "cifar10": (3, 32, 10, 50_000, 10_000),
    "tiny-imagenet": (3, 64, 200, 100_000, 10_000),
}  # fmt: skip
# Passes for one image of AutoAttack's standard version: APGD on the cross-entropy, APGD and FAB towards nine classes
# with 100 steps each, 5,000 queries of Square.
AUTOATTACK_PASSES = 2 * 100 * (1 + 9 + 9) + 5000
SQUARE_PASSES = 5000


def forward_operations(config: TrainConfig) -> int:
    """Floating-point operations of the network for one image."""
    channels, side, classes, _, _ = SHAPES[config.dataset]
    settings = {"width": config.width, "blocks": config.blocks, "normalization": config.normalization}
    with torch.device("meta"):
        model = build_model(
            config.network, in_channels=channels, image_size=side, n_classes=classes, **settings
        ).eval()  # fmt: skip
        images = torch.rand(1, channels, side, side)
    return count_operations(lambda: model(images))


def passes_of_step(config: TrainConfig) -> float:
    """Forward passes that a training step costs for each image of its batch; see `tla_core/methods.py`."""
    if config.method == "um":
        return 3
    passes = 2 * config.attack.steps + 3
    if config.method == "alp":
        passes += 3
    if config.method.startswith("tla"):
        passes += 2 * 3  # positive and negative
    if config.method in ("tla", "tla-sa"):
        passes += 1 + config.pool_size / config.batch_size + (config.negatives == "semi-hard")
    return passes


def passes_of_accuracies(config: TrainConfig, settings: dict[str, Any]) -> float:
    """Forward passes of an accuracy table at the most: images that are given up early cost less."""
    _, _, classes, _, n = SHAPES[config.dataset]
    attacks = [column.attack for column in accuracy_columns(config).values()]
    passes = n + sum(2 * n * attack.steps * attack.restarts for attack in attacks)
    for attack in strongest_attacks(config, classes).values():
        passes += 2 * STRONGEST_IMAGES * attack.steps * max(attack.targets, 1)
    return passes + SQUARE_PASSES * (settings["square"] or 0) + AUTOATTACK_PASSES * (settings["autoattack"] or 0)


def operations(plan: Plan, artefact: Artefact) -> float:
    """Floating-point operations of a training, an accuracy table, or an extraction; 0 of all else, landscapes too."""
    if artefact.run is None:
        return 0.0
    config = plan.scale.config(*artefact.run)
    _, _, _, n_train, n_test = SHAPES[config.dataset]
    passes = 0.0
    if artefact.kind == "model":
        passes = total_steps(config, n_train) * config.batch_size * passes_of_step(config)
    elif artefact.kind == "accuracies":
        passes = passes_of_accuracies(config, artefact.settings)
    elif artefact.kind == "representations":
        passes = n_test * (2 + 2 * analysis_attack(config).steps)
    elif artefact.kind == "train representations":
        passes = n_train
    return passes * forward_operations(config)


def makespan(jobs: Sequence[float], workers: int) -> float:
    """When the last worker is done, if each takes the longest job that is left."""
    loads = [0.0] * workers
    for job in sorted(jobs, reverse=True):
        heapq.heappush(loads, heapq.heappop(loads) + job)
    return max(loads)


def cost(scale: str, teraflops: float | None) -> dict[str, Any]:
    """What the command prints and writes."""
    own = TrainConfig.preset(PAPERS_OWN)
    of_own = total_steps(own, SHAPES["cifar10"][3]) * own.batch_size * passes_of_step(own) * forward_operations(own)
    rate = teraflops * 1e12 if teraflops else of_own / (PAPER_V100_HOURS * 3600)
    plan = Plan(load_scale(scale))
    by_run: dict[tuple, float] = {}
    groups: dict[tuple[str, str], list[float]] = {}
    for artefact in plan.artefacts.values():
        count = operations(plan, artefact)
        if not count:
            continue
        dataset, _, seed = artefact.run
        what = "trainings" if artefact.kind == "model" else artefact.kind
        groups.setdefault((dataset, what), []).append(count)
        # A run with all that is made of it is one job, and one that goes on from another one belongs to that.
        start = (dataset, "at", seed) if plan.scale.config(*artefact.run).fine_tune else artefact.run
        by_run[start] = by_run.get(start, 0.0) + count
    rows = [
        {"dataset": dataset, "what": what, "number": len(counts), "petaflop": sum(counts) / 1e15,
         "hours": sum(counts) / rate / 3600}
        for (dataset, what), counts in sorted(groups.items())
    ]  # fmt: skip
    hours = [count / rate / 3600 for count in by_run.values()]
    longest = max(by_run, key=by_run.get)
    return {
        "scale": scale, "teraflop_per_s": rate / 1e12, "petaflop_of_papers_own": of_own / 1e15, "rows": rows,
        "jobs": len(hours), "longest_job": "/".join(map(str, longest)), "longest_hours": max(hours),
        "hours": {str(gpus): makespan(hours, gpus) for gpus in GPUS},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="paper", help="whose plan (default: paper)")
    parser.add_argument("--teraflops", type=float, help="what a GPU does in a second; default: as the paper's own did")
    parser.add_argument("--json", type=Path, help="where to write")
    given = parser.parse_args(arguments)
    found = cost(given.scale, given.teraflops)
    if given.json:
        write_json(given.json, found)
    for row in found["rows"]:
        print("{dataset:<14} {what:<22} {number:>3} {petaflop:>12,.0f} PFLOP {hours:>8,.0f} h".format(**row))
    print(f"at {found['teraflop_per_s']:.2f} TFLOP/s; {found['jobs']} jobs, the longest {found['longest_job']}")
    for gpus, hours in found["hours"].items():
        print(f"{gpus:>3} GPUs: {hours:,.0f} h, {hours / 24:,.1f} days")
    return 0


if __name__ == "__main__":
    sys.exit(main())
