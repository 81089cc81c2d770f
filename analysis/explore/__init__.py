"""The embedding explorer: several models of the same images side by side, in a notebook or in one file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"explorer": ["EmbeddingExplorer"]})
