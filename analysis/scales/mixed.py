"""Models of anybody's beside the methods of a scale: measured as these are, on the same images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compared import load_methods
from analysis.extraction import extract
from analysis.representations import RepresentationSet
from analysis.scales.accuracy import RunAccuracy, evaluate_run
from analysis.scales.accuracy_attacks import run_attacks
from analysis.scales.given_results import GivenResults, attack_if_ours
from analysis.scales.own_accuracy import accuracy_of_model, accuracy_of_representations
from analysis.scales.results import Results, Run
from analysis.scales.run_results import run_config, run_images
from tla_core.attack_config import AttackConfig
from tla_core.datasets import ImageDataset, load_dataset


class MixedResults(GivenResults):
    """The results of a scale, with others beside its methods."""

    def __init__(self, base: Results, methods: Mapping[str, Any], *, dataset: str | None = None) -> None:
        self.base, self.own_methods = base, load_methods(methods)
        self.dataset = dataset or base.scale.datasets[0]
        self.scale, self.plan, self.make, self.progress = base.scale, base.plan, base.make, base.progress
        self._extracted: dict[tuple[str, float], RepresentationSet] = {}
        if twice := sorted({*methods} & {*base.methods, *map(base.title, base.methods)}):
            raise ValueError(f"there is a method {', '.join(twice)} already; expected other names.")
        for name, one in self.own_methods.items():
            if isinstance(one, RepresentationSet):
                self._check_images(name, one)
                if not any(self._has_level(one, eps) for eps in base.levels(self.dataset)):
                    levels = ", ".join(str(self.attack(eps, self.dataset)) for eps in base.levels(self.dataset))
                    raise ValueError(f"{name!r} is attacked by {attack_if_ours(one)}; expected one of {levels}.")
            elif isinstance(one, Path):
                data = run_images(one, "test")
                if data.checksum != base.test_images(self.dataset).checksum:
                    raise ValueError(f"{name!r} was trained on {run_config(one).dataset}; expected {self.dataset}.")

    def _check_images(self, name: str, reps: RepresentationSet) -> None:
        own = self.base.representations(self.base.methods[0], dataset=self.dataset)
        labels = dict(zip(own.indices.tolist(), own.labels.tolist(), strict=True))
        shared = [row for row, index in enumerate(reps.indices.tolist()) if index in labels]
        wrong = [row for row in shared if labels[int(reps.indices[row])] != reps.labels[row]]
        if not shared or wrong or tuple(reps.class_names) != tuple(own.class_names):
            raise ValueError(
                f"{name!r} is of other images than {self.dataset}'s test images; expected these, with their positions"
                f" as `indices` and their class names. Got {reps!r}."
            )

    @property
    def methods(self) -> tuple[str, ...]:
        return (*self.base.methods, *self.own_methods)

    def methods_of(self, dataset: str, eps: float | None = None) -> tuple[str, ...]:
        own = [
            name
            for name in self.own_methods
            if dataset == self.dataset and self._has_level(self.own_methods[name], eps)
        ]
        return (*self.base.methods_of(dataset, eps), *own)

    def _has_level(self, one: Any, eps: float | None) -> bool:
        """Representations are of one level: that of the attack which they say, otherwise the dataset's own."""
        if not isinstance(one, RepresentationSet):
            return True
        main = self.attack(dataset=self.dataset)
        return (attack_if_ours(one) or main) == (main if eps is None else self.attack(eps, self.dataset))

    def title(self, method: str) -> str:
        return method if method in self.own_methods else self.base.title(method)

    def table_runs(self, dataset: str) -> list[Run]:
        first = self.scale.seeds_of(dataset)[0]
        own = [(dataset, name, first) for name in self.own_methods if dataset == self.dataset]
        return [*self.base.table_runs(dataset), *own]

    def run(self, method: str, *, dataset=None, seed=None) -> Path:
        if method not in self.own_methods:
            return self.base.run(method, dataset=dataset, seed=seed)
        if not isinstance(self.own_methods[method], Path):
            raise ValueError(f"{method!r} is no run; expected a method of the scale, or the folder of a run.")
        return self.own_methods[method]

    def representations(self, method: str, eps=None, *, dataset=None, seed=None) -> RepresentationSet:
        if method not in self.own_methods:
            return self.base.representations(method, eps, dataset=dataset, seed=seed)
        one = self.own_methods[method]
        if isinstance(one, RepresentationSet):
            if not self._has_level(one, eps):
                attack = self.attack(eps, self.dataset)
                raise ValueError(f"{method!r} is attacked by {attack_if_ours(one)}; it has none of {attack}.")
            return one
        return self._of_model(method, eps)

    def _of_model(self, method: str, eps: float | None) -> RepresentationSet:
        """Representations of a model, which this object keeps."""
        attack = self.attack(eps, self.dataset)
        if (method, attack.eps) not in self._extracted:
            self._extracted[method, attack.eps] = self._extract(method, eps)
        return self._extracted[method, attack.eps]

    def _extract(self, method: str, eps: float | None) -> RepresentationSet:
        rows = self.base.representations(self.base.methods[0], eps, dataset=self.dataset).indices
        data = self.test_images(self.dataset)
        return extract(
            self.model(method), data.images[rows], data.labels[rows], attack=self.attack(eps, self.dataset),
            indices=rows, class_names=data.class_names, meta={"dataset": data.name, "split": "test"},
            progress=self.progress,
        )  # fmt: skip

    def representations_of_seeds(self, method: str, *, dataset=None, seeds=()) -> dict[int, RepresentationSet]:
        if method not in self.own_methods:
            return self.base.representations_of_seeds(method, dataset=dataset, seeds=seeds)
        dataset = dataset or self.dataset
        compared = next(
            iter(self.base.representations_of_seeds(self.base.methods[0], dataset=dataset).values())
        ).indices
        reps = self.representations(method, dataset=dataset)
        rows = np.flatnonzero(np.isin(reps.indices, compared))
        return {self.scale.seeds_of(dataset)[0]: reps.subset(rows)}

    def train_representations(self, method: str, *, dataset=None, seed=None) -> RepresentationSet:
        if method not in self.own_methods:
            return self.base.train_representations(method, dataset=dataset, seed=seed)
        data = load_dataset(self._config(self.base.methods[0], self.dataset).dataset, "train")
        return extract(self.model(method), data, progress=self.progress)

    def accuracy(self, method: str, *, dataset=None, seed=None) -> RunAccuracy:
        if method not in self.own_methods:
            return self.base.accuracy(method, dataset=dataset, seed=seed)
        one, first = self.own_methods[method], self.base.methods[0]
        options = self.scale.accuracy_options(self.dataset, first, self.scale.seeds_of(self.dataset)[0])
        options |= {"black_box": None, "autoattack": 0}
        if isinstance(one, RepresentationSet):
            return accuracy_of_representations(one)
        if isinstance(one, Path):
            attacks, limits = run_attacks(one, **options)
            return evaluate_run(one, attacks, limits=limits, progress=self.progress)
        data = self.test_images(self.dataset)
        attacks, limits = run_attacks(self.run(first, dataset=self.dataset), **options)
        attacks = {name: attack for name, attack in attacks.items() if isinstance(attack, AttackConfig)}
        return self._measured(method, data, attacks, limits)

    def _measured(
        self, method: str, data: ImageDataset, attacks: Mapping[str, AttackConfig], limits: Mapping[str, int]
    ) -> RunAccuracy:
        """The accuracies of a model."""
        return accuracy_of_model(self.own_methods[method], data.images, data.labels, attacks, limits=limits)

    def attack_note(self, dataset=None, methods: Sequence[str] | None = None) -> str:
        return self.base.attack_note(dataset, self._of_scale(methods))

    def seed_note(self, dataset=None, methods: Sequence[str] | None = None) -> str:
        return f"{self.base.seed_note(dataset, self._of_scale(methods))}; {' and '.join(self.own_methods)} as given"

    def _of_scale(self, methods: Sequence[str] | None) -> list[str] | None:
        return None if methods is None else [method for method in methods if method not in self.own_methods]
