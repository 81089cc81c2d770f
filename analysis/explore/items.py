"""What the explorer shows: the same images in every model, in one order, and no more than a browser can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.features import check_nonzero_rows
from analysis.representations import RepresentationSet

MOST_MODELS = 6
MOST_STEPS = 60


@dataclass(frozen=True, eq=False)
class Items:
    """The sets of all models with their rows in one order, and the rows that are shown.

    Attributes
    ----------
    sets : dict
        Model -> `RepresentationSet` of all images: row i is the same image in each.
    rows : ndarray of shape (n,), int64
        Rows that are shown, ascending.
    orders : dict
        Model -> ndarray, (N,): the row that each row of `sets` had in the set that was given.
    notes : tuple of str
        What a reader must know: that it is a sample, and which models have no adversarial part.
    """

    sets: dict[str, RepresentationSet]
    rows: np.ndarray
    orders: dict[str, np.ndarray]
    notes: tuple[str, ...]

    @property
    def first(self) -> RepresentationSet:
        return next(iter(self.sets.values()))


def match_items(
    sets: Mapping[str, RepresentationSet], *, max_points: int, random_state: int, most_sets: int = MOST_MODELS
) -> Items:
    """Check that the sets belong together, bring their rows into the order of the first, and choose what is shown.

    Parameters
    ----------
    sets : mapping of str to RepresentationSet
        One to `most_sets`.
    max_points : int
        The most points of a panel; an image with an adversarial example is two.
    random_state : int
        Seeds the sample.
    most_sets : int
        The most sets.

    Raises
    ------
    ValueError
        For another number of models, different images (naming those that are missing), labels or class names, an
        image that is in a set twice, or a representation without a direction.
    """
    # Each set by itself.
    if not isinstance(sets, Mapping) or not 1 <= len(sets) <= most_sets:
        argument = f"{len(sets)} sets" if isinstance(sets, Mapping) else f"a {type(sets).__name__}"
        raise ValueError(
            f'expected 1 to {most_sets} sets by name, such as {{"UM": reps, "TLA": reps}}. Got {argument}.'
        )
    names = list(sets)
    for name, reps in sets.items():
        if not isinstance(name, str) or not isinstance(reps, RepresentationSet):
            raise ValueError(
                f"expected names and RepresentationSets. Got {name!r}: a {type(reps).__name__}; make one with"
                " analysis.extract or RepresentationSet.from_arrays."
            )
        _check_set(name, reps)
    first, orders, ordered = sets[names[0]], {}, {}
    for name, reps in sets.items():
        orders[name] = order = _order(names[0], first, name, reps)
        ordered[name] = reps if (order == np.arange(len(order))).all() else reps.subset(order)
        if not (ordered[name].labels == first.labels).all():
            row = int(np.argmax(ordered[name].labels != first.labels))
            raise ValueError(
                f"{name} and {names[0]} must give an image the same true class. Got {ordered[name].labels[row]} and"
                f" {first.labels[row]} for index {first.indices[row]}; are they of the same dataset and split?"
            )
        if reps.class_names != first.class_names:
            raise ValueError(f"{name} and {names[0]} must have the same class names. Got other ones.")
    notes = []
    clean_only = [name for name, reps in sets.items() if reps.adv_features is None]
    if clean_only:
        notes.append(f"{', '.join(clean_only)}: no adversarial part, so clean points only.")
    per_image = 1 if len(clean_only) == len(sets) else 2
    if max_points < per_image:
        raise ValueError(f"max_points must be at least {per_image}. Got {max_points}.")
    rows = _sample(first.labels, max_points // per_image, random_state)
    if len(rows) < len(first):
        notes.append(f"{len(rows):,} of {len(first):,} images are shown: a random sample of each class.")
    return Items(ordered, rows, orders, tuple(notes))


def _check_set(name: str, reps: RepresentationSet) -> None:
    if len(reps) == 0:
        raise ValueError(f"{name} holds no images; expected at least one.")
    for part in ("features", "adv_features"):
        if (features := getattr(reps, part)) is None:
            continue
        # A set checks this when it is made, but its arrays may have been written to since.
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(f"{part} of {name} must be finite. Got NaN or infinity in row {int(np.argmin(finite))}.")
        check_nonzero_rows(features, f"{part} of {name}", "angular")
    values, counts = np.unique(reps.indices, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{name} must hold an image once. Got index {values[np.argmax(counts > 1)]} {counts.max()} times; pass"
            " indices= to analysis.extract."
        )


def _order(first_name: str, first: RepresentationSet, name: str, reps: RepresentationSet) -> np.ndarray:
    """Rows of `reps` in the order of the images of `first`."""
    pairs = ((name, reps, first_name, first), (first_name, first, name, reps))
    for lacking_name, lacking_set, full_name, full_set in pairs:
        missing = np.setdiff1d(full_set.indices, lacking_set.indices)
        if len(missing):
            examples = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise ValueError(
                f"all models must show the same images. {lacking_name} lacks {len(missing)} of the {len(full_set)} that"
                f" {full_name} has: indices {examples}. Extract them from the same images, or take"
                " RepresentationSet.subset of both."
            )
    rows_by_index = np.argsort(reps.indices)
    return rows_by_index[np.searchsorted(reps.indices, first.indices, sorter=rows_by_index)]


def _sample(labels: np.ndarray, limit: int, random_state: int) -> np.ndarray:
    """Rows, ascending: all, or at most so many, of each class as large a share as of the others."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    rng = np.random.default_rng(random_state)
    position = np.empty(len(labels))
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    # The first of each class by its relative position: every class gives the same share, but for rounding.
    return np.sort(np.argsort(position, kind="stable")[:limit])
