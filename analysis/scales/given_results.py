"""Models and representations that are no methods of a scale, as results; those of a dictionary alone."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compared import as_representations, attack_of, load_methods
from analysis.maps import ClassMap, PairMap, map_class, map_pair
from analysis.representations import RepresentationSet
from analysis.scales.accuracy import RunAccuracy
from analysis.scales.own_accuracy import accuracy_of_model, accuracy_of_representations
from analysis.scales.results import Results
from analysis.scales.scale import Scale
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import file_sha256
from tla_core.datasets import load_dataset
from tla_core.given import Given, given_images
from tla_core.run_folder import RunFolder
from tla_core.training import load_model


class GivenResults(Results):
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


def attack_if_ours(reps: RepresentationSet, needed: bool = False) -> AttackConfig | None:
    """As `attack_of`; of an attack that is not ours None, unless models are to be attacked alike."""
    try:
        return attack_of(reps)
    except ValueError:
        if needed:
            raise
        return None


class OwnResults(GivenResults):
    """Models, runs and representations without a scale: one dataset, one attack, one training each."""

    def __init__(self, methods: Mapping[str, Any], *, images=None, labels=None, attack=None) -> None:
        self.own_methods = load_methods(methods)
        given_sets = {name: one for name, one in self.own_methods.items() if isinstance(one, RepresentationSet)}
        if attack is None and given_sets:
            attack = attack_if_ours(next(iter(given_sets.values())), len(given_sets) < len(methods))
        self._images, self._labels, self._attack = images, labels, attack
        for name, reps in given_sets.items():
            own = attack_if_ours(reps)
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
