"""Run our code and its peers on the same inputs, in one process, in turn, and print the ratios of their times.

    python -m benchmarks.bench [--only NAME ...] [--pairs N] [--json PATH] [--device cpu]
    python -m benchmarks.bench --check

A ratio is the peer's time divided by ours, so above 1 ours is faster; printed is the median over the pairs, with the
smallest and the largest. The times themselves belong to the machine and its load; the floor is what the matrix products
and convolutions of ours would take at the rate of a large matrix product, measured in the same run. Where both must
also agree in their results, that is checked first, and the exit status is 1 where they do not.

A run of all benchmarks writes `latest.json` (`latest-cuda.json` on a GPU) and adds a line to `history.jsonl`, which
`--check` reads.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import history
from benchmarks.choices import channels_last, chunks, folding
from benchmarks.evaluations import autoattack_evaluation, pgd_attack_full_width, pgd_evaluation
from benchmarks.explorer_page import explorer_page
from benchmarks.floor import matrix_rate
from benchmarks.full_training import published_training
from benchmarks.inputs import ROOT, Setup, available_cores, conditions
from benchmarks.landscapes import input_landscapes
from benchmarks.maps import class_maps
from benchmarks.representations import distance_ratios, exact_neighbours, growing_gallery
from benchmarks.scaling import cost_per_image
from benchmarks.timing import Line
from benchmarks.training_steps import tla_training_step
from tla_core.checkpoint import write_json
from tla_core.runtime import pick_device

BENCHMARKS: dict[str, Callable[[Setup], Iterator[Line]]] = {
    "pgd": pgd_evaluation,
    "pgd-full-width": pgd_attack_full_width,
    "autoattack": autoattack_evaluation,
    "tla-step": tla_training_step,
    "cost-per-image": cost_per_image,
    "folding": folding,
    "chunks": chunks,
    "channels-last": channels_last,
    "landscape": input_landscapes,
    "ratios": distance_ratios,
    "neighbours": exact_neighbours,
    "large-gallery": growing_gallery,
    "maps": class_maps,
    "explorer": explorer_page,
    "published-training": published_training,
}


def run(names: Sequence[str], setup: Setup) -> list[Line]:
    """The lines of the benchmarks of these names, and of all lines no two with one name and peer."""
    lines = []
    for name in names:
        setup.say(name)
        lines += BENCHMARKS[name](setup)
    return lines


def records(lines: Sequence[Line], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the JSON file holds: name, ours_s, peer_s, peer, ratio, pairs, conditions of each line."""
    return [line.record(common) for line in lines]


def table(lines: Sequence[Line], common: Mapping[str, Any]) -> str:
    """The two tables that are printed: beside peers, and beside other choices of ours."""
    header = ("beside", "ours, s", "floor, s", "peer, s", "ratio", "min to max", "pairs")
    rows = []
    for title, own in (("BESIDE A PEER", False), ("BESIDE OUR OTHER CHOICE", True)):
        part = [_row(line, line.record(common)) for line in lines if line.own == own]
        rows += [(title, *header), *part, ("",) * (1 + len(header))] if part else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text += ["Ratio: the peer's time / ours, the median over the pairs; above 1 ours is faster."]
    text += ["Floor: the operations of ours at the machine's rate of float32 matrix products."]
    text += [", ".join(f"{key} {value}" for key, value in common.items()), ""]
    for line in lines:
        said = "; ".join(f"{key}: {value}" for key, value in line.conditions.items() if value != "")
        text.append(f"{line.name}, beside {line.peer}: {said}")
    return "\n".join(text)


def _row(line: Line, record: Mapping[str, Any]) -> tuple[str, ...]:
    floor = record["conditions"].get("floor_s")
    spread = f"{min(line.ratios):.2f} to {max(line.ratios):.2f}"
    return (
        line.name, line.peer, f"{record['ours_s']:.3g}", f"{floor:.3g}" if floor else "", f"{record['peer_s']:.3g}",
        f"{line.ratio:.2f}", spread, str(record["pairs"]),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None, setup: Setup | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--json", type=Path, help="where to write; by default latest.json, if all are run")
    parser.add_argument("--check", action="store_true", help="compare the newest line of history.jsonl with the last"
                        " one of the same kind of machine, and run nothing")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda")
    given = parser.parse_args(arguments)
    if given.pairs < 1:
        parser.error(f"--pairs must be at least 1. Got {given.pairs}.")
    if given.check:
        message, status = history.check()
        print(message)
        return status
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {what}", file=sys.stderr, flush=True)

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    setup = dataclasses.replace(setup or Setup(), pairs=given.pairs, device=pick_device(given.device), say=say)
    common = conditions(setup.device) | {"matrix_flop_per_s": matrix_rate(setup.device)}
    lines = run(given.only or list(BENCHMARKS), setup)
    failures = [f"{line.name}, beside {line.peer}: {line.failure}" for line in lines if line.failure]
    path = given.json
    if path is None and not given.only:
        path = ROOT / "benchmarks" / ("latest-cuda.json" if setup.device.type == "cuda" else "latest.json")
        if not failures:
            history.add(records(lines, common))
    if path is not None:
        write_json(path, records(lines, common))
    print(table(lines, common))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
