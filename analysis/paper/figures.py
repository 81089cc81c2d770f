"""Figures 1 to 8 of any methods: a scale's, models of one's own beside them, or these alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.compared import check_same_images
from analysis.display import (
    ClassPairDisplay,
    ClassPairPanel,
    FalseClassesDisplay,
    FalseClassPanel,
    LandscapesDisplay,
    RetrievalDisplay,
)
from analysis.maps import align_maps, align_pair_maps, map_pair
from analysis.paper.neighbour_tables import query_to_show
from analysis.representations import RepresentationSet
from analysis.retrieval import retrieve
from analysis.scales.named import as_results
from analysis.scales.results import Results

Methods = Results | Mapping[str, Any]


def false_class_figures(
    results: Methods, methods: Mapping[str, Any] | None = None, *, dataset: str | None = None,
    classes: Sequence[str] = (), figures: int = 3,
) -> list[FalseClassesDisplay]:  # fmt: skip
    """Figures 1 to 3: where the adversarial examples of each class go, a column for each method.

    Parameters
    ----------
    results, methods
        As of `as_results`.
    dataset : str, optional
        Of the scale; by default the one that it draws maps of.
    classes : sequence of str
        Names of the classes to show; by default all.
    figures : int
        How many figures they are spread over, at the most.

    Raises
    ------
    ValueError
        For a class that there is not, and as `as_results`.
    """
    results, dataset, sets = _of_maps(results, methods, dataset)
    names = next(iter(sets.values())).class_names
    if unknown := [name for name in classes if name not in names]:
        raise ValueError(f"there is no class {unknown[0]!r}; expected some of {', '.join(names)}.")
    wanted_classes = [names.index(name) for name in classes] or np.unique(next(iter(sets.values())).labels).tolist()
    maps = {method: results.class_maps(method, dataset=dataset, classes=wanted_classes) for method in sets}
    first = next(iter(maps.values()))
    aligned = {method: align_maps(each, first) for method, each in maps.items()}
    rows = [[FalseClassPanel.from_map(aligned[method][k], names) for method in sets] for k in wanted_classes]
    parts = [part for part in np.array_split(np.arange(len(rows)), figures) if len(part)]
    return [FalseClassesDisplay([rows[row] for row in part], _titles(results, sets)) for part in parts]


def class_pair_figures(
    results: Methods,
    methods: Mapping[str, Any] | None = None,
    *,
    dataset: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    **settings: Any,
) -> list[ClassPairDisplay]:  # fmt: skip
    """Figures 4 to 6: what an attack makes of one class to pass for another, a panel for each method.

    Parameters
    ----------
    results, methods
        As of `as_results`.
    dataset : str, optional
        Of the scale; by default the one that it draws maps of.
    pairs : sequence of (str, str)
        Names of the class that is attacked and of the one that it is taken for; by default those of the scale.
    **settings
        Of `map_pair`, for pairs that are given.

    Raises
    ------
    ValueError
        Where no pairs are known.
    """
    results, dataset, sets = _of_maps(results, methods, dataset)
    names = next(iter(sets.values())).class_names
    if settings and not pairs:
        raise ValueError(f"settings are of pairs that are passed. Got {', '.join(settings)} without pairs=.")
    if pairs:
        maps = {method: [map_pair(reps, *pair, **settings) for pair in pairs] for method, reps in sets.items()}
    elif dataset in results.scale.class_pairs:
        maps = {method: results.pair_maps(method, dataset=dataset) for method in sets}
    else:
        raise ValueError(
            f"no pairs of classes are known. Pass pairs=[(attacked, mistaken_for)], of {', '.join(names)}."
        )
    first = next(iter(maps.values()))
    aligned = {method: align_pair_maps(each, first) for method, each in maps.items()}
    return [
        ClassPairDisplay(
            [ClassPairPanel.from_map(each[place], names) for each in aligned.values()], _titles(results, sets)
        )
        for place in range(len(first))
    ]


def retrieval_figure(
    results: Methods,
    methods: Mapping[str, Any] | None = None,
    *,
    dataset: str | None = None,
    row: int | None = None,
    k: int = 3,
    images: Any = None,
) -> RetrievalDisplay:  # fmt: skip
    """Figure 7: what a clean and an attacked image retrieve, a row for each method.

    Parameters
    ----------
    results, methods
        As of `as_results`; with the adversarial images of each, which `extract` keeps.
    dataset : str, optional
        Of the scale; by default the one that it draws maps of.
    row : int, optional
        Of the query, in the sets; by default the first on which the methods differ most.
    k : int
        Neighbours.
    images : optional
        The clean images, row by row those of the sets; by default those of the dataset that these name.
    """
    results, dataset, sets = _of_maps(results, methods, dataset)
    check_same_images(sets)
    retrieved = {results.title(method): retrieve(reps, k=k) for method, reps in sets.items()}
    first = next(iter(sets.values()))
    if images is None:
        images = results.test_images(dataset).images[first.indices]
    adv_images = {results.title(method): reps.adv_images for method, reps in sets.items()}
    row = query_to_show(retrieved) if row is None else row
    return RetrievalDisplay.from_retrievals(retrieved, images, adv_images, row=row, class_names=first.class_names)


def landscape_figure(
    results: Methods, methods: Mapping[str, Any] | None = None, *, dataset: str | None = None
) -> LandscapesDisplay:
    """Figure 8: the loss around a few images, a row for each method, whose models are asked.

    Parameters
    ----------
    results, methods
        As of `as_results`; models and runs, not representations.
    dataset : str, optional
        Of the scale; by default the one that it draws landscapes of.
    """
    results = as_results(results, methods, dataset=dataset or _dataset_of(results, "landscapes"))
    dataset = dataset or results.scale.dataset_of("landscapes")
    data, eps = results.test_images(dataset), results.attack(dataset=dataset).eps
    attacked = [method for method in results.methods_of(dataset) if method != "um"]
    landscapes = {results.title(method): results.landscapes(method, dataset=dataset) for method in attacked}
    rows = list(next(iter(landscapes.values())))
    titles = [data.class_names[int(data.labels[row])] for row in rows]
    images = [np.asarray(data.images[row]) for row in rows]
    by_row = {name: [landscapes_by_row[row] for row in rows] for name, landscapes_by_row in landscapes.items()}
    return LandscapesDisplay.from_landscapes(by_row, titles, eps=eps, images=images, relative=True)


def _of_maps(
    results: Methods, methods: Mapping[str, Any] | None, dataset: str | None
) -> tuple[Results, str, dict[str, RepresentationSet]]:
    """The results, the dataset of such figures, and method -> its representations."""
    results = as_results(results, methods, dataset=dataset or _dataset_of(results, "maps"))
    dataset = dataset or results.scale.dataset_of("maps")
    return results, dataset, {m: results.representations(m, dataset=dataset) for m in results.methods_of(dataset)}


def _dataset_of(results: Methods, kind: str) -> str | None:
    return results.scale.dataset_of(kind) if isinstance(results, Results) else None


def _titles(results: Results, sets: Mapping[str, RepresentationSet]) -> list[str]:
    """The model, and its robust accuracy."""
    robust = {method: reps.robust_accuracy for method, reps in sets.items()}
    return [
        results.title(method) if share is None else f"{results.title(method)}, robust {share:.1%}"
        for method, share in robust.items()
    ]
