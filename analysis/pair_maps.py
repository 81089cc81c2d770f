"""One t-SNE map for a pair of classes: clean images of both, and what an attack makes of one to pass for the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.class_maps import evenly
from analysis.projection import align, project
from analysis.representations import RepresentationSet
from tla_core.validation import check_whole


@dataclass(frozen=True, repr=False, eq=False)
class PairMap:
    """The map of a pair of classes.

    Attributes
    ----------
    classes : (int, int)
        The class that is attacked, and the class that its adversarial examples are taken for.
    clean_coords, adv_coords : ndarray, (n, 2) and (m, 2), float32
        `adv_coords` are the adversarial examples of the first class that the model takes for the second; m may be 0.
    clean_labels : ndarray, (n,), int64
    clean_rows, adv_rows : ndarray, (n,) and (m,), int64
        Rows of the `RepresentationSet` that the points belong to.
    n_attacked : int
        Images of the first class in the set.
    params : dict
        Of the projection.
    """

    classes: tuple[int, int]
    clean_coords: np.ndarray
    adv_coords: np.ndarray
    clean_labels: np.ndarray
    clean_rows: np.ndarray
    adv_rows: np.ndarray
    n_attacked: int
    params: dict[str, Any]

    @property
    def mistaken_share(self) -> float:
        """Share of the first class's adversarial examples that are taken for the second class."""
        return len(self.adv_rows) / self.n_attacked

    def __repr__(self) -> str:
        points = f"{len(self.clean_rows)} clean and {len(self.adv_rows)} adversarial points"
        return f"PairMap(classes {self.classes[0]} to {self.classes[1]}, {points})"


def map_pair(
    reps: RepresentationSet, attacked: int | str, mistaken_for: int | str, *, n_clean: int = 200, **projection: Any
) -> PairMap:
    """Embed a pair of classes, as Fig. 4-6 of the supplement do.

    Parameters
    ----------
    reps : RepresentationSet
        With an adversarial part and predictions.
    attacked, mistaken_for : int or str
        Number or name of the class whose adversarial examples are shown, and of the one that they are taken for.
    n_clean : int
        Clean points of each class at the most; taken evenly over the set's rows. All adversarial examples of the pair
        are shown.
    **projection
        Passed to `project`.

    Raises
    ------
    ValueError
        Without an adversarial part, for a class that the set does not hold, a pair of one class, or too few points.
    """
    if reps.adv_features is None or reps.adv_predictions is None:
        raise ValueError("the set has no adversarial part: pass attack= to extract.")
    check_whole("n_clean", n_clean, 1)
    first, second = (_class_number(reps, name) for name in (attacked, mistaken_for))
    if first == second:
        raise ValueError(f"a pair must have two classes. Got {attacked!r} twice.")
    clean_rows = np.concatenate([evenly(np.flatnonzero(reps.labels == k), n_clean) for k in (first, second)])
    adv_rows = np.flatnonzero((reps.labels == first) & (reps.adv_predictions == second))
    projected = project(np.concatenate([reps.features[clean_rows], reps.adv_features[adv_rows]]), **projection)
    coords = projected.coords.astype(np.float32)
    return PairMap(
        classes=(first, second),
        clean_coords=coords[: len(clean_rows)],
        adv_coords=coords[len(clean_rows) :],
        clean_labels=np.asarray(reps.labels)[clean_rows],
        clean_rows=clean_rows,
        adv_rows=adv_rows,
        n_attacked=int((reps.labels == first).sum()),
        params=projected.params,
    )


def align_pair_maps(maps: Sequence[PairMap], reference: Sequence[PairMap]) -> list[PairMap]:
    """Turn each map so that its clean images lie on those of another model's as well as they can; see `align`.

    Raises
    ------
    ValueError
        If the two models' maps do not show the same pairs and clean images.
    """
    aligned = []
    for one, other in zip(maps, reference, strict=True):
        if one.classes != other.classes or not np.array_equal(one.clean_rows, other.clean_rows):
            raise ValueError(f"{one} and {other} show other images. Make both with the same settings.")
        clean, adversarial = align(one.clean_coords, other.clean_coords, others=one.adv_coords)
        coords = {"clean_coords": clean.astype(np.float32), "adv_coords": adversarial.astype(np.float32)}
        aligned.append(replace(one, **coords))
    return aligned


def save_pair_maps(path: Path | str, maps: Sequence[PairMap], metadata: dict[str, Any]) -> None:
    """Write the maps of a model into one file, atomically and with a checksum."""
    from tla_core.checkpoint import save_tensors

    arrays = {f"{place}/{name}": getattr(m, name) for place, m in enumerate(maps) for name in _ARRAYS}
    others = [{"classes": list(m.classes), "n_attacked": m.n_attacked, "params": m.params} for m in maps]
    save_tensors(path, arrays, {**metadata, "kind": "pair maps", "maps": others})


def load_pair_maps(path: Path | str) -> list[PairMap]:
    """Read what `save_pair_maps` wrote, and verify it.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no such file, or it cannot be trusted.
    """
    from tla_core.checkpoint import CheckpointError, load_tensors

    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != "pair maps":
        raise CheckpointError(f"{path} holds no pair maps. Got the kind {metadata.get('kind')!r}.")
    return [
        PairMap(
            **{name: tensors[f"{place}/{name}"].numpy() for name in _ARRAYS},
            **{**others, "classes": tuple(others["classes"])},
        )
        for place, others in enumerate(metadata["maps"])
    ]


_ARRAYS = ("clean_coords", "adv_coords", "clean_labels", "clean_rows", "adv_rows")


def _class_number(reps: RepresentationSet, name: int | str) -> int:
    names = list(reps.class_names or ())
    number = names.index(name) if name in names else name
    if isinstance(number, str) or not (reps.labels == number).any():
        there = [names[k] if names else k for k in np.unique(reps.labels).tolist()]
        raise ValueError(f"the set holds no image of class {name!r}. There are: {there}.")
    return int(number)
