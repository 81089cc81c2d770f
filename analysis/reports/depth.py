"""What an attack does to a network block by block: which blocks there are, and what is measured at each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from analysis.ratios import ratio_r, ratio_r_prime
from analysis.representations import RepresentationSet
from analysis.retrieval import knn_accuracy
from analysis.similarity import linear_cka
from tla_core.layers import Layer, list_layers
from tla_core.wrapping import core, is_exported

MOST_BLOCKS = 10
_FEWEST_BLOCKS = 4
NEIGHBOURS = 10
# What changes a block's output neither in kind nor in place, and is no place to read it.
_SILENT = (nn.Dropout, nn.Flatten, nn.Identity, nn.Dropout2d)


def blocks_of(model: nn.Module, image: Tensor, limit: int = MOST_BLOCKS) -> list[str]:
    """Names of layers for `extract` that cut a network into blocks, first to last; none where they cannot be read.

    Containers are opened, and then the largest modules until there are four. What follows a module with weights, such
    as batch norm, an activation and a pooling, belongs to it. Maps and tokens are averaged over their places.
    """
    inside = core(model)
    if is_exported(inside) or not hasattr(inside, "named_modules"):
        return []
    layers = {layer.path: layer for layer in list_layers(model, image) if layer.calls == 1 and layer.shape}
    order = {path: place for place, path in enumerate(layers)}
    modules = dict(inside.named_modules())

    def children(path: str) -> list[str]:
        inner = []
        for name, _ in modules[path].named_children():
            child = f"{path}.{name}" if path else name
            inner += [child] if child in layers else children(child)
        return sorted(inner, key=order.__getitem__)

    nodes = children("")
    while True:
        groups = _groups(nodes, modules, children)
        open_ones = [path for path in nodes if type(modules[path]) is nn.Sequential and children(path)]
        if not open_ones and len(groups) < _FEWEST_BLOCKS:
            composite = [path for path in nodes if len(children(path)) > 1]
            open_ones = sorted(composite, key=lambda path: -len(list(modules[path].modules())))[:1]
        if not open_ones:
            break
        nodes = [inner for path in nodes for inner in (children(path) if path in open_ones else [path])]
    names = [name for group in groups if (name := _reading(group, layers, modules))]
    if len(names) > limit:
        names = [names[place] for place in np.linspace(0, len(names) - 1, limit).round().astype(int)]
    return names


def _groups(nodes: list[str], modules: dict[str, nn.Module], children: Callable) -> list[list[str]]:
    groups: list[list[str]] = []
    for path in nodes:
        weighted = any(parameter.ndim > 1 for parameter in modules[path].parameters())
        if weighted or children(path):
            groups.append([path])
        elif groups:
            groups[-1].append(path)
    return groups


def _reading(group: list[str], layers: dict[str, Layer], modules: dict[str, nn.Module]) -> str | None:
    readable = [path for path in group if not isinstance(modules[path], _SILENT)]
    if not readable:
        return None
    last = readable[-1]
    return last if len(layers[last].shape) == 1 else f"{last}:mean"


def measured_depth(sets: dict[str, RepresentationSet], n_given: int) -> list[dict[str, Any]]:
    """r, r', kNN accuracy and linear CKA between clean and adversarial of each layer, in the order given;
    r' is estimated for all images that were given.

    A number that a layer does not have, such as an angle of a representation that is zero, is None, and ``reasons``
    says why. A layer that gives the same as a later one is left out.
    """
    names = list(sets)
    layers = []
    for place, name in enumerate(names):
        if not any(_same(sets[name], sets[later]) for later in names[place + 1 :]):
            layers.append(name)
    return [_measured(name, sets[name], n_given) for name in layers]


def _same(one: RepresentationSet, other: RepresentationSet) -> bool:
    if one.features.shape != other.features.shape:
        return False
    return bool(np.abs(one.features - other.features).max() <= 1e-3 * np.abs(other.features).max())


def _measured(name: str, reps: RepresentationSet, n_given: int) -> dict[str, Any]:
    own = np.arange(len(reps))
    k = min(NEIGHBOURS, len(reps) - 1)
    options = {"k": k, "exclude": own}
    measures = {
        "r": lambda: ratio_r(reps).value,
        "r_prime": lambda: ratio_r_prime(reps, drawn_from=n_given).value,
        "knn_clean": lambda: knn_accuracy(reps.features, reps.labels, reps.features, reps.labels, **options),
        "knn_adversarial": lambda: knn_accuracy(reps.features, reps.labels, reps.adv_features, reps.labels, **options),
        "cka": lambda: linear_cka(reps.features, reps.adv_features),
    }
    record: dict[str, Any] = {
        "layer": name, "read_from": reps.meta["read_from"], "units": reps.features.shape[1], "k": k, "reasons": {},
    }  # fmt: skip
    for key, measure in measures.items():
        try:
            value = measure()
            record[key] = float(value) if np.isfinite(value) else None
        except ValueError as error:
            record[key], record["reasons"][key] = None, str(error)
    return record
