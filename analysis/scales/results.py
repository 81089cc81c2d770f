"""Finds the runs and results of a scale, and makes what is missing or stale: the same calls that the pipeline makes."""

import os
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.class_maps import ClassMap, load_maps
from analysis.pair_maps import PairMap, load_pair_maps
from analysis.representations import RepresentationSet
from analysis.scales.run_results import (
    OF_RISE,
    extract_run,
    is_current,
    is_trained,
    landscape_run,
    landscapes_target,
    maps_target,
    pair_maps_target,
    project_pairs_run,
    project_run,
    representations_target,
    train_representations_target,
)
from analysis.scales.scale import accuracy_flags, load_scale
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import file_sha256
from tla_core.config import TrainConfig
from tla_core.dataset_download import other_copy
from tla_core.protocol import ANALYSIS_LEVELS, analysis_attack
from tla_core.run_folder import RunFolder

if TYPE_CHECKING:
    from analysis.landscape import Landscape
    from analysis.scales.accuracy import RunAccuracy


class MissingResultError(FileNotFoundError):
    """A result that is missing or stale, at a scale where it is not made in passing."""


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
        self.make = scale == "mini" if make is None else make
        self.progress = progress

    def __repr__(self) -> str:
        s = self.scale
        seeds = s.seeds if isinstance(s.seeds, dict) else list(s.seeds)
        return f"Results({s.name!r}: {', '.join(s.datasets)}; {', '.join(s.methods)}; seeds {seeds})"

    @property
    def methods(self) -> tuple[str, ...]:
        """The scale's methods, in the order um, at, alp, tla."""
        return self.scale.methods

    def levels(self, dataset: str | None = None) -> tuple[float, ...]:
        """The perturbation levels that a dataset is analysed at, eps in pixel units."""
        return ANALYSIS_LEVELS[self._config(self.methods[0], dataset).dataset]

    def attack(self, eps: float | None = None, dataset: str | None = None) -> AttackConfig:
        """The attack of the analysis, at one of its levels."""
        return analysis_attack(self._config(self.methods[0], dataset), eps)

    def attack_note(self, dataset: str | None = None, methods: Sequence[str] | None = None) -> str:
        """The attack of the analysis, and what it leaves beside what the strongest attack leaves: for captions.

        Of the images that both have seen. Where the accuracies of a method were not measured, it says where they are.
        """
        from analysis.scales.accuracy import STRONGEST, stored_outcomes

        attack, dataset = self.attack(dataset=dataset), dataset or self.scale.datasets[0]
        seeds = self.scale.seeds_of(dataset)
        of_seed = f" of seed {seeds[0]}" if len(seeds) > 1 else ""
        ours, strongest = [], []
        for method in methods or self.methods:
            worst = stored_outcomes(self.run(method, dataset=dataset)).get(STRONGEST)
            if worst is None:
                return f"{attack}; the table main_accuracy says how far it is from the strongest attack"
            reps = self.representations(method, dataset=dataset)
            n = len(self.test_images(dataset).labels)
            by_index = dict(zip((np.arange(len(worst)) * n // len(worst)).tolist(), worst.tolist(), strict=True))
            rows = [row for row, index in enumerate(np.asarray(reps.indices).tolist()) if index in by_index]
            right = (reps.predictions == reps.labels) & (reps.adv_predictions == reps.labels)
            ours.append(f"{method.upper()} {100 * float(np.mean(np.asarray(right)[rows])):.1f}")
            strongest.append(f"{100 * np.mean([by_index[int(reps.indices[row])] for row in rows]):.1f}")
        return (
            f"{attack}, which{of_seed} leaves {', '.join(ours)} % of {len(rows):,} test images right, where the"
            f" strongest attack leaves {', '.join(strongest)} %"
        )

    def seed_note(self, dataset: str | None = None, methods: Sequence[str] | None = None) -> str:
        """Which training a figure shows, and how it stands among those of the other seeds: for captions."""
        dataset = dataset or self.scale.datasets[0]
        first, *others = self.scale.seeds_of(dataset)
        if not others:
            return f"one training each, seed {first}"
        stand = []
        for method in methods or self.methods:
            of_seeds = self.representations_of_seeds(method, dataset=dataset)
            robust = [f"{100 * reps.robust_accuracy:.1f}" for reps in of_seeds.values()]
            stand.append(f"{method.upper()} {robust[0]}, the other{'s' * (len(others) > 1)} {' and '.join(robust[1:])}")
        return (
            f"seed {first} of {1 + len(others)}; robust accuracy on {len(of_seeds[first]):,} test images, %:"
            f" {'; '.join(stand)}"
        )

    def run(self, method: str, *, dataset: str | None = None, seed: int | None = None) -> Path:
        """The run folder of a method or variant, trained if it is missing or was trained with other settings."""
        from tla_core.training import train

        dataset = dataset or self.scale.datasets[0]
        seed = self.scale.seeds_of(dataset)[0] if seed is None else seed
        config = self.scale.config(dataset, method, seed)
        path = self.scale.run_dir(dataset, method, seed)
        start = self.run("at", dataset=dataset, seed=seed) if config.fine_tune else None
        if not is_trained(path, config, start):
            preset, flags = self.scale.preset(dataset, method), self.scale.flags(dataset, method)
            flags = f"{flags} --init-from {quote(str(start))}" if start else flags
            command = f"tla train {preset} --seed {seed} --out {quote(str(path))} --replace {flags}"
            self._may_make(path, command.rstrip())
            train(config, path, init_from=start, replace=True, progress=self.progress)
        return path

    def representations(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int | None = None
    ) -> RepresentationSet:
        """Clean and adversarial test representations of a method at a perturbation level."""
        run = self.run(method, dataset=dataset, seed=seed)
        images = self.scale.images_at(dataset or self.scale.datasets[0], method, eps, seed)
        path, expected = representations_target(run, eps, images)
        if not is_current(path, expected):
            few = f" --images {images}" if images else ""
            self._may_make(path, f"tla extract {quote(str(run))} --eps {expected['attack']['eps']:g}{few}")
            extract_run(run, eps, images=images, progress=self.progress)
        return RepresentationSet.load(path)

    def representations_of_seeds(
        self, method: str, *, dataset: str | None = None, seeds: Sequence[int] = ()
    ) -> dict[int, RepresentationSet]:
        """Representations at the main level of each seed of a method, or of those named, all of the same images."""
        found = {
            seed: self.representations(method, dataset=dataset, seed=seed)
            for seed in seeds or self.scale.seeds_of(dataset or self.scale.datasets[0])
        }
        fewest = min(found.values(), key=len).indices
        return {seed: reps.subset(np.flatnonzero(np.isin(reps.indices, fewest))) for seed, reps in found.items()}

    def train_representations(
        self, method: str, *, dataset: str | None = None, seed: int | None = None
    ) -> RepresentationSet:
        """Representations of the clean training images: what neighbours and densities are taken from."""
        run = self.run(method, dataset=dataset, seed=seed)
        path, expected = train_representations_target(run)
        if not is_current(path, expected):
            self._may_make(path, f"tla extract {quote(str(run))} --split train")
            extract_run(run, split="train", progress=self.progress)
        return RepresentationSet.load(path)

    def class_maps(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int | None = None
    ) -> dict[int, ClassMap]:
        """The map of each class of a method at a perturbation level."""
        dataset = dataset or self.scale.dataset_of("maps")
        run = self.run(method, dataset=dataset, seed=seed)
        settings = self.map_settings()
        path, expected = maps_target(run, eps, settings)
        if not is_current(path, expected):
            self._may_make(path, self._project_command(run, expected))
            self.representations(method, eps, dataset=dataset, seed=seed)
            project_run(run, eps, settings, n_jobs=os.cpu_count() or 1, progress=self.progress)
        return load_maps(path)

    def pair_maps(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int | None = None
    ) -> list[PairMap]:
        """The map of each of the scale's pairs of classes."""
        dataset = dataset or self.scale.dataset_of("maps")
        settings = self.scale.pair_settings(dataset)
        if settings is None:
            raise ValueError(f"the scale {self.scale.name!r} names no class_pairs of {dataset}.")
        run = self.run(method, dataset=dataset, seed=seed)
        path, expected = pair_maps_target(run, eps, settings)
        if not is_current(path, expected):
            self._may_make(path, self._project_command(run, expected))
            self.representations(method, eps, dataset=dataset, seed=seed)
            project_pairs_run(run, eps, settings)
        return load_pair_maps(path)

    def landscapes(
        self, method: str, *, dataset: str | None = None, seed: int | None = None
    ) -> dict[int, "Landscape"]:
        """The input-space loss landscape of a method around each of the scale's images, by row of the test set."""
        return {int(row): each for row, each in self._landscapes(method, dataset, seed).items() if row.isdigit()}

    def loss_rises(self, method: str, *, dataset: str | None = None, seed: int | None = None) -> dict[int, float]:
        """How far the loss of a method rises around each of many images, by row of the test set, on coarser grids."""
        found = self._landscapes(method, dataset, seed)
        return {int(row.removeprefix(OF_RISE)): each.rise for row, each in found.items() if row.startswith(OF_RISE)}

    def _landscapes(self, method: str, dataset: str | None, seed: int | None) -> "dict[str, Landscape]":
        from analysis.landscape import load_landscapes

        run = self.run(method, dataset=dataset or self.scale.dataset_of("landscapes"), seed=seed)
        settings = self.scale.landscape_of(dataset or self.scale.dataset_of("landscapes"), seed)
        path, expected = landscapes_target(run, settings)
        if not is_current(path, expected):
            few = "" if settings["images"] else " --rise-only"
            self._may_make(path, f"tla landscape {quote(str(run))} --scale {self.scale.name}{few}")
            landscape_run(run, settings)
        return load_landscapes(path)

    def accuracy(
        self, method: str, *, only: tuple[str, ...] = (), dataset: str | None = None, seed: int | None = None
    ) -> "RunAccuracy":
        """The accuracies of a method under the paper's attacks, or under those of the named columns alone."""
        from analysis.scales.accuracy import evaluate_run, missing_columns, run_attacks

        dataset = dataset or self.scale.datasets[0]
        run = self.run(method, dataset=dataset, seed=seed)
        options = self.scale.accuracy_options(
            dataset, method, self.scale.seeds_of(dataset)[0] if seed is None else seed
        )
        options |= {"only": only, "black_box": None} if only else {}
        if options["black_box"]:
            copy, copy_seed = options["black_box"]
            options["black_box"] = self.run(copy, dataset=dataset, seed=copy_seed)
        attacks, limits = run_attacks(run, **options)
        if missing_columns(run, attacks, limits=limits):
            self._may_make(run, f"tla evaluate {quote(str(run))} {accuracy_flags(options)}")
        return evaluate_run(run, attacks, limits=limits, progress=self.progress)

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
        other = other_copy(record["config"]["dataset"])  # another copy than the one that was trained on
        return {
            "method": method,
            "run": run.relative_to(self.scale.root).as_posix(),
            "config_identity": record["config_identity"],
            "checkpoint_sha256": file_sha256(RunFolder(run).model_path),
            "data": record["data"]["source"],
            **({"test_images": other} if other else {}),
        }

    def _config(self, method: str, dataset: str | None) -> TrainConfig:
        return self.scale.config(dataset or self.scale.datasets[0], method)

    def _project_command(self, run: Path, expected: dict[str, Any]) -> str:
        return f"tla project {quote(str(run))} --eps {expected['attack']['eps']:g} --scale {self.scale.name}"

    def _may_make(self, path: Path, command: str) -> None:
        if not self.make:
            raise MissingResultError(
                f"{path} is missing or stale. Make it with `{command}`, or everything of this scale with"
                f" `SCALE={self.scale.name} make figures`."
            )
