"""Models side by side, whatever they are: runs, models of anybody's, representations that were extracted before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.representations import RepresentationSet

if TYPE_CHECKING:  # torch takes seconds to import
    from tla_core.attack_config import AttackConfig
    from tla_core.attacks import Attack


def as_representations(
    methods: Mapping[str, Any],
    images: Any = None,
    labels: Any = None,
    *,
    attack: Attack | None = None,
    class_names: Any = None,
    limit: int = 2000,
    progress: bool = False,
) -> dict[str, RepresentationSet]:
    """Representations of several models of the same images.

    Parameters
    ----------
    methods : mapping of str to RepresentationSet, nn.Module, Path or str
        A path is the folder of a run, or a file of `RepresentationSet.save`.
    images, labels : optional
        What models and runs are shown, as of `extract`. By default the images of the first set that is given, where
        its ``meta`` names their dataset; without a set the test images of the first run's dataset.
    attack : AttackConfig or callable, optional
        By default that of the first set, or the one that the first run's dataset is analysed with.
    class_names : optional
        As of `extract`.
    limit : int
        Test images of a run's dataset at the most, evenly spread; 1 or more.
    progress : bool

    Returns
    -------
    dict of str to RepresentationSet
        In the order of `methods`.

    Raises
    ------
    TypeError
        For what is none of these.
    ValueError
        Without models; where images are wanted and none are known; for sets of other images than the first.
    """
    loaded = load_methods(methods)
    rest = {name: method for name, method in loaded.items() if not isinstance(method, RepresentationSet)}
    sets = {name: method for name, method in loaded.items() if isinstance(method, RepresentationSet)}
    if rest:
        from analysis.extraction import extract
        from tla_core.given import given_images
        from tla_core.training import load_model

        indices, meta = None, {}
        if images is None:
            images, indices, attack, known_names = _images_of(sets, rest, attack, limit)
            meta = {"dataset": images.name, "split": images.split}
        else:
            first = next(iter(sets.values()), None)
            attack, known_names = (attack, None) if first is None else (attack or attack_of(first), first.class_names)
        shown_images = given_images(images, labels)
        class_names = known_names if class_names is None else class_names
        class_names = shown_images.class_names if class_names is None else class_names
        for name, method in rest.items():
            model = load_model(method) if isinstance(method, Path) else method
            sets[name] = extract(
                model, shown_images.images, shown_images.labels, attack=attack, indices=indices,
                class_names=class_names, meta=meta, progress=progress,
            )  # fmt: skip
    sets = {name: sets[name] for name in methods}
    check_same_images(sets)
    return sets


def attack_of(reps: RepresentationSet) -> AttackConfig | None:
    """The attack that representations say they are of; None where they say none.

    Raises
    ------
    ValueError
        If it is no attack of ours, so that other models cannot be attacked alike.
    """
    from tla_core.attack_config import ATTACKS, AttackConfig

    settings = reps.meta.get("attack") or {}
    if not settings:
        return None
    if settings.get("name") not in ATTACKS or not set(settings) <= set(AttackConfig.__dataclass_fields__):
        raise ValueError(f"{reps!r} is of an attack that cannot be run again: {settings}. Pass attack= for the models.")
    return AttackConfig(**settings)


def load_methods(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Each method as a RepresentationSet, a model, or the path of a run; errors as of `as_representations`."""
    if not methods:
        raise ValueError("expected at least one method, by its name. Got none.")
    return {name: _loaded(name, method) for name, method in methods.items()}


def check_same_images(sets: Mapping[str, RepresentationSet]) -> None:
    """ValueError unless all sets are of as many images of the same classes, row by row."""
    (first_name, first), *others = sets.items()
    for name, reps in others:
        if tuple(reps.class_names) != tuple(first.class_names):
            names = f"{', '.join(reps.class_names)}; {first_name!r}: {', '.join(first.class_names)}"
            raise ValueError(f"expected the same classes. Got {name!r}: {names}.")
        same_data = reps.meta.get("dataset") and reps.meta.get("dataset") == first.meta.get("dataset")
        other_rows = same_data and not np.array_equal(reps.indices, first.indices)
        if other_rows or not np.array_equal(reps.labels, first.labels):
            raise ValueError(
                f"{name!r} has {len(reps)} images, {first_name!r} {len(first)}; expected the same images in the same"
                " order. Extract both from the same images, or take reps.subset(rows)."
            )


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run."""
    return (path / "config.json").is_file()


def _loaded(name: str, method: Any) -> Any:
    """A set, a model, or the path of a run."""
    if isinstance(method, (str, Path)):
        path = Path(method)
        if path.is_file():
            return RepresentationSet.load(path)
        if is_run(path):
            return path
        raise ValueError(
            f"{name!r}: expected the folder of a run, or a file of RepresentationSet.save. Got {str(path)!r}."
        )
    if isinstance(method, RepresentationSet) or callable(method):
        return method
    kind = type(method).__name__
    raise TypeError(f"{name!r} must be a RepresentationSet, a model, or the folder of a run. Got a {kind}.")


def _images_of(sets: Mapping[str, RepresentationSet], rest: Mapping[str, Any], attack: Attack | None, limit: int):
    """Images, their indices, attack and class names of the first set, or else of the first run."""
    from tla_core.datasets import load_dataset

    if limit < 1:
        raise ValueError(f"limit must be at least 1. Got {limit}.")
    reps = next(iter(sets.values()), None)
    run = next((method for method in rest.values() if isinstance(method, Path)), None)
    if reps is not None and reps.meta.get("dataset"):
        data = load_dataset(reps.meta["dataset"], reps.meta.get("split", "test")).subset(reps.indices)
        if not np.array_equal(np.asarray(data.labels), reps.labels):
            raise ValueError(f"the images of {data.name} here are not those of {reps!r}. Pass images= and labels=.")
        return data, reps.indices, attack or attack_of(reps), reps.class_names
    if run is None:
        raise ValueError("models need images to be shown: pass images=, labels= and attack=.")
    from tla_core.config import TrainConfig
    from tla_core.dataset_download import OTHER_COPIES
    from tla_core.protocol import analysis_attack
    from tla_core.run_folder import RunFolder

    record = RunFolder(run).record()
    config = TrainConfig.from_dict(record["config"])
    data = load_dataset(config.dataset, "test")
    trained_on = record["data"]["name"]
    if data.name not in (trained_on, OTHER_COPIES.get(trained_on)):
        raise ValueError(f"{run} was trained on {trained_on!r}, and not on {data.name!r}. Pass images=, labels=.")
    rows = np.arange(min(limit, len(data))) * len(data) // min(limit, len(data))
    return data.subset(rows), rows, attack or analysis_attack(config), data.class_names
