"""One t-SNE map for each class: its clean images and the adversarial examples made from them, embedded together."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from analysis.projection import Projection, align, project
from analysis.representations import RepresentationSet
from tla_core.validation import check_whole


@dataclass(frozen=True, repr=False, eq=False)
class ClassMap:
    """The map of one class.

    Attributes
    ----------
    true_class : int
    clean_coords, adv_coords : ndarray, (n, 2) and (m, 2), float32
    clean_rows, adv_rows : ndarray, (n,) and (m,), int64
        Rows of the `RepresentationSet` that the points belong to.
    adv_predictions : ndarray, (m,), int64
    params : dict
        Of the projection.
    """

    true_class: int
    clean_coords: np.ndarray
    adv_coords: np.ndarray
    clean_rows: np.ndarray
    adv_rows: np.ndarray
    adv_predictions: np.ndarray
    params: dict[str, Any]

    def __repr__(self) -> str:
        points = f"{len(self.clean_rows)} clean and {len(self.adv_rows)} adversarial points"
        return f"ClassMap(class {self.true_class}, {points})"


def map_class(
    reps: RepresentationSet, true_class: int, *, n_clean: int = 500, n_adversarial: int = 1000, **projection: Any
) -> ClassMap:
    """Embed one class, clean and adversarial images together, as Fig. 1-3 of the supplement do.

    Parameters
    ----------
    reps : RepresentationSet
        With an adversarial part and predictions.
    true_class : int
    n_clean, n_adversarial : int
        Points at the most; taken evenly over the set's rows.
    **projection
        Passed to `project`.

    Raises
    ------
    ValueError
        Without an adversarial part, for a class that the set does not hold, or a limit that leaves no points.
    """
    clean_rows, adv_rows = _rows_of_class(reps, true_class, n_clean, n_adversarial)
    projected = project(_features(reps, clean_rows, adv_rows), **projection)
    return _class_map(reps, true_class, clean_rows, adv_rows, projected)


def map_classes(
    reps: RepresentationSet,
    *,
    n_clean: int = 500,
    n_adversarial: int = 1000,
    n_jobs: int = 1,
    progress: bool = False,
    **projection: Any,
) -> dict[int, ClassMap]:
    """`map_class` for every class of a set.

    Parameters
    ----------
    reps, n_clean, n_adversarial
        See `map_class`.
    n_jobs : int, at least 1
        Processes that make one map each, side by side, with one thread each: faster than as many threads inside one
        map (`make bench`), and the maps are the same. They stay for the next call.
    progress : bool
    **projection
        Passed to `project`.
    """
    n_jobs = check_whole("n_jobs", n_jobs, 1)
    from joblib import Parallel, delayed

    classes = [int(k) for k in np.unique(reps.labels)]
    rows = [_rows_of_class(reps, k, n_clean, n_adversarial) for k in classes]
    jobs = (delayed(project)(_features(reps, *both), **projection) for both in rows)
    found = Parallel(n_jobs=min(n_jobs, len(classes)), return_as="generator")(jobs)
    found = tqdm(found, desc="map", unit="class", total=len(classes), disable=not progress)
    return {k: _class_map(reps, k, *both, one) for k, both, one in zip(classes, rows, found, strict=True)}


def align_maps(maps: dict[int, ClassMap], reference: dict[int, ClassMap]) -> dict[int, ClassMap]:
    """Turn each class's map so that it lies on that of another model as well as it can, for display; see `align`.

    Raises
    ------
    ValueError
        If the two models' maps do not show the same classes and items.
    """
    if set(maps) != set(reference):
        raise ValueError(f"expected maps of the same classes. Got {sorted(maps)} and {sorted(reference)}.")
    aligned = {}
    for k, one in maps.items():
        other = reference[k]
        if not all(np.array_equal(getattr(one, rows), getattr(other, rows)) for rows in ("clean_rows", "adv_rows")):
            raise ValueError(f"the maps of class {k} show other items. Make both with the same settings.")
        both = [np.concatenate([m.clean_coords, m.adv_coords]) for m in (one, other)]
        coords = align(*both).astype(np.float32)
        n = len(one.clean_rows)
        aligned[k] = replace(one, clean_coords=coords[:n], adv_coords=coords[n:])
    return aligned


def _rows_of_class(
    reps: RepresentationSet, true_class: int, n_clean: int, n_adversarial: int
) -> tuple[np.ndarray, np.ndarray]:
    if reps.adv_features is None or reps.adv_predictions is None:
        raise ValueError("the set has no adversarial part: pass attack= to extract.")
    check_whole("n_clean", n_clean, 1)
    check_whole("n_adversarial", n_adversarial, 1)
    of_class = np.flatnonzero(reps.labels == true_class)
    if not len(of_class):
        raise ValueError(f"the set holds no image of class {true_class}. There are: {np.unique(reps.labels).tolist()}.")
    return evenly(of_class, n_clean), evenly(of_class, n_adversarial)


def _features(reps: RepresentationSet, clean_rows: np.ndarray, adv_rows: np.ndarray) -> np.ndarray:
    return np.concatenate([reps.features[clean_rows], reps.adv_features[adv_rows]])


def _class_map(
    reps: RepresentationSet, true_class: int, clean_rows: np.ndarray, adv_rows: np.ndarray, projected: Projection
) -> ClassMap:
    coords = projected.coords.astype(np.float32)
    return ClassMap(
        true_class=true_class,
        clean_coords=coords[: len(clean_rows)],
        adv_coords=coords[len(clean_rows) :],
        clean_rows=clean_rows,
        adv_rows=adv_rows,
        adv_predictions=reps.adv_predictions[adv_rows],
        params=projected.params,
    )


def save_maps(path: Path | str, maps: dict[int, ClassMap], metadata: dict[str, Any]) -> None:
    """Write the maps of a model into one file, atomically and with a checksum."""
    from tla_core.checkpoint import save_tensors

    names = ("clean_coords", "adv_coords", "clean_rows", "adv_rows", "adv_predictions")
    arrays = {f"{k}/{name}": getattr(m, name) for k, m in maps.items() for name in names}
    params = {str(k): m.params for k, m in maps.items()}
    save_tensors(path, arrays, {**metadata, "kind": "class maps", "params": params})


def load_maps(path: Path | str) -> dict[int, ClassMap]:
    """Read what `save_maps` wrote, and verify it.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no such file, or it cannot be trusted.
    """
    from tla_core.checkpoint import CheckpointError, load_tensors

    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != "class maps":
        raise CheckpointError(f"{path} holds no class maps. Got the kind {metadata.get('kind')!r}.")
    arrays: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        k, _, part = name.partition("/")
        arrays.setdefault(int(k), {})[part] = tensor.numpy()
    return {k: ClassMap(true_class=k, params=metadata["params"][str(k)], **arrays[k]) for k in sorted(arrays)}


def evenly(rows: np.ndarray, n: int) -> np.ndarray:
    """At most n of the rows, evenly spread over them."""
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).round().astype(np.int64)]
