"""One Display class per kind of figure: it is given what it draws, and computes nothing."""

from analysis.display.class_pairs import ClassPairDisplay, ClassPairPanel
from analysis.display.curves import RocCurve, RocDisplay
from analysis.display.effects import EffectsDisplay
from analysis.display.false_classes import FalseClassesDisplay, FalseClassPanel
from analysis.display.landscape import SURFACE_CONFIG, LandscapeDisplay, LandscapesDisplay
from analysis.display.projection import ProjectionDisplay
from analysis.display.retrieval import RetrievalDisplay, RetrievalStrip
from analysis.display.sweep import SweepDisplay

__all__ = [
    "SURFACE_CONFIG",
    "ClassPairDisplay",
    "ClassPairPanel",
    "EffectsDisplay",
    "FalseClassPanel",
    "FalseClassesDisplay",
    "LandscapeDisplay",
    "LandscapesDisplay",
    "ProjectionDisplay",
    "RetrievalDisplay",
    "RetrievalStrip",
    "RocCurve",
    "RocDisplay",
    "SweepDisplay",
]
