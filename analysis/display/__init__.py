"""One Display class per kind of figure: it is given what it draws, and computes nothing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "class_pairs": ["ClassPairDisplay", "ClassPairPanel"],
        "curves": ["RocCurve", "RocDisplay"],
        "effects": ["EffectsDisplay"],
        "false_classes": ["FalseClassPanel", "FalseClassesDisplay"],
        "landscape": ["LandscapeDisplay", "LandscapesDisplay"],
        "lines": ["LinesDisplay"],
        "projection": ["ProjectionDisplay"],
        "retrieval": ["RetrievalDisplay", "RetrievalStrip"],
        "surfaces": ["SURFACE_CONFIG"],
        "sweep": ["SweepDisplay"],
    },
)
