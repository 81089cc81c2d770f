"""Puts models, training steps and images of one's own into a scale from Python, as its file does."""

import re
from pathlib import Path
from typing import Any

from analysis.compared import load_methods
from analysis.scales.named import named_method
from analysis.scales.scale import load_scale
from analysis.scales.scale_file import REGISTERED
from tla_core.datasets import ImageDataset, name_dataset
from tla_core.given import as_dataset
from tla_core.naming import spec_of

_NAME = re.compile(r"\w[^\x00-\x1f@/]{0,59}")


def register_dataset(name: str, images: Any, *, like: str | None = None, scale: str = "mini") -> str:
    """Put images of one's own among the datasets of a scale, for as long as this process lives.

    Every method of the scale is trained on them, with the presets of `like`. What it says in the scale's file,
    ``datasets: {pets: {folder: images/pets, like: mnist}}``, holds for every process, and so for the pipeline.

    Parameters
    ----------
    name : str
        What it is called in ``Results(scale).representations("tla", dataset=name)``, in tables and in figures.
    images : Path, str or pair
        A folder that holds ``train/<class>/*`` and ``test/<class>/*``; or (train, test), each an `ImageDataset`, a pair
        (images, labels) of uint8 images, or what else `tla_core.train` takes as a dataset. Of images in memory the runs
        and their results are known by a digest: with other images they are made again.
    like : str, optional
        The dataset of the scale's presets whose settings it gets, attack and eps included; by default ``cifar10`` where
        they have it, otherwise their first.
    scale : str
        By default ``mini``, as of `Results`.

    Returns
    -------
    str
        What `tla_core.load_dataset` and ``TrainConfig(dataset=...)`` know it by.

    Raises
    ------
    ValueError
        For a name that there is already, a folder that there is not, or another `like`.
    DatasetError, TypeError
        For images that are none, or do not belong together.
    """
    source = str(Path(images).resolve()) if isinstance(images, str | Path) else _in_memory(name, images)
    _register(scale, "datasets", name, {"folder": source, **({"like": like} if like else {})})
    return source


def register_method(
    name: str, model: Any = None, *, step: Any = None, like: str = "at", dataset: str | None = None,
    scale: str = "mini",
) -> None:  # fmt: skip
    """Put a model or a training of one's own among the methods of a scale, for as long as this process lives.

    A model is finished: ``as_results(scale)``, or the scale's name in any figure or table, has it beside the scale's
    methods, and ``as_results(scale).sets()``, which the explorer takes, too. Its results are stored among those of the
    scale, and made again when the model has changed. A step is trained, like the scale's methods with each of their
    seeds on each of their datasets, and stands among them.

    What it says in the scale's file, ``methods: {Mine: {model: file.py:function}, TRADES: {step: file.py:function}}``,
    holds for every process, and so for the pipeline and the notebooks that it executes.

    Parameters
    ----------
    name : str
        One that is registered already is replaced.
    model : nn.Module, RepresentationSet, Path or str, optional
        A model of images in [0, 1]; the folder of a run, such as one that `tla_core.train` made of your own network; a
        file of representations; or ``file.py:function``, which makes a model.
    step : callable or str, optional
        In place of a model: a training step with the arguments of `tla_core.um_step`, which returns a mapping of terms
        whose sum is the loss; a function that stands in a file, or ``file.py:function``.
    like : str
        The method whose settings the step is trained with.
    dataset : str, optional
        The scale's dataset that a model classifies; by default its first.
    scale : str
        By default ``mini``, as of `Results`.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, ImportError
        For a name or a dataset that the scale cannot have; for what is no method; for a step that stands in no file.
    """
    if (model is None) == (step is None):
        raise ValueError(f"{name!r}: expected either a model or a step. Got {'neither' if model is None else 'both'}.")
    if step is not None:
        _register(scale, "methods", name, {"step": spec_of(step) if callable(step) else step, "like": like})
        return
    load_methods({name: named_method(model, load_scale(scale).root)})
    _register(scale, "methods", name, {"model": model, **({"dataset": dataset} if dataset else {})})


def _register(scale: str, kind: str, name: str, options: dict[str, Any]) -> None:
    """Add it to the scale's file, unless the scale cannot be read then."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{kind[:-1]} name must be text of at most 60 characters that begins with a letter or digit, on one line"
            f" and without @ and /, such as 'TRADES (mine)'. Got {name if not isinstance(name, str) else name[:80]!r}."
        )
    entries = REGISTERED.setdefault(scale, {}).setdefault(kind, {})
    before = entries.get(name)
    entries[name] = options
    try:
        load_scale(scale)
    except BaseException:
        entries.pop(name)
        if before is not None:
            entries[name] = before
        raise


def _in_memory(name: str, images: Any) -> str:
    """Both splits, under a name that says which images they are."""
    if not isinstance(images, tuple | list) or len(images) != 2:
        kind = type(images).__name__
        raise TypeError(f"{name!r}: expected a folder, or (train, test) in memory. Got a {kind}.")
    train, test = (ImageDataset(*each) if _is_pair(each) else as_dataset(each) for each in images)
    return name_dataset(name, train, test)


def _is_pair(value: Any) -> bool:
    """Images and labels, and no dataset of two images."""
    return isinstance(value, tuple) and len(value) == 2 and hasattr(value[0], "shape")
