"""One t-SNE map for each class: its clean images and the adversarial examples made from them, embedded together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from analysis.projection import project
from analysis.representations import RepresentationSet


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
    if reps.adv_features is None or reps.adv_predictions is None:
        raise ValueError("the set has no adversarial part: pass attack= to extract.")
    for name, value in (("n_clean", n_clean), ("n_adversarial", n_adversarial)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1. Got {value!r}.")
    of_class = np.flatnonzero(reps.labels == true_class)
    if not len(of_class):
        raise ValueError(f"the set holds no image of class {true_class}. There are: {np.unique(reps.labels).tolist()}.")
    clean_rows, adv_rows = _evenly(of_class, n_clean), _evenly(of_class, n_adversarial)
    features = np.concatenate([reps.features[clean_rows], reps.adv_features[adv_rows]])
    projected = project(features, **projection)
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


def map_classes(reps: RepresentationSet, *, progress: bool = False, **settings: Any) -> dict[int, ClassMap]:
    """`map_class` for every class of a set."""
    classes = [int(k) for k in np.unique(reps.labels)]
    bar = tqdm(classes, desc="map", unit="class", disable=not progress)
    return {k: map_class(reps, k, **settings) for k in bar}


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


def _evenly(rows: np.ndarray, n: int) -> np.ndarray:
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).round().astype(np.int64)]
