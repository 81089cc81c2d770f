"""Objects of people's own code by their names: ``file.py:function`` and ``package.module:function``."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def import_object(spec: str, *, root: Path | str = ".") -> Any:
    """What a name in somebody's code stands for.

    Parameters
    ----------
    spec : str
        ``"file.py:name"``, a path that starts at `root`; or ``"package.module:name"``, as Python imports it. The name
        may have dots: ``"nets.py:Small.build"``.
    root : Path or str
        Where paths start. The folder of a file is on the import path while the file is run, so that it can import
        the modules beside it.

    Returns
    -------
    Any
        The object, whatever it is; it is not called.

    Raises
    ------
    ValueError
        If the name has no such form, or there is no such file, module or object. What the code itself raises while it
        is imported passes through.

    Examples
    --------
    >>> import_object("math:sqrt")(9.0)
    3.0
    """
    where, colon, name = str(spec).rpartition(":")
    if not (colon and where and name):
        raise ValueError(f"expected file.py:function or package.module:function. Got {spec!r}.")
    value: Any = _module_of_file(Path(root) / where, spec) if where.endswith(".py") else _module(where, spec)
    for part in name.split("."):
        if not hasattr(value, part):
            public = ", ".join(sorted(key for key in vars(value) if not key.startswith("_"))) or "nothing"
            raise ValueError(f"{spec!r}: {where} has no {part!r}. It has {public}.")
        value = getattr(value, part)
    return value


def _module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # of what the module itself imports
        raise ValueError(f"{spec!r}: there is no module {error.name!r}. Expected one that Python can import.") from None


def _module_of_file(path: Path, spec: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"{spec!r}: there is no file {path}.")
    # Under a name of its own, so that it is run once and its classes stay the same, and a `models.py` hides no other.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    file = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(file)
    sys.path.insert(0, str(path.parent))
    try:
        file.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module
