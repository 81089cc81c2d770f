"""Looks into the representations of any torch model: extraction, distance ratios, projections, neighbours, figures."""

import lazy_loader

# Module -> its public names.
_BY_MODULE = {
    "extraction": ["extract"],
    "representations": ["RepresentationSet"],
    "ratios": ["RatioResult", "ratio", "ratio_r", "ratio_r_prime"],
    "projection": ["Projection", "align", "project"],
    "compared": ["as_representations"],
    "maps": [
        "ClassMap", "PairMap", "align_maps", "align_pair_maps", "map_class", "map_classes", "map_pair",
    ],
    "neighbours": ["nearest_neighbours"],
    "ratio_errors": ["bootstrap_r_prime", "class_ratio_errors"],
    "similarity": ["linear_cka"],
    "retrieval": ["RetrievalResult", "RetrievedNeighbours", "knn_accuracy", "knn_predict", "retrieve"],
    "detection": ["DetectionResult", "class_log_densities", "detect", "detection_auc"],
    "landscape": ["Landscape", "input_landscape", "load_landscapes", "save_landscapes", "weight_landscape"],
    "landscape_directions": ["filter_directions"],
    "tables": ["Column", "Table"],
    "example_images": ["example_image_folder"],
    "display": [
        "ClassPairDisplay", "ClassPairPanel", "FalseClassPanel", "FalseClassesDisplay", "LandscapeDisplay",
        "LandscapesDisplay", "LinesDisplay", "ProjectionDisplay", "RetrievalDisplay", "RocDisplay", "SweepDisplay",
    ],
    "display.drawings": ["load_drawing"],
    "display.style": ["FigureStyle"],
    "display.figures": ["save_figure", "save_table"],
    "explore": ["EmbeddingExplorer"],
    "reports.contents": ["Report"],
    "reports.making": ["report"],
    "scales.results": ["MissingResultError", "Results"],
    "scales.named": ["as_results"],
    "scales.register": ["register_dataset", "register_method"],
    "paper.figures": ["class_pair_figures", "false_class_figures", "landscape_figure", "retrieval_figure"],
    "paper.architectures": ["table_1", "table_2"],
    "paper.accuracy_tables": ["failure_words", "main_accuracy_table", "run_accuracies"],
    "paper.ratio_tables": [
        "class_ratio_table", "difference_table", "distance_table", "ratio_spread_table", "ratio_table",
    ],
    "paper.sweep_tables": ["sweep_accuracies", "sweep_table"],
    "paper.neighbour_tables": [
        "detection_of", "detection_table", "knn_table", "query_to_show", "retrieval_table", "rise_table",
    ],
    "publish.model_cards": ["published_runs"],
}  # fmt: skip
_PUBLIC = {name: module for module, names in _BY_MODULE.items() for name in names}

# torch, matplotlib and openTSNE take seconds to import, so nothing is imported before it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "detection", "display", "extraction", "landscape", "maps", "neighbours", "projection",
        "ratios", "representations", "retrieval", "tables",
    ],
    submod_attrs=_BY_MODULE,
)  # fmt: skip
