"""One layout for files of arrays: safetensors that say their kind, with the arrays of several items grouped by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Groups = dict[str, dict[str, np.ndarray]]


def save_groups(path: Path | str, kind: str, groups: Mapping[str, Mapping[str, Any]], metadata: dict[str, Any]) -> None:
    """Write the arrays of several items into one file, atomically and with a checksum.

    Parameters
    ----------
    path : Path or str
    kind : str
    groups : mapping of str to mapping of str to ndarray
        Item -> name -> array; stored as ``item/name``.
    metadata : dict
        JSON values.
    """
    from tla_core.checkpoint import save_tensors

    arrays = {f"{item}/{name}": array for item, group in groups.items() for name, array in group.items()}
    save_tensors(path, arrays, {**metadata, "kind": kind})


def load_groups(path: Path | str, kind: str) -> tuple[Groups, dict[str, Any]]:
    """Read and verify what `save_groups` wrote.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no such file, or it is truncated, altered, or of another kind.
    """
    arrays, metadata = load_kind(path, kind)
    groups: Groups = {}
    for name, array in arrays.items():
        item, _, part = name.partition("/")
        groups.setdefault(item, {})[part] = array
    return groups, metadata


def load_kind(path: Path | str, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read and verify a file of arrays that says that it is of a kind.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no such file, or it is truncated, altered, or of another kind.
    """
    from tla_core.checkpoint import CheckpointError, load_tensors

    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{path} holds no {kind}. Got the kind {metadata.get('kind')!r}.")
    return {name: tensor.numpy() for name, tensor in tensors.items()}, metadata
