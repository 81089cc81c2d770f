"""Finds the runs and results of a scale, and makes what is missing or stale: the same calls that the pipeline makes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.maps import ClassMap, PairMap, load_maps, load_pair_maps
from analysis.representations import RepresentationSet
from analysis.scales.plan import Artefact, Plan, Run
from analysis.scales.run_results import OF_RISE, extract_run, landscape_run, project_pairs_run, project_run
from analysis.scales.scale import load_scale
from analysis.scales.states import judge
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import CheckpointError, file_sha256
from tla_core.config import TrainConfig
from tla_core.dataset_download import other_copy
from tla_core.protocol import analysis_attack, analysis_levels
from tla_core.run_folder import RunFolder

if TYPE_CHECKING:
    from analysis.landscape import Landscape
    from analysis.scales.accuracy import RunAccuracy


class MissingResultError(FileNotFoundError):
    """A result is missing or stale, and this scale does not make results on request."""


class Results:
    """The results of one scale, by method; notebooks ask for these.

    Parameters
    ----------
    scale : str
        Name of a scale, such as ``"mini"``.
    root : Path or str, optional
        Root of the project; by default found from the working directory.
    make : bool, optional
        Make what is missing or stale. By default only at ``mini``, where it takes minutes.
    progress : bool
        Show progress bars while something is made.

    Examples
    --------
    >>> results = Results("mini")                                    # doctest: +SKIP
    >>> results.representations("tla", eps=0.3)                      # doctest: +SKIP
    """

    def __init__(
        self, scale: str = "mini", *, root: Path | str | None = None, make: bool | None = None, progress: bool = True
    ) -> None:
        self.scale = load_scale(scale, root)
        self.plan = Plan(self.scale)
        self.make = scale == "mini" if make is None else make
        self.progress = progress

    def __repr__(self) -> str:
        s = self.scale
        seeds = s.seeds if isinstance(s.seeds, dict) else list(s.seeds)
        return f"Results({s.name!r}: {', '.join(s.datasets)}; {', '.join(s.methods)}; seeds {seeds})"

    @property
    def methods(self) -> tuple[str, ...]:
        """The scale's methods, in the order of its file."""
        return self.scale.methods

    def methods_of(self, dataset: str, eps: float | None = None) -> tuple[str, ...]:
        """The methods that there are numbers of, on a dataset and at a perturbation level."""
        return self.methods

    def title(self, method: str) -> str:
        """What a method is called in figures and tables."""
        return method.upper()

    def single_words(self, dataset: str) -> str:
        """What a caption says of numbers of one training: which it is."""
        return f"seed {self.scale.seeds_of(dataset)[0]}"

    @property
    def given_note(self) -> str:
        """What a caption adds of models that are no methods of the scale; empty without any."""
        names = [self.title(method) for method in self.methods if method not in self.scale.methods]
        return f"; {' and '.join(names)}: one model each, as given" if names else ""

    def table_runs(self, dataset: str) -> list[Run]:
        """Dataset, method and seed of each row of a dataset's main accuracy table."""
        return self.scale.table_runs(dataset)

    def sets(self, dataset: str | None = None) -> dict[str, RepresentationSet]:
        """Title of each method -> its test representations, clean and under attack, of the first seed.

        What `as_representations`, the explorer and the figures of `analysis.paper.figures` take, with others beside
        them: ``{**results.sets(), "Mine": model}``.
        """
        dataset = dataset or self.scale.datasets[0]
        methods = self.methods_of(dataset)
        return {self.title(method): self.representations(method, dataset=dataset) for method in methods}

    def levels(self, dataset: str | None = None) -> tuple[float, ...]:
        """The perturbation levels that a dataset is analysed at, eps in pixel units."""
        return analysis_levels(self._config(self.methods[0], dataset))

    def attack(self, eps: float | None = None, dataset: str | None = None) -> AttackConfig:
        """The attack of the analysis, at one of its levels."""
        return analysis_attack(self._config(self.methods[0], dataset), eps)

    def attack_note(self, dataset: str | None = None, methods: Sequence[str] | None = None) -> str:
        """For captions: the attack of the analysis, and the accuracy under it beside that under the strongest attack.

        Both are of the images that both attacks were run on. Where the accuracies of a method were not measured, the
        note says which table holds them.
        """
        from analysis.scales.accuracy import STRONGEST, stored_outcomes

        attack, dataset = self.attack(dataset=dataset), dataset or self.scale.datasets[0]
        seeds = self.scale.seeds_of(dataset)
        seed_words = f" of seed {seeds[0]}" if len(seeds) > 1 else ""
        attack_shares, strongest_shares, counts = [], [], set()
        for method in methods or self.scale.methods:
            strongest = stored_outcomes(self.run(method, dataset=dataset)).get(STRONGEST)
            if strongest is None:
                return f"{attack}; the table main_accuracy says how far it is from the strongest attack"
            reps = self.representations(method, dataset=dataset)
            n = len(self.test_images(dataset).labels)
            indices = np.arange(len(strongest)) * n // len(strongest)
            outcome_by_index = dict(zip(indices.tolist(), strongest.tolist(), strict=True))
            rows = [row for row, index in enumerate(np.asarray(reps.indices).tolist()) if index in outcome_by_index]
            counts.add(f"{len(rows):,}")
            correct = (reps.predictions == reps.labels) & (reps.adv_predictions == reps.labels)
            attack_shares.append(f"{method.upper()} {100 * float(np.mean(np.asarray(correct)[rows])):.1f}")
            strongest_shares.append(f"{100 * np.mean([outcome_by_index[int(reps.indices[row])] for row in rows]):.1f}")
        return (
            f"{attack}, which{seed_words} leaves {', '.join(attack_shares)} % of {' or '.join(sorted(counts))} test"
            f" images right, where the strongest attack leaves {', '.join(strongest_shares)} %"
        )

    def seed_note(self, dataset: str | None = None, methods: Sequence[str] | None = None) -> str:
        """Which training a figure shows, and how it stands among those of the other seeds: for captions."""
        dataset = dataset or self.scale.datasets[0]
        first, *other_seeds = self.scale.seeds_of(dataset)
        if not other_seeds:
            return f"one training each, seed {first}"
        shares = []
        for method in methods or self.scale.methods:
            sets = self.representations_of_seeds(method, dataset=dataset)
            robust = [f"{100 * reps.robust_accuracy:.1f}" for reps in sets.values()]
            others = f"the other{'s' * (len(other_seeds) > 1)} {' and '.join(robust[1:])}"
            shares.append(f"{method.upper()} {robust[0]}, {others}")
        return (
            f"seed {first} of {1 + len(other_seeds)}; robust accuracy on {len(sets[first]):,} test images, %:"
            f" {'; '.join(shares)}"
        )

    def run(self, method: str, *, dataset: str | None = None, seed: int | None = None) -> Path:
        """The run folder of a method or variant, trained if it is missing or was trained with other settings."""
        run = self._run(method, dataset, seed)
        self._ensure(self.plan.model(run))
        return self.scale.run_dir(*run)

    def representations(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int | None = None
    ) -> RepresentationSet:
        """Clean and adversarial test representations of a method at a perturbation level."""
        return self._load(self.plan.representations(self._run(method, dataset, seed), eps), RepresentationSet.load)

    def representations_of_seeds(
        self, method: str, *, dataset: str | None = None, seeds: Sequence[int] = ()
    ) -> dict[int, RepresentationSet]:
        """Representations of a method at the main level: one set for each of its seeds, all of the same images."""
        sets = {
            seed: self.representations(method, dataset=dataset, seed=seed)
            for seed in seeds or self.scale.seeds_of(dataset or self.scale.datasets[0])
        }
        shared_indices = min(sets.values(), key=len).indices
        return {seed: reps.subset(np.flatnonzero(np.isin(reps.indices, shared_indices))) for seed, reps in sets.items()}

    def train_representations(
        self, method: str, *, dataset: str | None = None, seed: int | None = None
    ) -> RepresentationSet:
        """Representations of the clean training images, for the search of neighbours and the fit of densities."""
        return self._load(self.plan.train_representations(self._run(method, dataset, seed)), RepresentationSet.load)

    def class_maps(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int | None = None,
        classes: Sequence[int] = (),
    ) -> dict[int, ClassMap]:  # fmt: skip
        """The map of each class of a method at a perturbation level, or of those classes."""
        maps = self._load(self.plan.class_maps(self._run(method, dataset, seed, "maps"), eps), load_maps)
        return {k: maps[k] for k in classes or maps}

    def pair_maps(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int | None = None
    ) -> list[PairMap]:
        """The map of each of the scale's pairs of classes."""
        return self._load(self.plan.pair_maps(self._run(method, dataset, seed, "maps"), eps), load_pair_maps)

    def landscapes(
        self, method: str, *, dataset: str | None = None, seed: int | None = None
    ) -> dict[int, "Landscape"]:
        """The input-space loss landscape of a method around each of the scale's images, by row of the test set."""
        return {int(row): each for row, each in self._landscapes(method, dataset, seed).items() if row.isdigit()}

    def loss_rises(self, method: str, *, dataset: str | None = None, seed: int | None = None) -> dict[int, float]:
        """How far the loss of a method rises around each of many images, by row of the test set, on coarser grids."""
        landscapes = self._landscapes(method, dataset, seed)
        rises = {name: landscape.rise for name, landscape in landscapes.items() if name.startswith(OF_RISE)}
        return {int(name.removeprefix(OF_RISE)): rise for name, rise in rises.items()}

    def accuracy(self, method: str, *, dataset: str | None = None, seed: int | None = None) -> "RunAccuracy":
        """The accuracies of a method: all columns that the scale has of it, see `Scale.accuracy_options`."""
        artefact = self.plan.accuracies(self._run(method, dataset, seed))
        self._ensure(artefact)
        return _accuracies(self.plan, artefact, self.progress)

    def _landscapes(self, method: str, dataset: str | None, seed: int | None) -> "dict[str, Landscape]":
        from analysis.landscape import load_landscapes

        return self._load(self.plan.landscapes(self._run(method, dataset, seed, "landscapes")), load_landscapes)

    def _run(self, method: str, dataset: str | None, seed: int | None, kind: str = "") -> Run:
        """Dataset, method and seed; by default the first of the scale, or the dataset of a kind of figure."""
        dataset = dataset or (self.scale.dataset_of(kind) if kind else self.scale.datasets[0])
        return dataset, method, self.scale.seeds_of(dataset)[0] if seed is None else seed

    def _load(self, artefact: Artefact, load: Callable[[Path], Any]) -> Any:
        """What an artefact holds; it is made where it is missing, stale or altered."""
        self._ensure(artefact)
        path = self.scale.root / artefact.path
        try:
            return load(path)
        except CheckpointError:
            if not self.make:
                raise
        path.unlink()
        self._ensure(artefact)
        return load(path)

    def _ensure(self, artefact: Artefact) -> None:
        """Make an artefact, and before it what it needs, unless it is made.

        Raises
        ------
        MissingResultError
            At a scale where it is not made in passing.
        """
        state = judge(self.plan, artefact)
        if state.name == "made":
            return
        for need in self.plan.needs(artefact):
            self._ensure(need)
        if not self.make:
            reason = f" ({state.reason})" if state.reason else ""
            raise MissingResultError(
                f"{artefact.path} is {state.name}{reason}. Make it, in {self.scale.root}, with `{artefact.command}`, or"
                f" everything of this scale with `SCALE={self.scale.name} make figures`. What of it is published is"
                f" restored in seconds by `tla restore --scale {self.scale.name}`."
            )
        make_artefact(self.plan, artefact, progress=self.progress)

    def map_settings(self) -> dict[str, Any]:
        """What this scale passes to `map_classes`."""
        return self.scale.map_settings()

    def test_images(self, dataset: str | None = None):
        """The `ImageDataset` that representations of a dataset were taken from."""
        from tla_core.datasets import load_dataset

        return load_dataset(self._config(self.methods[0], dataset).dataset, "test")

    def source(self, method: str, *, dataset: str | None = None, seed: int | None = None) -> dict[str, Any]:
        """Where a method's numbers come from, for the sidecar of a figure."""
        run = self.run(method, dataset=dataset, seed=seed)
        record = RunFolder(run).record()
        copy_name = other_copy(record["config"]["dataset"])  # another copy than the one that was trained on
        return {
            "method": method,
            "run": run.relative_to(self.scale.root).as_posix(),
            "config_identity": record["config_identity"],
            "checkpoint_sha256": file_sha256(RunFolder(run).model_path),
            "data": record["data"]["source"],
            **({"test_images": copy_name} if copy_name else {}),
        }

    def _config(self, method: str, dataset: str | None) -> TrainConfig:
        return self.scale.config(dataset or self.scale.datasets[0], method)


