"""Calls a function that a user names: ``file.py:function`` or ``package.module:function``."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from tla_core.validation import did_you_mean


def call_named(text: str, **offered: Any) -> Any:
    """What a function of the user's returns; anything that is no function or class is given back as it is.

    Parameters
    ----------
    text : str
        ``file.py:function`` or ``package.module:function``.
    **offered
        Arguments that it gets if it has a parameter of that name without a default. None is not offered.

    Raises
    ------
    FileNotFoundError, ImportError
        If there is no such file or module.
    ValueError
        If there is no such function, or it needs other arguments. What it raises itself is passed on.
    """
    source, _, name = text.rpartition(":")
    module = _module_of_file(Path(source).expanduser(), text) if source.endswith(".py") else _module(source)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [each for each in vars(value) if not each.startswith("_")]
            functions = [each for each in names if getattr(getattr(value, each), "__module__", "") == module.__name__]
            raise ValueError(
                f"{source} has no {name}.{did_you_mean(part, names)} It has: {', '.join(functions) or 'no functions'}."
            )
        value = getattr(value, part)
    if not (inspect.isfunction(value) or inspect.isclass(value) or inspect.isbuiltin(value)):
        return value
    return value(**_arguments(value, text, offered))


def source_of(text: str) -> dict[str, str]:
    """What is called, as JSON values: another forward with the same weights is another model.

    Of ``file.py:function`` the function and the sha256 of the file, wherever it lies; of anything else its name.
    """
    source, _, name = text.rpartition(":")
    if not source.endswith(".py"):
        return {"network": text}
    return {"network": name, "source_sha256": hashlib.sha256(Path(source).expanduser().read_bytes()).hexdigest()}


def _module(name: str) -> Any:
    if "" not in sys.path:  # as `python -m` has it, which the installed command has not
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module itself needs
        raise ImportError(
            f"there is no module {name} to import from here. Expected package.module:function, or file.py:function."
        ) from error


def _module_of_file(path: Path, text: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, of which {text!r} names a function.")
    path = path.resolve()
    name = f"_tla_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    sys.path.insert(0, str(path.parent))  # so that it can import what lies beside it, as `python file.py` can
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


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
