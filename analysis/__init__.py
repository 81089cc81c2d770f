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
    "bootstrap_r_prime": "ratios",
    "RatioResult": "ratios",
    "project": "projection",
    "Projection": "projection",
    "align": "projection",
    "nearest_neighbours": "retrieval",
    "retrieve": "neighbour_metrics",
    "RetrievalResult": "neighbour_metrics",
    "RetrievedNeighbours": "neighbour_metrics",
    "knn_accuracy": "neighbour_metrics",
    "knn_predict": "neighbour_metrics",
    "detection_auc": "detection",
    "DetectionResult": "detection",
    "detect": "detection",
    "class_log_densities": "detection",
    "input_landscape": "landscape",
    "weight_landscape": "landscape",
    "Landscape": "landscape",
    "filter_directions": "landscape_directions",
    "save_landscapes": "landscape",
    "load_landscapes": "landscape",
    "map_class": "class_maps",
    "map_classes": "class_maps",
    "align_maps": "class_maps",
    "ClassMap": "class_maps",
    "map_pair": "pair_maps",
    "align_pair_maps": "pair_maps",
    "PairMap": "pair_maps",
    "ProjectionDisplay": "display",
    "FalseClassPanel": "display",
    "FalseClassesDisplay": "display",
    "ClassPairPanel": "display",
    "ClassPairDisplay": "display",
    "RetrievalDisplay": "display",
    "RocDisplay": "display",
    "SweepDisplay": "display",
    "LandscapeDisplay": "display",
    "LandscapesDisplay": "display",
    "table_1": "architectures",
    "table_2": "architectures",
    "ratio_table": "ratio_tables",
    "ratio_spread_table": "ratio_tables",
    "difference_table": "ratio_tables",
    "distance_table": "ratio_tables",
    "rise_table": "paper_tables",
    "sweep_table": "sweep_tables",
    "sweep_accuracies": "sweep_tables",
    "main_accuracy_table": "accuracy_tables",
    "run_accuracies": "accuracy_tables",
    "failure_words": "accuracy_tables",
    "knn_table": "paper_tables",
    "detection_of": "paper_tables",
    "detection_table": "paper_tables",
    "query_to_show": "paper_tables",
    "example_image_folder": "example_images",
    "published_runs": "model_cards",
    "Column": "tables",
    "Table": "tables",
    "save_figure": "figures",
    "save_table": "figures",
    "EmbeddingExplorer": "explore",
    "Results": "results",
    "MissingResultError": "results",
}

__all__ = list(_PUBLIC)
_MODULES = (
    "ratios", "extraction", "projection", "retrieval", "neighbour_metrics", "detection", "landscape", "class_maps",
    "pair_maps",
    "display", "figures", "tables", "representations",
)  # fmt: skip


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
