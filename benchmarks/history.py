"""One line for each run of all benchmarks, and what fell since the last one on the same kind of machine."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.inputs import ROOT

PATH = ROOT / "benchmarks" / "history.jsonl"
TOLERANCE = 0.1  # a ratio that falls by more than this share is named
_MACHINE = ("processor", "cpu_capability", "threads", "device")


def add(records: Sequence[Mapping[str, Any]], path: Path | None = None) -> None:
    """Add a line: date, commit, machine, and for each benchmark the median ratio with the smallest and largest."""
    conditions = records[0]["conditions"]
    line = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "commit": _commit(), "torch": conditions["torch"],
        "machine": {key: conditions[key] for key in _MACHINE},
        "ratios": {
            f"{record['name']} | {record['peer']}": [
                round(value, 3)
                for value in (record["ratio"], record["conditions"]["ratio_min"], record["conditions"]["ratio_max"])
            ]
            for record in records
        },
    }  # fmt: skip
    with (path or PATH).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def check(path: Path = PATH) -> tuple[str, int]:
    """What fell between the two newest lines of one kind of machine, and the exit status: 1 if anything did."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    if not lines:
        return f"{path.name} has no line yet: `make bench` adds one.", 0
    newest = lines[-1]
    earlier = [line for line in lines[:-1] if line["machine"] == newest["machine"]]
    machine = ", ".join(f"{key} {value}" for key, value in newest["machine"].items())
    if not earlier:
        return f"nothing to compare with: the run of {newest['date']} is the first on {machine}.", 0
    last = earlier[-1]
    rows = []
    for name, ratios in newest["ratios"].items():
        last_ratios = last["ratios"].get(name, (0, 0, 0))
        if ratios[0] < (1 - TOLERANCE) * last_ratios[0]:
            rows.append(f"{name}: {_spread(last_ratios)} -> {_spread(ratios)}")
    rows += [f"{name}: no longer measured" for name in last["ratios"] if name not in newest["ratios"]]
    title = f"{newest['date']} ({newest['commit']}) beside {last['date']} ({last['commit']}) on {machine}"
    if not rows:
        return f"{title}: no ratio fell by more than {TOLERANCE:.0%}.", 0
    return "\n".join([f"{title}, ratios with their spread:", *rows]), 1


def _spread(ratios: Sequence[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratios)


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
