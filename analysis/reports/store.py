"""What a report has measured already, in files that say what they were made from: an interrupted report goes on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tla_core.checkpoint import CheckpointError, read_metadata, write_json
from tla_core.config import canonical_json

Value = TypeVar("Value")


def kept(
    path: Path,
    inputs: str,
    make: Callable[[], Value],
    save: Callable[[Path, Value], None],
    load: Callable[[Path], Value],
) -> Value:
    """What the file holds, if it was made from the same inputs; otherwise it is made, and stored atomically.

    Parameters
    ----------
    path : Path
        A file of arrays, whose metadata has ``inputs``.
    inputs : str
        Digest of all that the value depends on.
    make, save, load : callable
        `save` writes `inputs` among the metadata.
    """
    try:
        if read_metadata(path).get("inputs") == inputs:
            return load(path)
    except (FileNotFoundError, CheckpointError):
        pass  # damaged files are made again
    value = make()
    save(path, value)
    return value


def read_kept_json(path: Path, inputs: str) -> Any:
    """The value of a JSON file that `write_kept_json` wrote with the same inputs; None otherwise, and where it was
    altered since."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        is_whole = stored["inputs"] == inputs and stored["sha256"] == _digest(stored["value"])
        return stored["value"] if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_kept_json(path: Path, inputs: str, value: Any) -> None:
    write_json(path, {"inputs": inputs, "sha256": _digest(json.loads(json.dumps(value))), "value": value})


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
