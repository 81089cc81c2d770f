"""What a report is made of: what was measured of each model, and what the caller gets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.detection import DetectionResult
from analysis.landscape import Landscape
from analysis.maps import ClassMap, PairMap
from analysis.reports.accuracies import Accuracies
from analysis.reports.inputs import Images, Subject
from analysis.reports.trust import Trust
from analysis.representations import RepresentationSet
from analysis.retrieval import RetrievalResult
from tla_core.attack_config import AttackConfig


@dataclass(eq=False)
class Findings:
    """What was measured of one model; None where it was left out."""

    subject: Subject
    accuracies: Accuracies | None = None
    trust: Trust | None = None
    reps: RepresentationSet | None = None
    depth: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, Any] | None = None
    destinations: np.ndarray | None = None
    moves: np.ndarray | None = None
    retrieval: RetrievalResult | None = None
    detection: DetectionResult | None = None
    maps: dict[int, ClassMap] = field(default_factory=dict)
    pair: PairMap | None = None
    landscapes: list[Landscape] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.subject.name


@dataclass(eq=False)
class Contents:
    """All that a report shows."""

    data: Images
    attack: AttackConfig
    layer: str
    models: list[Findings]
    left_out: list[str]
    command: str
    worst: list[int] = field(default_factory=list)
    landscape_rows: list[int] = field(default_factory=list)
    landscape_rows_are_right: bool = True
    explorer: Path | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What `report` wrote.

    Attributes
    ----------
    path, json_path : Path
        The page, one HTML file, and its numbers.
    explorer : Path or None
        The embedding explorer beside it; None where it was left out.
    numbers : dict
        What report.json holds.
    """

    path: Path
    json_path: Path
    explorer: Path | None
    numbers: dict[str, Any]

    def __repr__(self) -> str:
        lights = ", ".join(f"{name} {model['trust']['light']}" for name, model in self.numbers["models"].items())
        return f"Report({self.path}; trust: {lights})"
