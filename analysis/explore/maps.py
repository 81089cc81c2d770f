"""The maps that the explorer draws: those that it is given, and those that it makes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from analysis.explore.about import map_text
from analysis.explore.items import Items
from analysis.projection import METHODS, align, project

_MADE_BY = {"tsne": "openTSNE", "umap": "umap-learn", "pca": "scikit-learn"}


def collect_maps(
    items: Items,
    projections: Mapping[str, Mapping[str, np.ndarray]] | None,
    methods: tuple[str, ...],
    *,
    maps_path: Path | None = None,
    joint: bool = False,
    progress: bool,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Coordinates {method: {model: (n or 2n, 2)}} of the shown images, clean rows first, and {method: how it was made}.

    Given maps are taken as they are. A map made here holds clean and adversarial images together; it is rotated,
    mirrored and scaled to lie on the first model's as well as it can. A map that `maps_path` holds of the same
    representations is not made again. `joint` makes one map of all sets, for the steps of one model: their
    representations share one space, so that the map shows which points move.

    Raises
    ------
    ValueError
        For an unknown model or method, or a map of another shape or with NaN.
    """
    # Which maps there are, and which are missing.
    projections = projections or {}
    if unknown := sorted(set(projections) - set(items.sets)):
        raise ValueError(f"projections are of {', '.join(unknown)}; expected models: {', '.join(items.sets)}.")
    extra = sorted({method for maps in projections.values() for method in maps} - set(METHODS))
    if extra or not methods or set(methods) - set(METHODS):
        bad_methods = extra or sorted(set(methods) - set(METHODS)) or ["none"]
        raise ValueError(f"projections by {', '.join(bad_methods)}; expected some of {', '.join(METHODS)}.")
    chosen_methods = [m for m in METHODS if m in methods or all(m in projections.get(name, {}) for name in items.sets)]
    maps = {method: {} for method in chosen_methods}
    missing_maps = [
        (method, name) for method in chosen_methods for name in items.sets if method not in projections.get(name, {})
    ]
    for name, model_maps in projections.items():
        for method, coords in model_maps.items():
            if method in maps:
                maps[method][name] = _shown(items, name, method, coords)
    # The missing ones, turned towards the first model's.
    made_maps, texts = _make(items, missing_maps, maps_path, joint, progress)
    for method, name in missing_maps:
        coords = made_maps[method, name]
        reference = next(iter(maps[method].values()), None)
        if reference is not None and not joint:
            n = len(items.rows)
            clean, adversarial = align(coords[:n], reference[:n], others=coords[n:])
            coords = np.concatenate([clean, adversarial])
        maps[method][name] = coords
    ordered = {method: {name: maps[method][name] for name in items.sets} for method in chosen_methods}
    projected_methods = {method for model_maps in projections.values() for method in model_maps}
    return ordered, {
        method: texts.get(method, "given" if method in projected_methods else "") for method in chosen_methods
    }


def _make(
    items: Items, missing_maps: list[tuple[str, str]], maps_path: Path | None, joint: bool, progress: bool
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, str]]:
    """The missing maps, from the file or made now, and how those of a method were made."""
    groups = _groups(items, missing_maps, joint)
    stored_maps, texts = _read(maps_path)
    points = {group: [_points(items, name) for name in group[1]] for group in groups}
    keys = {group: _key(group[0], np.concatenate(parts)) for group, parts in points.items()}
    to_make = [group for group in groups if keys[group] not in stored_maps]
    for group in _with_progress(to_make, progress):
        features, places = np.concatenate(points[group]), slice(None)
        if joint:  # clean images are the same at every eps, and their copies would form little heaps
            features, places = np.unique(features, axis=0, return_inverse=True)
            places = places.reshape(-1)  # numpy 2.0 gave it a second axis
        projection = project(features, method=group[0])
        stored_maps[keys[group]] = projection.coords[places]
        texts[keys[group]] = map_text(projection.params)
    if maps_path is not None and to_make:
        _write(
            maps_path,
            {key: stored_maps[key] for key in keys.values()},
            {key: texts.get(key, "") for key in keys.values()},
        )
    maps, texts_made = {}, {}
    for group in groups:
        ends = np.cumsum([len(part) for part in points[group]])[:-1]
        maps |= zip([(group[0], name) for name in group[1]], np.split(stored_maps[keys[group]], ends), strict=True)
        texts_made[group[0]] = texts.get(keys[group], "")
    return maps, texts_made


def _groups(items: Items, missing_maps: list[tuple[str, str]], joint: bool) -> list[tuple[str, tuple[str, ...]]]:
    """A method and the models of which one map is made."""
    if not joint:
        return [(method, (name,)) for method, name in missing_maps]
    widths = {name: reps.features.shape[1] for name, reps in items.sets.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"steps must be of one model, with representations of one width. Got {widths}.")
    return [(method, tuple(items.sets)) for method in dict.fromkeys(method for method, _ in missing_maps)]


def _points(items: Items, name: str) -> np.ndarray:
    """The representations of the shown images, clean rows first."""
    reps = items.sets[name].subset(items.rows)
    return np.concatenate([reps.features] if reps.adv_features is None else [reps.features, reps.adv_features])


def _shown(items: Items, name: str, method: str, coords: np.ndarray) -> np.ndarray:
    """The shown rows of a map of all images of a set, in the order of the items."""
    coords, reps = np.asarray(coords, dtype=np.float64), items.sets[name]
    total = len(reps) * (1 if reps.adv_features is None else 2)
    if coords.shape != (total, 2):
        rows_text = (
            "one row for each image" if total == len(reps) else "the clean rows first, then the adversarial ones"
        )
        raise ValueError(
            f"the {method} map of {name} must have the shape ({total}, 2), {rows_text}. Got {coords.shape}."
        )
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


def _read(path: Path | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The maps that are kept, and how they were made; none if the file is missing or damaged: they are made again."""
    from tla_core.checkpoint import CheckpointError, load_tensors

    if path is None:
        return {}, {}
    try:
        tensors, metadata = load_tensors(path)
    except (FileNotFoundError, CheckpointError):
        return {}, {}
    return {name: tensor.numpy() for name, tensor in tensors.items()}, dict(metadata.get("made", {}))


def _write(path: Path, maps: dict[str, np.ndarray], texts: dict[str, str]) -> None:
    from tla_core.checkpoint import save_tensors

    save_tensors(path, maps, {"kind": "maps of the explorer", "made": texts})


def _with_progress(groups, progress):
    from tqdm.auto import tqdm

    bar = tqdm(groups, desc="maps", unit="map", disable=not progress or not groups)
    for group in bar:
        bar.set_postfix_str(f"{group[0]} of {', '.join(group[1])}")
        yield group
