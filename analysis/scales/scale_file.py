"""A scale's file as values: what of it is one's own is taken apart, and a mistake is one line that names the key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tla_core.presets import METHODS, PRESETS, VARIANTS

REQUIRED = ("datasets", "methods", "seeds", "notebooks", "points_per_class")
_LIST, _MAPPING = "a list", "keys with values"
_KINDS = {
    "datasets": (_LIST, _MAPPING), "methods": (_LIST, _MAPPING), "seeds": (_LIST, _MAPPING), "notebooks": (_LIST,),
    "neighbour_datasets": (_LIST,), "sweeps": (_LIST,), "sweep_seeds": (_LIST,), "points_per_class": (_MAPPING,),
    "analysis_images": (_MAPPING,), "overrides": (_MAPPING,), "variant_overrides": (_MAPPING,),
    "figure_datasets": (_MAPPING,), "class_pairs": (_MAPPING,), "landscape": (_MAPPING,), "accuracy": (_MAPPING,),
}  # fmt: skip
# What may be said of a dataset, of a model and of a training step of one's own; the first must be.
_OF_DATASET, _OF_MODEL, _OF_STEP = ("folder", "like"), ("model", "dataset"), ("step", "like")
# Scale -> "datasets" or "methods" -> name -> options: what `register_dataset` and `register_method` add to its file.
REGISTERED: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}


def read_scale_file(path: Path, root: Path, known: set[str]) -> dict[str, Any]:
    """The values of a scale's file, as arguments of `Scale`.

    Parameters
    ----------
    path, root : Path
        The file, and the root of the project, from which folders of images start.
    known : set of str
        The keys that there are.

    Raises
    ------
    ValueError
        One line, with the name of the file and the key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys, such as `datasets: [mnist]`. Got {values!r:.40}.")
    if unknown := sorted(str(key) for key in set(values) - known):
        raise ValueError(
            f"{path.name} holds unknown keys: {', '.join(unknown)}. There are: {', '.join(sorted(known))}."
        )
    settings = {key: value for key, value in values.items() if value is not None}
    if missing := sorted(set(REQUIRED) - set(settings)):
        raise ValueError(f"{path.name} lacks {', '.join(missing)}.")
    for key, kinds in _KINDS.items():
        if key in settings and _kind(settings[key]) not in kinds:
            raise ValueError(f"{path.name}: {key} must be {' or '.join(kinds)}. Got {settings[key]!r:.60}.")
    family = settings.get("presets") or path.stem
    registered = REGISTERED.get(path.stem, {})
    settings |= _datasets(path.name, settings["datasets"], root, family, registered.get("datasets", {}))
    settings |= _methods(path.name, settings["methods"], settings["datasets"], root, registered.get("methods", {}))
    if isinstance(settings["seeds"], Mapping):  # a dataset that is registered has the first seed of the first one
        first_seeds = list(settings["seeds"].get(settings["datasets"][0], ()))[:1]
        settings["seeds"] = {**dict.fromkeys(registered.get("datasets", {}), first_seeds), **settings["seeds"]}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def _datasets(file: str, value: Any, root: Path, family: str, registered: Mapping[str, Any]) -> dict[str, Any]:
    """``datasets``, the names, and ``own_datasets``: name -> folder of images, and whose settings it has."""
    if family not in (families := sorted({name.split("/")[0] for name in PRESETS})):
        raise ValueError(
            f"{file}: presets: there are none called {family!r}, and a scale takes those of its name unless it"
            f" says otherwise; expected a line such as `presets: mini`, of {', '.join(families)}."
        )
    known_datasets = sorted({name.split("/")[1] for name in PRESETS if name.startswith(f"{family}/")})
    entries, own = _entries(file, "datasets", value, registered), {}
    for name, options in entries.items():
        if options is None:
            if name not in known_datasets:
                raise ValueError(
                    f"{file}: datasets: there is no {name!r}; expected {', '.join(known_datasets)}, or a folder of"
                    f" images: `{name}: {{folder: images/{name}}}`."
                )
            continue
        _check_options(file, f"datasets: {name}", options, _OF_DATASET)
        default = "cifar10" if "cifar10" in known_datasets else known_datasets[0]
        source, like = str(options["folder"]), options.get("like", default)
        folder, in_memory = root / source, _is_in_memory(source)
        if not in_memory and not folder.is_dir():
            raise ValueError(f"{file}: datasets: {name}: folder: there is no {folder}.")
        if like not in known_datasets:
            raise ValueError(f"{file}: datasets: {name}: like must be {' or '.join(known_datasets)}. Got {like!r}.")
        own[name] = {"folder": source if in_memory else str(folder.resolve()), "like": like}
    return {"datasets": list(entries), "own_datasets": own}


