"""t-SNE maps of clean and adversarial examples embedded together: of each class (Fig. 1-3), of pairs (Fig. 4-6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from analysis import frames
from analysis.frames import names_of
from analysis.projection import Projection, align, project
from analysis.representations import RepresentationSet
from analysis.stored import load_groups, save_groups
from tla_core.validation import check_whole

_OF_CLASS = ("clean_coords", "adv_coords", "clean_rows", "adv_rows", "adv_predictions")
_OF_PAIR = ("clean_coords", "adv_coords", "clean_labels", "clean_rows", "adv_rows")


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

    def to_dataframe(self, class_names: Sequence[str] | None = None):
        """One row for each point: ``kind`` (``"clean"`` or ``"adversarial"``), ``row`` of the set, ``class``,
        ``predicted`` (of adversarial examples), ``x``, ``y``. `class_names` stand for the classes' numbers."""
        (own,) = names_of([self.true_class], class_names)
        predicted = names_of(self.adv_predictions, class_names)
        clean = frames.points(self.clean_coords, row=self.clean_rows, **{"class": own}, predicted=None)
        adversarial = frames.points(self.adv_coords, row=self.adv_rows, **{"class": own}, predicted=predicted)
        return frames.stacked([({"kind": "clean"}, clean), ({"kind": "adversarial"}, adversarial)])

    def __repr__(self) -> str:
        points = f"{len(self.clean_rows)} clean and {len(self.adv_rows)} adversarial points"
        return f"ClassMap(class {self.true_class}, {points})"


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

    def to_dataframe(self, class_names: Sequence[str] | None = None):
        """One row for each point: ``kind`` (``"clean"`` or ``"adversarial"``), ``row`` of the set, ``class``, ``x``,
        ``y``. Adversarial examples are of the first class. `class_names` stand for the classes' numbers."""
        (first,) = names_of(self.classes[:1], class_names)
        clean_columns = {"row": self.clean_rows, "class": names_of(self.clean_labels, class_names)}
        clean = frames.points(self.clean_coords, **clean_columns)
        adversarial = frames.points(self.adv_coords, row=self.adv_rows, **{"class": first})
        return frames.stacked([({"kind": "clean"}, clean), ({"kind": "adversarial"}, adversarial)])

    def __repr__(self) -> str:
        points = f"{len(self.clean_rows)} clean and {len(self.adv_rows)} adversarial points"
        return f"PairMap(classes {self.classes[0]} to {self.classes[1]}, {points})"


# Of each class --------------------------------------------------------------------------------------------------------


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
        Passed to `project`. Without a perplexity it is 15, or the largest that fewer than 46 points allow.

    Raises
    ------
    ValueError
        Without an adversarial part, for a class that the set does not hold, or a limit that leaves no points.
    """
    clean_rows, adv_rows = _rows_of_class(reps, true_class, n_clean, n_adversarial)
    embedding = project(_features(reps, clean_rows, adv_rows), **_fitting(projection, clean_rows, adv_rows))
    return _class_map(reps, true_class, clean_rows, adv_rows, embedding)


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
    jobs = (delayed(project)(_features(reps, *pair), **_fitting(projection, *pair)) for pair in rows)
    projections = Parallel(n_jobs=min(n_jobs, len(classes)), return_as="generator")(jobs)
    projections = tqdm(projections, desc="map", unit="class", total=len(classes), disable=not progress)
    return {
        k: _class_map(reps, k, *pair, embedding) for k, pair, embedding in zip(classes, rows, projections, strict=True)
    }


def align_maps(maps: dict[int, ClassMap], reference: dict[int, ClassMap]) -> dict[int, ClassMap]:
    """Turn each class's map so that it lies on that of another model as well as it can, for display; see `align`.

    Raises
    ------
    ValueError
        If the two models' maps do not show the same classes and items.
    """
    if set(maps) != set(reference):
        raise ValueError(f"expected maps of the same classes. Got {sorted(maps)} and {sorted(reference)}.")
    aligned_maps = {}
    for k, class_map in maps.items():
        reference_map = reference[k]
        if not all(
            np.array_equal(getattr(class_map, rows), getattr(reference_map, rows))
            for rows in ("clean_rows", "adv_rows")
        ):
            raise ValueError(f"the maps of class {k} show other items. Make both with the same settings.")
        pair = [np.concatenate([m.clean_coords, m.adv_coords]) for m in (class_map, reference_map)]
        coords = align(*pair).astype(np.float32)
        n = len(class_map.clean_rows)
        aligned_maps[k] = replace(class_map, clean_coords=coords[:n], adv_coords=coords[n:])
    return aligned_maps


def save_maps(path: Path | str, maps: dict[int, ClassMap], metadata: dict[str, Any]) -> None:
    """Write the maps of a model into one file, atomically and with a checksum."""
    groups = {str(k): {name: getattr(m, name) for name in _OF_CLASS} for k, m in maps.items()}
    save_groups(path, "class maps", groups, {**metadata, "params": {str(k): m.params for k, m in maps.items()}})


def load_maps(path: Path | str) -> dict[int, ClassMap]:
    """Read what `save_maps` wrote, and verify it.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no such file, or it cannot be trusted.
    """
    groups, metadata = load_groups(path, "class maps")
    return {int(k): ClassMap(true_class=int(k), params=metadata["params"][k], **groups[k])
            for k in sorted(groups, key=int)}  # fmt: skip


# Of a pair of classes -------------------------------------------------------------------------------------------------


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
        See `map_class`.

    Raises
    ------
    ValueError
        Without an adversarial part, for a class that the set does not hold, a pair of one class, or too few points.
    """
    _check_attacked(reps)
    check_whole("n_clean", n_clean, 1)
    first, second = (_class_number(reps, name) for name in (attacked, mistaken_for))
    if first == second:
        raise ValueError(f"a pair must have two classes. Got {attacked!r} twice.")
    clean_rows = np.concatenate([evenly(np.flatnonzero(reps.labels == k), n_clean) for k in (first, second)])
    adv_rows = np.flatnonzero((reps.labels == first) & (reps.adv_predictions == second))
    embedding = project(_features(reps, clean_rows, adv_rows), **_fitting(projection, clean_rows, adv_rows))
    coords = embedding.coords.astype(np.float32)
    return PairMap(
        classes=(first, second),
        clean_coords=coords[: len(clean_rows)],
        adv_coords=coords[len(clean_rows) :],
        clean_labels=np.asarray(reps.labels)[clean_rows],
        clean_rows=clean_rows,
        adv_rows=adv_rows,
        n_attacked=int((reps.labels == first).sum()),
        params=embedding.params,
    )


