"""The maps that the explorer draws: those it was given, and the missing ones, made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from analysis.explore.items import Items
from analysis.projection import METHODS, align, project

_MADE_BY = {"tsne": "openTSNE", "umap": "umap-learn", "pca": "scikit-learn"}


def collect_maps(
    items: Items,
    given: Mapping[str, Mapping[str, np.ndarray]] | None,
    methods: tuple[str, ...],
    *,
    kept: Path | None = None,
    progress: bool,
) -> dict[str, dict[str, np.ndarray]]:
    """Coordinates {method: {model: (n or 2n, 2)}} of the shown images, clean rows first.

    Maps that were given are taken as they are. Those made here are of clean and adversarial images together, and are
    rotated, mirrored and scaled to lie on the first model's as well as they can. With a file to keep them in, what it
    has of the same representations is not made again.

    Raises
    ------
    ValueError
        For an unknown model or method, or a map of another shape or with NaN.
    """
    given = given or {}
    if unknown := sorted(set(given) - set(items.sets)):
        raise ValueError(f"projections are of {', '.join(unknown)}; expected models: {', '.join(items.sets)}.")
    extra = sorted({method for maps in given.values() for method in maps} - set(METHODS))
    if extra or not methods or set(methods) - set(METHODS):
        wrong = extra or sorted(set(methods) - set(METHODS)) or ["none"]
        raise ValueError(f"projections by {', '.join(wrong)}; expected some of {', '.join(METHODS)}.")
    wanted = [m for m in METHODS if m in methods or all(m in given.get(name, {}) for name in items.sets)]
    maps = {method: {} for method in wanted}
    missing = [(method, name) for method in wanted for name in items.sets if method not in given.get(name, {})]
    for name, of_model in given.items():
        for method, coords in of_model.items():
            if method in maps:
                maps[method][name] = _shown(items, name, method, coords)
    found, keys = _read(kept), {}
    for method, name in missing:
        keys[method, name] = _key(method, _points(items, name))
    to_make = [each for each in missing if keys[each] not in found]
    for method, name in _with_progress(to_make, progress):
        found[keys[method, name]] = project(_points(items, name), method=method).coords
    if kept is not None and to_make:
        _write(kept, {key: found[key] for key in keys.values()})
    for method, name in missing:
        coords = found[keys[method, name]]
        reference = next(iter(maps[method].values()), None)
        if reference is not None:
            n = len(items.rows)
            clean, adversarial = align(coords[:n], reference[:n], others=coords[n:])
            coords = np.concatenate([clean, adversarial])
        maps[method][name] = coords
    return {method: {name: maps[method][name] for name in items.sets} for method in wanted}


def _points(items: Items, name: str) -> np.ndarray:
    """The representations of the shown images, clean rows first."""
    reps = items.sets[name].subset(items.rows)
    return np.concatenate([reps.features] if reps.adv_features is None else [reps.features, reps.adv_features])


def _shown(items: Items, name: str, method: str, coords: np.ndarray) -> np.ndarray:
    """The shown rows of a map of all images of a set, in the order of the items."""
    coords, reps = np.asarray(coords, dtype=np.float64), items.sets[name]
    total = len(reps) * (1 if reps.adv_features is None else 2)
    if coords.shape != (total, 2):
        what = "one row for each image" if total == len(reps) else "the clean rows first, then the adversarial ones"
        raise ValueError(f"the {method} map of {name} must have the shape ({total}, 2), {what}. Got {coords.shape}.")
    if not np.isfinite(coords).all():
        row = int(np.argmin(np.isfinite(coords).all(axis=1)))
        raise ValueError(f"the {method} map of {name} must be finite. Got NaN or infinity in row {row}.")
    rows = items.orders[name][items.rows]
    return coords[rows] if total == len(reps) else coords[np.concatenate([rows, rows + len(reps)])]


def _key(method: str, features: np.ndarray) -> str:
    """Names a map by what it is made of: the representations, and what makes it."""
    digest = hashlib.sha256(f"{features.dtype} {features.shape}".encode())
    digest.update(np.ascontiguousarray(features))
    return f"{method} {version(_MADE_BY[method])} {digest.hexdigest()}"


def _read(path: Path | None) -> dict[str, np.ndarray]:
    """The maps that are kept; none if the file is not there, or damaged: they are made again then."""
    from tla_core.checkpoint import CheckpointError, load_tensors

    if path is None:
        return {}
    try:
        return {name: tensor.numpy() for name, tensor in load_tensors(path)[0].items()}
    except (FileNotFoundError, CheckpointError):
        return {}


def _write(path: Path, maps: dict[str, np.ndarray]) -> None:
    from tla_core.checkpoint import save_tensors

    save_tensors(path, maps, {"kind": "maps of the explorer"})


def _with_progress(missing, progress):
    from tqdm.auto import tqdm

    bar = tqdm(missing, desc="maps", unit="map", disable=not progress or not missing)
    for method, name in bar:
        bar.set_postfix_str(f"{method} of {name}")
        yield method, name