def _is_in_memory(source: str) -> bool:
    from tla_core.datasets import is_named  # with torch, which takes seconds to import

    return is_named(source)


def _methods(file: str, value: Any, datasets: list[str], root: Path, registered: Mapping[str, Any]) -> dict[str, Any]:
    """The methods that are trained; of these ``own_steps``: name -> step, and the method whose settings it has; and
    ``own_methods``: name -> model of one's own, and its dataset."""
    known, entries, models, steps = METHODS + VARIANTS, _entries(file, "methods", value, registered), {}, {}
    for name, options in entries.items():
        if options is None:
            if name.partition("@")[0] not in known:
                raise ValueError(
                    f"{file}: methods: there is no {name!r}; expected {', '.join(known)}, or a model of your own:"
                    f" `{name}: {{model: file.py:function}}`."
                )
            continue
        if name in known:
            raise ValueError(f"{file}: methods: {name} is a method that there is; give a model of yours another name.")
        if isinstance(options, Mapping) and "step" in options:
            steps[name] = _step(file, name, options, root)
            continue
        _check_options(file, f"methods: {name}", options, _OF_MODEL)
        dataset = options.get("dataset", datasets[0])
        if dataset not in datasets:
            raise ValueError(f"{file}: methods: {name}: dataset must be {' or '.join(datasets)}. Got {dataset!r}.")
        models[name] = {"model": options["model"], "dataset": dataset}
    methods = [name for name in entries if name not in models]
    return {"methods": methods, "own_methods": models, "own_steps": steps}


def _step(file: str, name: str, options: Mapping[str, Any], root: Path) -> dict[str, str]:
    """A training step: as every process finds it, and the method whose settings it has."""
    _check_options(file, f"methods: {name}", options, _OF_STEP)
    step, like = str(options["step"]), options.get("like", "at")
    if like not in METHODS + VARIANTS:
        raise ValueError(f"{file}: methods: {name}: like must be {' or '.join(METHODS + VARIANTS)}. Got {like!r}.")
    if "@" in name or "/" in name:
        raise ValueError(f"{file}: methods: {name}: a method that is trained gives a folder its name, without @ and /.")
    where, _, function = step.rpartition(":")
    if where.endswith(".py"):
        path = (root / Path(where).expanduser()).resolve()
        if not path.is_file():
            raise ValueError(f"{file}: methods: {name}: step: there is no file {path}.")
        step = f"{path}:{function}"
    return {"step": step, "like": like}


def _entries(file: str, key: str, value: Any, registered: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> options or None, of a list, of a mapping, or of a list with mappings in it; and what is registered."""
    parts = (
        [value]
        if isinstance(value, Mapping)
        else [each if isinstance(each, Mapping) else {each: None} for each in value]
    )
    entries = {str(name): options for part in parts for name, options in part.items()}
    if not entries:
        raise ValueError(f"{file}: {key} must name at least one. Got none.")
    if twice := sorted(set(entries) & set(registered)):
        raise ValueError(f"{file}: {key}: there is {', '.join(twice)} already; register yours by another name.")
    return {**entries, **registered}


def _check_options(file: str, where: str, options: Any, known: tuple[str, ...]) -> None:
    if not isinstance(options, Mapping) or known[0] not in options or set(options) - set(known):
        expected = f"{known[0]}, and perhaps {known[1]}"
        raise ValueError(f"{file}: {where} must have {expected}. Got {options!r:.80}.")


def _kind(value: Any) -> str:
    return _LIST if isinstance(value, list) else _MAPPING if isinstance(value, Mapping) else type(value).__name__
