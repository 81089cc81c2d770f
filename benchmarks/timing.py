"""Times ours and a peer in turn. What counts is the ratio of a pair: absolute times change with the machine's mood."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes
    ----------
    name, peer : str
        What is measured, and what ours is compared with.
    times : tuple of (float, float)
        Seconds of ours and of the peer, for each pair.
    conditions : dict
        JSON values: what was run, and what was found beside the times.
    failure : str
        What is wrong with the results that were to agree; empty if nothing.
    own : bool
        Whether the peer is another choice of ours, such as a step that was switched off.
    operations : int
        Floating-point operations of ours, see `benchmarks.floor.count_operations`; 0 where they were not counted.
    """

    name: str
    peer: str
    times: tuple[tuple[float, float], ...]
    conditions: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    own: bool = False
    operations: int = 0

    @property
    def ratios(self) -> list[float]:
        """Peer / ours of each pair: above 1, ours is faster."""
        return [peer / ours for ours, peer in self.times]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def record(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """The entry of the JSON file; `common` are the conditions of all lines."""
        ours, peer = (statistics.median(times) for times in zip(*self.times, strict=True))
        measured = {"ratio_min": min(self.ratios), "ratio_max": max(self.ratios), "ratios": self.ratios}
        if self.operations:
            measured |= {"gigaflop": self.operations / 1e9, "floor_s": self.operations / common["matrix_flop_per_s"]}
        return {
            "name": self.name, "ours_s": ours, "peer_s": peer, "peer": self.peer, "ratio": self.ratio,
            "pairs": len(self.times), "conditions": {**common, **self.conditions, **measured, "failure": self.failure},
        }  # fmt: skip


def times_in_turn(
    ours: Run, peers: Mapping[str, Run], *, pairs: int, device: torch.device, warm_up: bool = True
) -> dict[str, tuple[tuple[float, float], ...]]:
    """Run ours and its peers in turn, and pair the times.

    Parameters
    ----------
    ours : callable
    peers : mapping of str to callable
        Several peers share the runs of ours.
    pairs : int
    device : torch.device
        A GPU is waited for before the clock is read.
    warm_up : bool
        Run each once without timing it; False where a check has done so.

    Returns
    -------
    dict of str to tuple of (float, float)
        For each peer the seconds of ours and of the peer.
    """
    runs = {"": ours, **peers}
    if warm_up:
        for run in runs.values():
            seconds(run, device)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for turn in range(pairs):
        # Every other turn backwards, so that a slow drift of the clock rate favours nobody.
        order = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        taken = {name: seconds(runs[name], device) for name in order}
        for name in peers:
            found[name].append((taken[""], taken[name]))
    return {name: tuple(times) for name, times in found.items()}


def seconds(run: Run, device: torch.device) -> float:
    """How long a run takes."""
    _wait_for(device)
    start = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
