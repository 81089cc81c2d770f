"""Objects of people's own code by their names: ``file.py:function`` and ``package.module:function``."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tla_core.validation import did_you_mean


def import_object(spec: str, *, root: Path | str = ".") -> Any:
    """What a name in somebody's code stands for.

    Parameters
    ----------
    spec : str
        ``"file.py:name"``, a path that starts at `root`, or with ``~`` at home; or ``"package.module:name"``, as Python
        imports it where it is started. The name may have dots: ``"nets.py:Small.build"``.
    root : Path or str
        Where paths start. The folder of a file is on the import path while the file is run, so that it can import
        the modules beside it.

    Returns
    -------
    Any
        The object, whatever it is; it is not called.

    Raises
    ------
    FileNotFoundError, ImportError
        If there is no such file or module.
    ValueError
        If the name has no such form, or there is no such object. What the code itself raises while it is imported
        passes through.

    Examples
    --------
    >>> import_object("math:sqrt")(9.0)
    3.0
    """
    where, colon, name = str(spec).rpartition(":")
    if not (colon and where and name):
        raise ValueError(f"expected file.py:function or package.module:function. Got {spec!r}.")
    is_file = where.endswith(".py")
    module = _module_of_file(Path(root) / Path(where).expanduser(), spec) if is_file else _module(where)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            inside = getattr(value, "__dict__", {})
            names = [each for each in inside if not each.startswith("_")]
            functions = [each for each in names if getattr(inside[each], "__module__", "") == module.__name__]
            raise ValueError(
                f"{where} has no {name}.{did_you_mean(part, names)} It has: {', '.join(functions) or 'no functions'}."
            )
        value = getattr(value, part)
    return value


def source_digest(spec: str) -> str:
    """sha256 of the file that `import_object` finds a name in; of what that imports nothing is known.

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        As `import_object`, and for a module that has no file.
    """
    where = str(spec).rpartition(":")[0]
    path = Path(where).expanduser() if where.endswith(".py") else Path(getattr(_module(where), "__file__", None) or "")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, of which {spec!r} names a function.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def spec_of(function: Callable[..., Any]) -> str:
    """``file.py:function`` of a function, as `import_object` finds it again in any process.

    Raises
    ------
    ValueError
        If it stands in no file, as those of a notebook's cells, or inside another function.
    """
    name = getattr(function, "__qualname__", "")
    try:
        path = Path(inspect.getsourcefile(function) or "")
    except TypeError:
        path = Path()
    if not name.isidentifier() or not path.is_file():
        raise ValueError(
            f"expected a function that stands in a file, so that other processes find it. Got {function!r}: put it into"
            " a file of yours, and name it file.py:function."
        )
    return f"{path.resolve()}:{name}"


def _module(name: str) -> ModuleType:
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


def _module_of_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, of which {spec!r} names a function.")
    path = path.resolve()
    # Under a name of its own, so that it is run once and its classes stay the same, and a `models.py` hides no other;
    # of its content too, so that a file which has been edited is run again, as its digest says that it was.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    file = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(file)
    try:
        with imports_from(path.parent):
            file.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# Folder -> modules beside somebody's file that it imported: two folders may each have a `models.py`.
_BESIDE: dict[Path, dict[str, ModuleType]] = {}


@contextlib.contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Import modules of a folder by their bare names, and those that other folders have by these names not."""
    others = {name: module for each, modules in _BESIDE.items() if each != folder for name, module in modules.items()}
    hidden = {name: sys.modules.pop(name) for name in others if name in sys.modules}
    sys.modules.update(_BESIDE.get(folder, {}))
    before = {name.partition(".")[0] for name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        new = {
            name: module for name, module in list(sys.modules.items())
            if name.partition(".")[0] not in before and _lies_beside(name, module, folder)
        }  # fmt: skip
        _BESIDE.setdefault(folder, {}).update(new)
        sys.modules.update(hidden)


def _lies_beside(name: str, module: ModuleType, folder: Path) -> bool:
    """Whether a module or package of this name is in the folder itself: what an environment below it holds is not."""
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    depth = name.count(".") + (Path(file).stem == "__init__")
    return len(Path(file).parents) > depth and Path(file).resolve().parents[depth] == folder
