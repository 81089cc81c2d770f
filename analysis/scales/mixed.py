"""Models of anybody's beside the methods of a scale, or alone: for figures and tables results like all others."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compared import as_representations, attack_of, load_methods
from analysis.extraction import extract
from analysis.maps import ClassMap, PairMap, map_class, map_pair
from analysis.representations import RepresentationSet
from analysis.scales.accuracy import RunAccuracy, evaluate_run
from analysis.scales.accuracy_attacks import run_attacks
from analysis.scales.own_accuracy import accuracy_of_model, accuracy_of_representations
from analysis.scales.results import Results, Run
from analysis.scales.run_results import run_config, run_images
from analysis.scales.scale import Scale
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import file_sha256
from tla_core.datasets import load_dataset
from tla_core.given import Given, given_images
from tla_core.naming import import_object
from tla_core.run_folder import RunFolder
from tla_core.training import load_model


def as_results(
    results: Results | str | Mapping[str, Any],
    methods: Mapping[str, Any] | None = None,
    *,
    dataset: str | None = None,
    images: Any = None,
    labels: Any = None,
    attack: AttackConfig | None = None,
) -> Results:
    """What every figure and table takes: results of a scale, models of one's own beside its methods, or these alone.

    Parameters
    ----------
    results : Results, str or mapping of str to method
        A method is a `RepresentationSet`, a file of one, a model (any `nn.Module`), or the folder of a run. The name of
        a scale stands for its results, with the models of one's own that its file names.
    methods : mapping of str to method, optional
        Beside those of `results`. Models are attacked and looked at as the scale's methods are, on the same images.
    dataset : str, optional
        The scale's dataset that `methods` are of; by default its first.
    images, labels, attack : optional
        Of models without results of a scale, as of `as_representations`.

    Returns
    -------
    Results

    Raises
    ------
    TypeError, ValueError
        For what is no method; for one of other images than the others; for a name that there is already.
    """
    if isinstance(results, str):
        results = _with_own_methods(Results(results))
    if isinstance(results, Mapping):
        return OwnResults({**results, **(methods or {})}, images=images, labels=labels, attack=attack)
    return MixedResults(results, methods, dataset=dataset) if methods else results


def _with_own_methods(results: Results) -> Results:
    """The models that a scale's file names are made, and stand beside its methods."""
    from torch import nn

    for name, options in results.scale.own_methods.items():
        model = import_object(options["model"], root=results.scale.root)
        model = model if isinstance(model, nn.Module) else model()
        results = MixedResults(results, {name: model}, dataset=options["dataset"])
    return results