def make_artefact(plan: Plan, artefact: Artefact, *, progress: bool = True) -> None:
    """Make a run or result of a plan, whose needs must be there: what its command does, in this process."""
    _MAKERS[artefact.kind](plan, artefact, progress)


def _train(plan: Plan, artefact: Artefact, progress: bool) -> None:
    from tla_core.training import train

    start = next((plan.scale.root / path for path in artefact.needs), None)
    options = {"init_from": start and start.parent, "replace": True, "progress": progress}
    train(plan.scale.config(*artefact.run), plan.scale.run_dir(*artefact.run), **options)


def _extract(plan: Plan, artefact: Artefact, progress: bool) -> None:
    run = plan.scale.run_dir(*artefact.run)
    extract_run(run, float(artefact.eps), images=artefact.settings["images"], progress=progress)


def _extract_train(plan: Plan, artefact: Artefact, progress: bool) -> None:
    extract_run(plan.scale.run_dir(*artefact.run), split="train", progress=progress)


def _map_classes(plan: Plan, artefact: Artefact, progress: bool) -> None:
    run, jobs = plan.scale.run_dir(*artefact.run), os.cpu_count() or 1
    project_run(run, float(artefact.eps), artefact.settings["settings"], n_jobs=jobs, progress=progress)


def _map_pairs(plan: Plan, artefact: Artefact, progress: bool) -> None:
    project_pairs_run(plan.scale.run_dir(*artefact.run), float(artefact.eps), artefact.settings["settings"])


def _landscapes(plan: Plan, artefact: Artefact, progress: bool) -> None:
    landscape_run(plan.scale.run_dir(*artefact.run), plan.scale.landscape_of(artefact.run[0], artefact.run[2]))


def _accuracies(plan: Plan, artefact: Artefact, progress: bool) -> "RunAccuracy":
    from analysis.scales.accuracy import evaluate_run
    from analysis.scales.accuracy_attacks import run_attacks

    run, *copy = ((plan.scale.root / path).parent for path in artefact.needs)
    attacks, limits = run_attacks(run, **{**artefact.settings, "black_box": copy[0] if copy else None})
    return evaluate_run(run, attacks, limits=limits, progress=progress)


_MAKERS = {
    "model": _train,
    "representations": _extract,
    "train representations": _extract_train,
    "class maps": _map_classes,
    "pair maps": _map_pairs,
    "landscapes": _landscapes,
    "accuracies": _accuracies,
}
