"""One Display class per kind of figure: it is given what it draws, and computes nothing."""

from analysis.display.false_classes import FalseClassesDisplay, FalseClassPanel
from analysis.display.projection import ProjectionDisplay

__all__ = ["FalseClassPanel", "FalseClassesDisplay", "ProjectionDisplay"]
