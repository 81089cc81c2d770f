"""Looks into the representations of any torch model: extraction, distance ratios, projections, neighbours, figures."""

import importlib
from typing import Any

# Name -> module. torch, matplotlib and openTSNE take seconds to import, so nothing is imported before it is used.
_PUBLIC = {
    "extract": "extraction",
    "RepresentationSet": "representations",
    "ratio": "ratios",
    "ratio_r": "ratios",
    "ratio_r_prime": "ratios",
    "RatioResult": "ratios",
    "project": "projection",
    "Projection": "projection",
    "nearest_neighbours": "retrieval",
    "map_class": "class_maps",
    "map_classes": "class_maps",
    "ClassMap": "class_maps",
    "ProjectionDisplay": "display",
    "FalseClassPanel": "display",
    "FalseClassesDisplay": "display",
    "Column": "tables",
    "Table": "tables",
    "save_figure": "figures",
    "save_table": "figures",
    "Results": "results",
    "MissingResultError": "results",
}

__all__ = list(_PUBLIC)
_MODULES = ("ratios", "extraction", "projection", "retrieval", "display", "figures", "tables", "representations")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_MODULES})
