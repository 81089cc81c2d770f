"""A factorial experiment: trainings that differ in one setting, from the same seeds, measured on held-out images.

``workflow/ablation.yaml`` lists the experiments. Each cell is a run folder, ``runs/ablation/<method>[@<settings>]/
seed<n>``; its accuracies are a line of ``docs/results/ablation.jsonl``, so that nothing is trained or measured twice.
No test image takes part: accuracies are of training images that no run trains on or is selected by.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy import stats
from torch import nn

from analysis.scales.scale import replaced_settings
from analysis.scales.variants import variant_name
from tla_core.attack_config import AttackConfig
from tla_core.config import TrainConfig, fields_in_use, identity_of
from tla_core.dataset_download import other_copy
from tla_core.datasets import ImageDataset, load_dataset
from tla_core.evaluation import evaluate
from tla_core.schedule import split_holdout
from tla_core.training import load_model, train

_SPLIT_SEED = 12345  # of the measured images, which are the same for all runs
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """One training but for its seed: a method, the settings that differ from the common ones, and its start.

    `start` is ``"fresh"``, or a method: the weights come from that method's cell of the same seed.
    """

    method: str
    changes: tuple[tuple[str, Any], ...] = ()
    start: str = "fresh"

    @property
    def name(self) -> str:
        """``tla@lambda_triplet=2,start=at``."""
        changes = dict(self.changes) | ({} if self.start == "fresh" else {"start": self.start})
        return f"{self.method}@{variant_name(changes)}" if changes else self.method


@dataclass(frozen=True)
class Experiment:
    """One factor at several values, everything else equal.

    Attributes
    ----------
    name : str
    factor : str
        A field of `TrainConfig`, ``method`` or ``start``.
    values : tuple
        The first is what the others are compared with.
    settings : tuple of dict
        Further settings of the cells; each of these is a comparison of its own.
    seeds : tuple of int
    """

    name: str
    factor: str
    values: tuple[Any, ...]
    settings: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Effect:
    """The difference that a value makes, paired by seed, in points of accuracy.

    Attributes
    ----------
    experiment, label : str
        Such as ``"statistics adversarial, not all (method=tla)"``.
    differences : tuple of float
        One for each seed.
    low, high : float
        Of the 95 % interval by Student's t; nan with fewer than two seeds.
    """

    experiment: str
    label: str
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, experiment: str, label: str, differences: Sequence[float]) -> "Effect":
        """Mean and interval of differences in points."""
        n, mean = len(differences), float(np.mean(differences))
        half = math.nan
        if n > 1:
            half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * np.std(differences, ddof=1) / math.sqrt(n))
        return cls(experiment, label, tuple(differences), mean, mean - half, mean + half)

    @property
    def verdict(self) -> str:
        """In words."""
        n = len(self.differences)
        if math.isnan(self.low):
            return "one seed shows nothing"
        if self.low <= 0 <= self.high:
            return f"no effect shown; {n} seeds exclude more than {max(-self.low, self.high):.1f} points"
        return f"{'raises' if self.mean > 0 else 'lowers'} it by {abs(self.mean):.1f} points ({n} seeds)"


class Ablation:
    """The experiments of a file, and what was measured of them so far.

    Parameters
    ----------
    path : Path
        ``workflow/ablation.yaml``.
    records_path : Path
        JSON lines, one for each run that was measured.
    runs_dir : Path

    Raises
    ------
    ValueError
        If the file has unknown or missing keys, or a setting that does not exist.
    """

    def __init__(self, path: Path, records_path: Path, runs_dir: Path) -> None:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = {"preset", "measured", "attack", "settings", "continued", "experiments"}
        if set(values) != keys:
            raise ValueError(f"{path.name} must have the keys {', '.join(sorted(keys))}. Got {', '.join(values)}.")
        self.preset, self.settings, self.continued = values["preset"], values["settings"], values["continued"]
        self.measured, self.attack = values["measured"], values["attack"]
        self.experiments = [
            Experiment(each["name"], each["factor"], tuple(each["values"]), tuple(each["of"]), tuple(each["seeds"]))
            for each in values["experiments"]
        ]
        self.records_path, self.runs_dir = records_path, runs_dir
        for cell, seed in self.cells():
            self.config(cell, seed)

    # What there is to train ----------------------------------------------------------------------------------------

    def cell(self, settings: dict[str, Any]) -> Cell:
        """The cell of some settings; those that are the common ones, or that the method does not read, are left out."""
        changes = dict(settings)
        method, start = changes.pop("method", "tla"), changes.pop("start", "fresh")
        common = self._common(method, 0)
        read_fields = fields_in_use(replaced_settings(common, changes, f"the settings of {method}"))
        changes = {k: v for k, v in changes.items() if k in read_fields and v != getattr(common, k)}
        return Cell(method, tuple(sorted(changes.items())), start)

    def config(self, cell: Cell, seed: int) -> TrainConfig:
        """The settings of a training."""
        config = self._common(cell.method, seed)
        if cell.start != "fresh":
            config = replaced_settings(config, {**self.continued, "fine_tune": True}, "continued")
        return replaced_settings(config, dict(cell.changes), f"the settings of {cell.name}")

    def cells(self, names: Sequence[str] = ()) -> Iterator[tuple[Cell, int]]:
        """Cells and seeds, each once, after the cell that it starts from; first seeds of all experiments come first."""
        experiments = [each for each in self.experiments if not names or each.name in names]
        pairs = set()
        for seed in sorted({seed for each in experiments for seed in each.seeds}):
            for experiment in experiments:
                for cell in self._cells_of(experiment) if seed in experiment.seeds else ():
                    starts = [Cell(cell.start)] if cell.start != "fresh" else []
                    for each in (*starts, cell):
                        if (each, seed) not in pairs:
                            pairs.add((each, seed))
                            yield each, seed

    def _cells_of(self, experiment: Experiment) -> list[Cell]:
        return [
            self.cell({**settings, experiment.factor: value})
            for settings in experiment.settings
            for value in experiment.values
        ]

    def _common(self, method: str, seed: int) -> TrainConfig:
        return replaced_settings(TrainConfig.preset(f"{self.preset}/{method}", seed=seed), self.settings, "settings")

    # What was measured ---------------------------------------------------------------------------------------------

    def identity(self, cell: Cell, seed: int) -> str:
        """The hash of everything that decides the accuracies of a run."""
        start = None if cell.start == "fresh" else self.identity(Cell(cell.start), seed)
        # On another copy of the images everything is measured anew.
        copy_name = other_copy(self._common("at", 0).dataset)
        settings = [self.config(cell, seed).identity, start, self.measured, self.attack]
        return identity_of([*settings, copy_name] if copy_name else settings)

    def records(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The records of the cells with their present settings, by name and seed; others do not count."""
        if not self.records_path.exists():
            return {}
        lines = [json.loads(line) for line in self.records_path.read_text(encoding="utf-8").splitlines()]
        records_by_identity = {line["identity"]: line for line in lines}
        cell_records = {
            (cell.name, seed): records_by_identity.get(self.identity(cell, seed)) for cell, seed in self.cells()
        }
        return {key: record for key, record in cell_records.items() if record is not None}

    def run(self, names: Sequence[str] = (), *, device: str = "auto", progress: bool = True) -> Iterator[dict]:
        """Train and measure what is missing; yields each record as it is stored."""
        dataset = load_dataset(self._common("at", 0).dataset, "train")
        training_rows, measured_rows = split_holdout(dataset.labels, self.measured, _SPLIT_SEED)
        stored_records = self.records()
        for cell, seed in self.cells(names):
            if (cell.name, seed) in stored_records:
                continue
            run_dir = self.runs_dir / cell.name / f"seed{seed}"
            start = None if cell.start == "fresh" else self.runs_dir / cell.start / f"seed{seed}"
            if start is not None and not (start / "model.safetensors").exists():
                self._train(Cell(cell.start), seed, start, None, dataset.subset(training_rows), device, progress)
            self._train(cell, seed, run_dir, start, dataset.subset(training_rows), device, progress)
            accuracies = measure(load_model(run_dir, device=device), dataset.subset(measured_rows), **self.attack)
            record = {"cell": cell.name, "seed": seed, **accuracies, "identity": self.identity(cell, seed)}
            with self.records_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            yield record

    def _train(self, cell, seed, run_dir, start, dataset, device, progress) -> None:
        options = {"init_from": start, "device": device, "progress": progress, "replace": True}
        train(self.config(cell, seed), run_dir, dataset=dataset, **options)

    def effects(self) -> list[Effect]:
        """The effect of every value against the first of its factor, over the seeds that both have.

        There is one for each of the experiment's settings. If these are several, there is also the effect on their
        mean, the main effect, over the seeds that all of them have.
        """
        records, effects = self.records(), []
        robust = {key: 100 * record["robust"] for key, record in records.items()}
        for experiment in self.experiments:
            for value in experiment.values[1:]:
                label = f"{experiment.factor} {value}, not {experiment.values[0]}"
                contexts: dict[str, dict[int, float]] = {}
                for settings in experiment.settings:
                    cells = [self.cell({**settings, experiment.factor: v}) for v in (value, experiment.values[0])]
                    pairs = {seed: [(cell.name, seed) for cell in cells] for seed in experiment.seeds}
                    context = ", ".join(f"{name}={each}" for name, each in settings.items())
                    contexts[context] = {
                        seed: robust[a] - robust[b] for seed, (a, b) in pairs.items() if a in robust and b in robust
                    }
                for context, differences in contexts.items():
                    # A single setting is in the experiment's name.
                    text = f"{label} ({context})" if len(contexts) > 1 and context else label
                    if differences:
                        effects.append(Effect.of(experiment.name, text, list(differences.values())))
                common = set.intersection(*map(set, contexts.values()))
                if len(contexts) > 1 and common:
                    means = [float(np.mean([each[seed] for each in contexts.values()])) for seed in sorted(common)]
                    effects.append(Effect.of(experiment.name, f"{label} (mean of these {len(contexts)})", means))
        return effects


def measure(model: nn.Module, data: ImageDataset, *, eps: float, steps: int, targets: int) -> dict[str, Any]:
    """Clean and robust accuracy of a model.

    Robust are images that neither APGD on the cross-entropy nor targeted APGD on the DLR loss breaks (Croce and Hein
    2020).

    Parameters
    ----------
    model : nn.Module
    data : ImageDataset
    eps : float
        L-inf.
    steps, targets : int
        Of each APGD, and classes that the targeted one aims at.

    Returns
    -------
    dict
        ``clean``, ``robust``: fractions; ``correct``: for each image whether it is robust, as text of 0 and 1.
    """
    apgd = AttackConfig(name="apgd", eps=eps, steps=steps)
    attacks = {"APGD-CE": apgd, "APGD-T": dataclasses.replace(apgd, loss="dlr", targets=targets)}
    correct = evaluate(model, data.images, data.labels, attacks, checks=False).correct
    clean, robust = correct["clean"], torch.stack([correct[name] for name in attacks]).all(0)
    fractions = {"clean": clean.double().mean().item(), "robust": robust.double().mean().item()}
    return {**fractions, "correct": "".join(str(int(each)) for each in robust.tolist())}
