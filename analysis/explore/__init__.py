"""The embedding explorer: several models of the same images side by side, in a notebook or in one file."""

from typing import Any

__all__ = ["EmbeddingExplorer"]


def __getattr__(name: str) -> Any:
    # `tla --help` imports this package for the sake of its command, and must not wait for numpy.
    if name != "EmbeddingExplorer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from analysis.explore.explorer import EmbeddingExplorer

    return EmbeddingExplorer