def align_pair_maps(maps: Sequence[PairMap], reference: Sequence[PairMap]) -> list[PairMap]:
    """Turn each map so that its clean images lie on those of another model's as well as they can; see `align`.

    Raises
    ------
    ValueError
        If the two models' maps do not show the same pairs and clean images.
    """
    aligned_maps = []
    for pair_map, reference_map in zip(maps, reference, strict=True):
        if pair_map.classes != reference_map.classes or not np.array_equal(
            pair_map.clean_rows, reference_map.clean_rows
        ):
            raise ValueError(f"{pair_map} and {reference_map} show other images. Make both with the same settings.")
        clean, adversarial = align(pair_map.clean_coords, reference_map.clean_coords, others=pair_map.adv_coords)
        coords = {"clean_coords": clean.astype(np.float32), "adv_coords": adversarial.astype(np.float32)}
        aligned_maps.append(replace(pair_map, **coords))
    return aligned_maps


def save_pair_maps(path: Path | str, maps: Sequence[PairMap], metadata: dict[str, Any]) -> None:
    """Write the maps of a model into one file, atomically and with a checksum."""
    groups = {str(place): {name: getattr(m, name) for name in _OF_PAIR} for place, m in enumerate(maps)}
    settings = [{"classes": list(m.classes), "n_attacked": m.n_attacked, "params": m.params} for m in maps]
    save_groups(path, "pair maps", groups, {**metadata, "maps": settings})


def load_pair_maps(path: Path | str) -> list[PairMap]:
    """Read what `save_pair_maps` wrote, and verify it.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no such file, or it cannot be trusted.
    """
    groups, metadata = load_groups(path, "pair maps")
    return [
        PairMap(**groups[str(place)], **{**settings, "classes": tuple(settings["classes"])})
        for place, settings in enumerate(metadata["maps"])
    ]


# Of both --------------------------------------------------------------------------------------------------------------


def _rows_of_class(
    reps: RepresentationSet, true_class: int, n_clean: int, n_adversarial: int
) -> tuple[np.ndarray, np.ndarray]:
    _check_attacked(reps)
    check_whole("n_clean", n_clean, 1)
    check_whole("n_adversarial", n_adversarial, 1)
    rows = np.flatnonzero(reps.labels == true_class)
    if not len(rows):
        raise ValueError(f"the set holds no image of class {true_class}. There are: {np.unique(reps.labels).tolist()}.")
    return evenly(rows, n_clean), evenly(rows, n_adversarial)


def _check_attacked(reps: RepresentationSet) -> None:
    if reps.adv_features is None or reps.adv_predictions is None:
        raise ValueError("the set has no adversarial part: pass attack= to extract.")


def _features(reps: RepresentationSet, clean_rows: np.ndarray, adv_rows: np.ndarray) -> np.ndarray:
    return np.concatenate([reps.features[clean_rows], reps.adv_features[adv_rows]])


def _fitting(projection: dict[str, Any], *rows: np.ndarray) -> dict[str, Any]:
    """The settings of a map of so few points: t-SNE needs three times the perplexity, and one more."""
    largest = (sum(map(len, rows)) - 1) // 3
    return {"perplexity": max(1, min(15, largest)), **projection}


def _class_map(
    reps: RepresentationSet, true_class: int, clean_rows: np.ndarray, adv_rows: np.ndarray, embedding: Projection
) -> ClassMap:
    coords = embedding.coords.astype(np.float32)
    return ClassMap(
        true_class=true_class,
        clean_coords=coords[: len(clean_rows)],
        adv_coords=coords[len(clean_rows) :],
        clean_rows=clean_rows,
        adv_rows=adv_rows,
        adv_predictions=reps.adv_predictions[adv_rows],
        params=embedding.params,
    )


def evenly(rows: np.ndarray, n: int) -> np.ndarray:
    """At most n of the rows, evenly spread over them."""
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).round().astype(np.int64)]


def _class_number(reps: RepresentationSet, name: int | str) -> int:
    names = list(reps.class_names or ())
    number = names.index(name) if name in names else name
    if isinstance(number, str) or not (reps.labels == number).any():
        classes = [names[k] if names else k for k in np.unique(reps.labels).tolist()]
        raise ValueError(f"the set holds no image of class {name!r}. There are: {classes}.")
    return int(number)
