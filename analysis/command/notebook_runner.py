"""Executes notebooks top to bottom, by papermill's Python API."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tla_core.checkpoint import write_atomic
from tla_core.validation import did_you_mean

_FRAME = re.compile(r'(\bsrc=")([^":#]+)')


class NotebookError(RuntimeError):
    """A notebook failed; the message names it, the cell and the error."""


def run_notebook(
    source: Path | str, target: Path | str, *, parameters: dict[str, Any], root: Path | str,
    read: Callable[[], dict[str, str]] = dict,
) -> Path:  # fmt: skip
    """Execute a notebook with parameters and store the executed copy.

    Parameters
    ----------
    source, target : Path or str
    parameters : dict
        For its ``parameters`` cell.
    root : Path or str
        Working directory of the kernel.
    read : callable
        Called when every cell has run: path -> checksum of what the notebook was made from, for its metadata.

    Returns
    -------
    Path
        The target; it appears only when every cell has run. A copy that failed is kept beside it as ``.failed.ipynb``.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook.
    NotebookError
        If a cell fails, or the kernel dies.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from analysis.command.served_kernel import kernel_manager_class

    source, target = Path(source), Path(target)
    if not source.is_file():
        known = sorted(p.stem for p in source.parent.glob("*.ipynb"))
        names, near = ", ".join(known) or "none", did_you_mean(source.stem, known)
        raise FileNotFoundError(f"there is no notebook {source.name}.{near} In {source.parent} there are: {names}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".running.ipynb")
    command = f"tla notebooks {source.stem} " + " ".join(f"--{k.lower()} {v}" for k, v in parameters.items())
    # The kernel inherits these: the command, for the sidecars of its figures, and the backend that shows a figure below
    # its cell, also where this process has another one.
    environment = {"TLA_COMMAND": command.strip(), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    try:
        with _environment(environment):
            papermill.execute_notebook(
                str(source), str(unfinished), parameters=parameters, cwd=str(root), kernel_name="python3",
                language="python", progress_bar=False, store_widget_state=False,  # it would hold the explorer's images
                kernel_manager_class=kernel_manager_class(), start_timeout=300,  # on a machine that is busy
            )  # fmt: skip
    except (PapermillExecutionError, DeadKernelError) as error:
        failed = target.with_suffix(".failed.ipynb")
        os.replace(unfinished, failed)
        reason = "the kernel died, perhaps for want of memory"
        if isinstance(error, PapermillExecutionError):
            reason = f"cell {error.exec_count} failed with {error.ename}: {error.evalue}"
        raise NotebookError(f"{source.name}: {reason}. The executed part is in {failed}.") from error
    except BaseException:  # no kernel was to be had, or this process is to end
        unfinished.unlink(missing_ok=True)
        raise
    content = json.loads(unfinished.read_text(encoding="utf-8"))
    content["metadata"]["tla_read"] = read()
    _drop_dead_widgets(content)
    _move_frames(content, source.parent, target.parent)
    write_atomic(target, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    unfinished.unlink()
    target.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    return target


def _drop_dead_widgets(content: dict[str, Any]) -> None:
    """Where a widget has a picture that stands in its place, that is kept alone: in the copy it has no kernel.

    A page that nbconvert makes would show nothing there, since it prefers the widget to the picture.
    """
    for cell in content["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output["data"].pop("application/vnd.jupyter.widget-view+json", None)


def _move_frames(content: dict[str, Any], old_folder: Path, new_folder: Path) -> None:
    """Let the frames in outputs show the same files from the new folder of a notebook as they did from the old one."""

    def moved(match: re.Match) -> str:
        path = old_folder / match[2]
        return match[1] + (os.path.relpath(path, new_folder) if path.is_file() else match[2])

    for cell in content["cells"]:
        for output in cell.get("outputs", ()):
            if isinstance(lines := output.get("data", {}).get("text/html"), list):
                output["data"]["text/html"] = [_FRAME.sub(moved, line) for line in lines]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    old_values = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old_values.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
