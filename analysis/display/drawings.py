"""What a figure was drawn from, in a file beside it: with it the figure is drawn again, without any other result."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis import display as displays
from analysis.display.style import FigureStyle

# A file may name these classes, and no others are made from it.
_CLASSES = {name: getattr(displays, name) for name in displays.__all__ if inspect.isclass(getattr(displays, name))}


class DrawingError(ValueError):
    """A file from which nothing can be drawn; the message says what is wrong with it."""


def drawing_bytes(display: Any) -> bytes:
    """The file of a Display: its arrays, exactly, and the rest of it as JSON that names them, with a checksum.

    The same Display gives the same bytes.

    Parameters
    ----------
    display : Display
        One of `analysis.display`.

    Raises
    ------
    TypeError
        For what is no Display, or holds something that is neither an array nor a JSON value.
    """
    from tla_core.checkpoint import tensor_bytes

    arrays: dict[str, np.ndarray] = {}

    def packed(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            arrays[str(len(arrays))] = value
            return {"array": len(arrays) - 1}
        if isinstance(value, tuple):
            return {"tuple": [packed(inner) for inner in value]}
        if isinstance(value, list):
            return [packed(inner) for inner in value]
        if isinstance(value, Mapping):
            return {"mapping": [[key, packed(inner)] for key, inner in value.items()]}
        name = type(value).__name__
        if _CLASSES.get(name) is not type(value):
            raise TypeError(f"a drawing holds Displays, arrays, numbers and text. Got a {name}.")
        return {"display": name, "arguments": {key: packed(inner) for key, inner in _arguments(value).items()}}

    metadata = {"kind": "drawing", "contents": packed(display)}
    if style := display.style.to_dict():
        metadata["style"] = packed(style)
    return tensor_bytes(arrays, metadata)


def copy_of(display: Any) -> Any:
    """A Display of the same contents and style that is not drawn yet."""
    copy = type(display)(**_arguments(display))
    copy.style = display.style
    return copy


def _arguments(display: Any) -> dict[str, Any]:
    """What the constructor took, which every Display keeps in attributes of the same names."""
    return {key: getattr(display, key) for key in inspect.signature(type(display)).parameters}


def load_drawing(path: Path | str) -> Any:
    """The Display of a file; call its ``plot``.

    Raises
    ------
    FileNotFoundError
    CheckpointError
        If the file is truncated or altered.
    DrawingError
        If it is no drawing.
    """
    from tla_core.checkpoint import load_tensors

    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != "drawing":
        raise DrawingError(f"{path} holds no drawing. Got {metadata.get('kind') or 'something else'}.")

    def unpacked(value: Any) -> Any:
        if isinstance(value, list):
            return [unpacked(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return tensors[str(value["array"])].numpy()
        if "tuple" in value:
            return tuple(unpacked(value["tuple"]))
        if "mapping" in value:
            return {key: unpacked(inner) for key, inner in value["mapping"]}
        if value["display"] not in _CLASSES:
            raise DrawingError(f"{path} names an unknown Display {value['display']!r}; expected {', '.join(_CLASSES)}.")
        return _CLASSES[value["display"]](**{key: unpacked(inner) for key, inner in value["arguments"].items()})

    display = unpacked(metadata["contents"])
    if "style" in metadata:
        display.style = FigureStyle(**unpacked(metadata["style"]))
    return display