class _Given(Results):
    """What both have in common: methods that are objects, of one dataset."""

    base: Results  # of what is not given
    own_methods: dict[str, Any]
    dataset: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(self.title, self.methods))})"

    def title(self, method: str) -> str:
        return method if method in self.own_methods else self.base.title(method)

    def class_maps(self, method: str, eps=None, *, dataset=None, seed=None, classes=()) -> dict[int, ClassMap]:
        if method not in self.own_methods:
            return self.base.class_maps(method, eps, dataset=dataset, seed=seed, classes=classes)
        reps = self.representations(method, eps, dataset=dataset)
        class_numbers = classes or np.unique(reps.labels).tolist()
        return {k: map_class(reps, k, **self.map_settings()) for k in class_numbers}

    def pair_maps(self, method: str, eps=None, *, dataset=None, seed=None) -> list[PairMap]:
        if method not in self.own_methods:
            return self.base.pair_maps(method, eps, dataset=dataset, seed=seed)
        settings = dict(self.scale.pair_settings(dataset or self.dataset))
        pairs = settings.pop("pairs")
        reps = self.representations(method, eps, dataset=dataset)
        return [map_pair(reps, *pair, **settings) for pair in pairs]

    def landscapes(self, method: str, *, dataset=None, seed=None) -> dict:
        if method not in self.own_methods:
            return self.base.landscapes(method, dataset=dataset, seed=seed)
        from analysis.landscape import input_landscape

        dataset = dataset or self.scale.dataset_of("landscapes")
        if dataset != self.dataset:
            raise ValueError(f"{method!r} classifies {self.dataset}. Got {dataset!r}.")
        data, settings = self.test_images(dataset), self.scale.landscape_of(dataset)
        rows = (np.arange(settings["images"]) * len(data.labels) // settings["images"]).tolist()
        shape = {"radius": settings["radius"] * self.attack(dataset=dataset).eps, "resolution": settings["resolution"]}
        model = self.model(method)
        return {
            row: input_landscape(model, data.images[row], int(data.labels[row]), random_state=place, **shape)
            for place, row in enumerate(rows)
        }

    def source(self, method: str, *, dataset=None, seed=None) -> dict[str, Any]:
        if method not in self.own_methods:
            return self.base.source(method, dataset=dataset, seed=seed)
        one = self.own_methods[method]
        if not isinstance(one, Path):
            return {"method": method, "given": type(one).__name__}
        record = RunFolder(one).record()
        return {
            "method": method, "run": one.as_posix(), "config_identity": record["config_identity"],
            "checkpoint_sha256": file_sha256(RunFolder(one).model_path), "data": record["data"]["source"],
        }  # fmt: skip

    def model(self, method: str):
        """The model of a given method.

        Raises
        ------
        ValueError
            For representations, which have none.
        """
        one = self.own_methods[method]
        if isinstance(one, RepresentationSet):
            raise ValueError(
                f"{method!r} is a RepresentationSet; here its model is needed. Pass that, or a run's folder."
            )
        return load_model(one) if isinstance(one, Path) else one


def _own_attack(reps: RepresentationSet, needed: bool = False) -> AttackConfig | None:
    """As `attack_of`; of an attack that is not ours None, unless models are to be attacked alike."""
    try:
        return attack_of(reps)
    except ValueError:
        if needed:
            raise
        return None


class OwnResults(_Given):
    """Models, runs and representations without a scale: one dataset, one attack, one training each."""

    def __init__(self, methods: Mapping[str, Any], *, images=None, labels=None, attack=None) -> None:
        self.own_methods = load_methods(methods)
        given_sets = {name: one for name, one in self.own_methods.items() if isinstance(one, RepresentationSet)}
        if attack is None and given_sets:
            attack = _own_attack(next(iter(given_sets.values())), len(given_sets) < len(methods))
        self._images, self._labels, self._attack = images, labels, attack
        for name, reps in given_sets.items():
            own = _own_attack(reps)
            if attack is not None and own is not None and own != attack:
                raise ValueError(f"{name!r} is attacked by {own}, others by {attack}; expected one attack.")
        self.dataset = str(next(iter(self._sets.values())).meta.get("dataset") or "own images")
        self.scale = Scale(
            name="own", root=Path(), datasets=(self.dataset,), methods=tuple(methods), seeds=(0,), notebooks=(),
            points_per_class={"clean": 500, "adversarial": 1000},
        )  # fmt: skip

    @cached_property
    def _sets(self) -> dict[str, RepresentationSet]:
        return as_representations(self.own_methods, self._images, self._labels, attack=self._attack)

    def single_words(self, dataset: str) -> str:
        return "each as given"

    def levels(self, dataset=None) -> tuple[float, ...]:
        return (getattr(self._attack, "eps", float("nan")),)

    def attack(self, eps=None, dataset=None) -> AttackConfig | None:
        return self._attack

    def attack_note(self, dataset=None, methods: Sequence[str] | None = None) -> str:
        return str(self._attack or "attacked as the representations say")

    def seed_note(self, dataset=None, methods: Sequence[str] | None = None) -> str:
        return "one model each, as given"

    def test_images(self, dataset=None):
        """The images that were passed, or those that the first representations say."""
        first = next(iter(self._sets.values()))
        if self._images is not None:
            shown_images = given_images(self._images, self._labels)
            return Given(shown_images.images, shown_images.labels, shown_images.class_names or first.class_names)
        if not first.meta.get("dataset"):
            raise ValueError("the images are shown here: pass images=, or representations that name their dataset.")
        return load_dataset(first.meta["dataset"], first.meta.get("split", "test"))

    def representations(self, method: str, eps=None, *, dataset=None, seed=None) -> RepresentationSet:
        return self._sets[method]

    def representations_of_seeds(self, method: str, *, dataset=None, seeds=()) -> dict[int, RepresentationSet]:
        return {0: self._sets[method]}

    def accuracy(self, method: str, *, dataset=None, seed=None) -> RunAccuracy:
        if self._images is None or isinstance(self.own_methods[method], RepresentationSet):
            return accuracy_of_representations(self._sets[method])
        return accuracy_of_model(self.model(method), self._images, self._labels, self._attack)


class MixedResults(_Given):
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
                    raise ValueError(f"{name!r} is attacked by {_own_attack(one)}; expected one of {levels}.")
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
        return (_own_attack(one) or main) == (main if eps is None else self.attack(eps, self.dataset))

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
        one, attack = self.own_methods[method], self.attack(eps, self.dataset)
        if isinstance(one, RepresentationSet):
            if not self._has_level(one, eps):
                raise ValueError(f"{method!r} is attacked by {_own_attack(one)}; it has none of {attack}.")
            return one
        if (method, attack.eps) not in self._extracted:
            rows = self.base.representations(self.base.methods[0], eps, dataset=self.dataset).indices
            data = self.test_images(self.dataset)
            self._extracted[method, attack.eps] = extract(
                self.model(method), data.images[rows], data.labels[rows], attack=attack, indices=rows,
                class_names=data.class_names, meta={"dataset": data.name, "split": "test"}, progress=self.progress,
            )  # fmt: skip
        return self._extracted[method, attack.eps]

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
        return accuracy_of_model(one, data.images, data.labels, attacks, limits=limits)

    def attack_note(self, dataset=None, methods: Sequence[str] | None = None) -> str:
        return self.base.attack_note(dataset, self._of_scale(methods))

    def seed_note(self, dataset=None, methods: Sequence[str] | None = None) -> str:
        return f"{self.base.seed_note(dataset, self._of_scale(methods))}; {' and '.join(self.own_methods)} as given"

    def _of_scale(self, methods: Sequence[str] | None) -> list[str] | None:
        return None if methods is None else [method for method in methods if method not in self.own_methods]
