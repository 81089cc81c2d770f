"""The embedding explorer: several models of the same images side by side, in a notebook or in one file."""

from analysis.explore.explorer import EmbeddingExplorer

__all__ = ["EmbeddingExplorer"]
