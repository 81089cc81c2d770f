"""What the page says above its panels: the data, the attack, the layer and how a map was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.representations import RepresentationSet

_OF_MAPS = {"perplexity": "perplexity {}", "n_neighbors": "{} neighbours", "n_iter": "{} iterations", "metric": "{}"}


def describe(reps: RepresentationSet) -> dict[str, str]:
    """Data, layer and attack of a set, as its ``meta`` has them; empty where it does not say."""
    meta = reps.meta
    data = " ".join(str(meta[key]) for key in ("dataset", "split") if meta.get(key))
    layer = meta.get("layer") or ""
    layer = ", ".join(map(str, layer)) if isinstance(layer, list | tuple) else str(layer)
    return {"data": data, "layer": layer, "attack": attack_text(meta.get("attack"))}


def attack_text(attack: Mapping[str, Any] | str | None) -> str:
    """An attack in a line.

    Examples
    --------
    >>> attack_text({"name": "pgd", "norm": "linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20, "restarts": 1})
    'PGD, eps 8/255, step size 2/255, 20 steps'
    >>> attack_text({"name": "pgd", "norm": "l2", "eps": 0.5, "steps": 40, "restarts": 3})
    'PGD (l2), eps 0.5, 40 steps, 3 restarts'
    """
    if not isinstance(attack, Mapping):
        return str(attack or "")
    name = str(attack.get("name", "")).upper()
    parts = [f"{name} ({attack['norm']})" if attack.get("norm", "linf") != "linf" else name]
    parts += [f"{key.replace('_', ' ')} {_level(attack[key])}" for key in ("eps", "step_size") if key in attack]
    if "steps" in attack:
        parts.append(f"{attack['steps']} steps")
    if attack.get("restarts", 1) != 1:
        parts.append(f"{attack['restarts']} restarts")
    return ", ".join(part for part in parts if part)


def _level(value: float) -> str:
    """A perturbation as people write it: in 255ths where it is a whole number of them, and else as a decimal."""
    levels = 255 * value
    return f"{round(levels)}/255" if levels >= 0.5 and abs(levels - round(levels)) < 1e-6 else f"{value:g}"


def map_text(params: Mapping[str, Any]) -> str:
    """What made a map, of `Projection.params`.

    Examples
    --------
    >>> map_text({"method": "tsne", "perplexity": 15.0, "n_iter": 750, "metric": "cosine", "learning_rate": 200})
    'perplexity 15, 750 iterations, cosine'
    """
    values = {key: params[key] for key in _OF_MAPS if params.get(key) is not None}
    texts = {key: value if isinstance(value, str) else f"{value:g}" for key, value in values.items()}
    return ", ".join(_OF_MAPS[key].format(value) for key, value in texts.items())
