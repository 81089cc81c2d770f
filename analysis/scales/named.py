"""Results of whatever there is: of a scale, with the models of one's own that it names, or of a dictionary alone."""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from analysis.landscape import load_landscapes, save_landscapes
from analysis.maps import ClassMap, PairMap, load_maps, load_pair_maps, save_maps, save_pair_maps
from analysis.representations import RepresentationSet
from analysis.scales import targets
from analysis.scales.accuracy import RunAccuracy, Subject, evaluate_subject
from analysis.scales.given_results import OwnResults
from analysis.scales.mixed import MixedResults
from analysis.scales.results import Results
from analysis.scales.run_results import is_current
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import state_digest
from tla_core.config import TrainConfig
from tla_core.datasets import ImageDataset, load_dataset
from tla_core.naming import import_object
from tla_core.probe import PROBED, function_identity, probe
from tla_core.wrapping import as_classifier

Value = TypeVar("Value")


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
        a scale stands for its results, with the models of one's own that its file or `register_method` names.
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
    """The models that a scale's file or `register_method` names stand beside its methods; their results are kept."""
    for name, options in results.scale.own_methods.items():
        method = named_method(options["model"], results.scale.root)
        results = NamedResults(results, {name: method}, dataset=options["dataset"])
    return results


def named_method(source: Any, root: Path) -> Any:
    """What a scale's file or `register_method` names: of code the model that it makes; anything else as it is."""
    if not isinstance(source, str | Path):
        return source
    if (root / source).exists():
        return root / source
    model = import_object(str(source), root=root)
    return model if isinstance(model, nn.Module) else model()


class NamedResults(MixedResults):
    """Models that have a name in a scale: their results are stored as those of runs are.

    They lie in ``results/<scale>/<dataset>/<name>/given`` and say of which function of which images they are, by its
    weights and by what it makes of a few images: a model that has changed is measured again.
    """

    def class_maps(self, method: str, eps=None, *, dataset=None, seed=None, classes=()) -> dict[int, ClassMap]:
        make = functools.partial(super().class_maps, method, eps, dataset=dataset)
        if not self._is_model(method):
            return make(seed=seed, classes=classes)
        target = targets.class_maps(self._config_of_scale(), eps, self.map_settings())
        maps = self._kept(method, target, make, save_maps, load_maps)
        return {k: maps[k] for k in classes or maps}

    def pair_maps(self, method: str, eps=None, *, dataset=None, seed=None) -> list[PairMap]:
        make = functools.partial(super().pair_maps, method, eps, dataset=dataset, seed=seed)
        if not self._is_model(method):
            return make()
        target = targets.pair_maps(self._config_of_scale(), eps, self.scale.pair_settings(self.dataset))
        return self._kept(method, target, make, save_pair_maps, load_pair_maps)

    def landscapes(self, method: str, *, dataset=None, seed=None) -> dict:
        make = functools.partial(super().landscapes, method, dataset=dataset, seed=seed)
        if not self._is_model(method) or (dataset or self.scale.dataset_of("landscapes")) != self.dataset:
            return make()
        target = targets.landscapes(self._config_of_scale(), self.scale.landscape_of(self.dataset))
        landscapes = self._kept(
            method, target, lambda: {str(row): each for row, each in make().items()}, save_landscapes, load_landscapes
        )
        return {int(row): each for row, each in landscapes.items()}

    def train_representations(self, method: str, *, dataset=None, seed=None) -> RepresentationSet:
        make = functools.partial(super().train_representations, method, dataset=dataset, seed=seed)
        if not self._is_model(method):
            return make()
        checksum = load_dataset(self._config_of_scale().dataset, "train").checksum
        target = targets.train_representations()
        target = target._replace(settings={**target.settings, "data_sha256": checksum})
        return self._kept(method, target, make, _save_set, RepresentationSet.load)

    def _of_model(self, method: str, eps: float | None) -> RepresentationSet:
        images = self.scale.images_at(self.dataset, self.base.methods[0], eps)
        target = targets.representations(self._config_of_scale(), eps, images)
        return self._kept(method, target, lambda: self._extract(method, eps), _save_set, RepresentationSet.load)

    def _measured(
        self, method: str, data: ImageDataset, attacks: Mapping[str, AttackConfig], limits: Mapping[str, int]
    ) -> RunAccuracy:
        expected = {"checkpoint_sha256": self._identity(method), "data": data.source, "of": len(data)}
        path = self._folder(method) / "accuracy-test.safetensors"
        subject = Subject(path, expected, data, lambda: self.model(method))
        return evaluate_subject(subject, attacks, limits=limits, progress=self.progress)

    def _is_model(self, method: str) -> bool:
        return method in self.own_methods and not isinstance(self.own_methods[method], RepresentationSet)

    def _config_of_scale(self) -> TrainConfig:
        """The settings that say how the dataset's models are attacked."""
        return self._config(self.base.methods[0], self.dataset)

    def _folder(self, method: str) -> Path:
        plain_name = re.sub(r"[^\w.@=-]+", "-", method)
        return self.scale.root / "results" / self.scale.name / self.dataset / plain_name / "given"

    def _identity(self, method: str) -> str:
        """Asked for each time: a model in memory may have been trained on meanwhile."""
        data = self.test_images(self.dataset)
        model = as_classifier(self.model(method), data.images[:PROBED], data.labels[:PROBED])
        parts = [state_digest(model), repr(model), data.checksum]
        return function_identity(self._folder(method) / "identity.safetensors", parts, probe(model, data.images))

    def _kept(
        self, method: str, target: targets.Target, make: Callable[[], Value],
        save: Callable[[Path, Value, dict[str, Any]], None], load: Callable[[Path], Value],
    ) -> Value:  # fmt: skip
        """What a file holds of this function; it is made where it is missing, stale or damaged."""
        path = self._folder(method) / target.file
        expected = {"checkpoint_sha256": self._identity(method), **target.settings}
        if is_current(path, expected):
            return load(path)
        value = make()
        save(path, value, expected)
        return value


def _save_set(path: Path, reps: RepresentationSet, expected: dict[str, Any]) -> None:
    replace(reps, meta={**reps.meta, **expected}).save(path)
