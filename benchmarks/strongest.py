"""The attacks of the column "strongest" beside AutoAttack's package, on the same images of each run, with their times.

    python -m benchmarks.strongest RUN ... [--images 1000] [--json PATH]

The package attacks the model as it is, with all of its standard attacks; ours are APGD on the cross-entropy and towards
nine classes, and 1,000 queries of Square, as every accuracy table has them. The PGD of a table is left out.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import tla_core as tla
from analysis.scales.run_results import run_config
from benchmarks.inputs import available_cores, conditions
from tla_core.checkpoint import write_json
from tla_core.masking.verdicts import paired_gap
from tla_core.protocol import strongest_attacks

SQUARE_QUERIES = 1000


def compare(run: Path, n: int) -> dict[str, Any]:
    """Robust accuracies in % of both, the paired difference with its standard error, and the seconds of each."""
    from pyautoattack import AutoAttack

    config, model = run_config(run), tla.load_model(run)
    data = tla.load_dataset(config.dataset, "test")
    rows = torch.arange(min(n, len(data))) * len(data) // min(n, len(data))
    images, labels = data.images[rows], data.labels[rows]
    attacks = strongest_attacks(config, len(data.class_names))
    apgd = attacks["APGD-CE"]
    attacks["Square"] = replace(apgd, name="square", steps=SQUARE_QUERIES)
    start = time.perf_counter()
    outcomes = tla.evaluate(model, images, labels, attacks, checks=False).correct
    ours = torch.stack(list(outcomes.values())).all(0)
    middle = time.perf_counter()
    package = AutoAttack(model, norm={"linf": "Linf", "l2": "L2"}[apgd.norm], eps=apgd.eps, seed=0, device="cpu")
    attacked = package.run_standard_evaluation(images.float() / 255, labels, batch_size=250)[0]
    with torch.no_grad():
        theirs = torch.cat([model(part).argmax(1) for part in attacked.split(250)]) == labels
    end = time.perf_counter()
    gap = paired_gap(ours, theirs)
    return {
        "run": f"{config.dataset}, {config.method}", "images": len(rows), "eps": apgd.eps,
        "clean": 100 * outcomes["clean"].double().mean().item(), "strongest": 100 * ours.double().mean().item(),
        "autoattack": 100 * theirs.double().mean().item(), "difference": 100 * gap["gap"],
        "standard_error": 100 * gap["standard_error"], "strongest_s": middle - start, "autoattack_s": end - middle,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table that is printed."""
    shares = [f"{row[key]:.1f}" for key in ("clean", "strongest", "autoattack")]
    gap = f"{row['difference']:.1f} ± {row['standard_error']:.1f}"
    times = [f"{row[key]:.0f}" for key in ("strongest_s", "autoattack_s")]
    ratio = f"{row['autoattack_s'] / row['strongest_s']:.1f}"
    return _joined([row["run"], str(row["images"]), *shares, gap, *times, ratio])


def _joined(cells: Sequence[str]) -> str:
    return cells[0].ljust(22) + "".join(cell.rjust(12) for cell in cells[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strongest", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of a checkpoint")
    parser.add_argument("--images", type=int, default=1000, help="evenly spread over the test set (default: 1000)")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    given = parser.parse_args(arguments)
    if given.images < 1:
        parser.error(f"--images must be at least 1. Got {given.images}.")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    print(_joined(["run", "images", "clean", "strongest", "AutoAttack", "difference", "ours, s", "theirs, s", "ratio"]))
    rows = []
    for run in given.runs:
        rows.append(compare(run, given.images))
        print(line(rows[-1]), flush=True)
        if given.json is not None:
            write_json(given.json, {"conditions": conditions(torch.device("cpu")), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
