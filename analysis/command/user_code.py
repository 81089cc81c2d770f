"""Calls a function that a user names: ``file.py:function`` or ``package.module:function``."""

import ast
import hashlib
import inspect
from pathlib import Path
from typing import Any

from tla_core.naming import import_object, imports_from


def call_named(text: str, **offered: Any) -> Any:
    """What a function of the user's returns; anything that is no function or class is given back as it is.

    Parameters
    ----------
    text : str
        As of `import_object`.
    **offered
        Arguments that it gets if it has a parameter of that name without a default. None is not offered.

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        As `import_object`; ValueError also if it needs other arguments. What it raises itself is passed on.
    """
    value = import_object(text)
    if not (inspect.isfunction(value) or inspect.isclass(value) or inspect.isbuiltin(value)):
        return value
    source = text.rpartition(":")[0]
    if not source.endswith(".py"):
        return value(**_arguments(value, text, offered))
    with imports_from(Path(source).expanduser().resolve().parent):  # what the function itself imports
        return value(**_arguments(value, text, offered))


def source_of(text: str) -> dict[str, str]:
    """What is called, as JSON values: another forward with the same weights is another model.

    Of ``file.py:function`` the function and the sha256 of the file, wherever it lies; of anything else its name.
    """
    source, _, name = text.rpartition(":")
    if not source.endswith(".py"):
        return {"network": text}
    return {"network": name, "source_sha256": hashlib.sha256(Path(source).expanduser().read_bytes()).hexdigest()}


def functions_of(path: Path) -> list[str]:
    """Functions and classes of a Python file, without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _arguments(function: Any, text: str, offered: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a builtin without a signature
        return {}
    required = [
        each.name for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]  # fmt: skip
    arguments = {name: value for name, value in offered.items() if name in required and value is not None}
    if lacking := [name for name in required if name not in arguments]:
        known = f" besides {', '.join(offered)}" if offered else ""
        raise ValueError(
            f"{text} needs {', '.join(lacking)}: expected a function that can be called without arguments{known}."
            " Write one that calls it."
        )
    return arguments
