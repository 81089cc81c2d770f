"""Stores figures and tables: PDF, PNG and SVG, or the table's formats, with a JSON sidecar that says what they show.

The image files and the numbers of the sidecar are byte-identical when made again from the same stored results; only
the provenance (commit, date, command) differs.
"""

import datetime
import hashlib
import io
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from analysis.display.style import DEFAULT_STYLE, FigureStyle
from analysis.tables import Table

# No creation date, producer or software: these would change the bytes.
_METADATA = {
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None},
}


def save_figure(
    figure,
    path: Path | str,
    *,
    numbers: Any = None,
    caption: str = "",
    shows: Sequence[str] = (),
    sources: list[dict[str, Any]] | None = None,
    command: str | None = None,
) -> dict[str, Path]:
    """Write a figure as PDF, PNG and SVG, and a JSON sidecar beside them; of a Display also what it was drawn from.

    Parameters
    ----------
    figure : Display or matplotlib.figure.Figure
        A Display is drawn anew, in the style that it was last drawn in, and `tla redraw` draws the same again: a layout
        starts from the one before, so that a figure that was shown already may get other bytes. Pass its ``figure_``
        to save what was changed in it by hand.
    path : Path or str
        Without an ending: ``figures/mini/fig1`` gives ``fig1.pdf`` and so on.
    numbers : JSON value
        What the figure shows, in numbers. numpy's are welcome; NaN and infinity, which JSON does not have, become null.
    caption : str
    shows : sequence of str
        Which figures or tables of the paper it shows, such as ``["fig1"]``; see `analysis.scales.manifest.EXPECTED`.
    sources : list of dict
        For each model: its run, configuration identity and checkpoint checksum.
    command : str, optional
        The command that makes the figure; by default that of this process.

    Returns
    -------
    dict of str to Path
        Ending -> file, ``"json"`` included.
    """
    if hasattr(figure, "plot"):
        import matplotlib.pyplot as plt

        from analysis.display.drawings import copy_of, drawing_bytes

        clean_figure = copy_of(figure).plot().figure_
        contents = {**_images(clean_figure, figure.style), "safetensors": drawing_bytes(figure)}
        plt.close(clean_figure)
    else:
        contents = _images(figure, DEFAULT_STYLE)
    return _save(contents, path, {"numbers": numbers, "shows": list(shows)}, caption, sources, command)


def save_table(
    table: Table,
    path: Path | str,
    *,
    shows: Sequence[str] = (),
    sources: list[dict[str, Any]] | None = None,
    numbers: Any = None,
    command: str | None = None,
) -> dict[str, Path]:
    """Write a table as CSV, LaTeX, Markdown and HTML, and a JSON sidecar. See `save_figure`.

    `numbers` adds to the records of the table.
    """
    contents = {
        "csv": table.to_csv(),
        "tex": table.to_latex(),
        "md": table.to_markdown(),
        "html": table.to_html(),
    }
    numbers = {"records": list(table.rows), **({"more": numbers} if numbers is not None else {})}
    columns = [{key: value for key, value in asdict(column).items() if value is not None} for column in table.columns]
    contents = {ending: text.encode() for ending, text in contents.items()}
    record = {"columns": columns, "numbers": numbers, "shows": list(shows)}
    return _save(contents, path, record, table.caption, sources, command)


def _images(figure, style: FigureStyle) -> dict[str, bytes]:
    contents = {}
    with style.applied(), _steady_layout(figure):
        for ending, metadata in _METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=metadata)
            contents[ending] = buffer.getvalue()
    contents["svg"] = _numbered_clips(contents["svg"])
    return contents


def _numbered_clips(svg: bytes) -> bytes:
    """Name clip paths by their order. matplotlib names them by a hash of all digits, and the last digits vary."""
    names = re.findall(rb'<clipPath id="(\w+)"', svg)
    numbers = {name: f"clip{place}".encode() for place, name in enumerate(names)}
    return re.sub(
        rb'(<clipPath id="|clip-path="url\(#)(\w+)', lambda match: match[1] + numbers.get(match[2], match[2]), svg
    )


@contextmanager
def _steady_layout(figure) -> Iterator[None]:
    """Lay the figure out once, with rounded positions.

    The last digits of a layout differ from one solution to the next.
    """
    engine = figure.get_layout_engine()
    if engine is None:
        yield
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    try:
        for ax in figure.axes:
            place = np.round(ax.get_position(original=True).bounds, 9)
            ax.set_position(place.tolist())
        yield
    finally:
        figure.set_layout_engine(engine)


def _save(contents: dict[str, bytes], path, record: dict[str, Any], caption, sources, command) -> dict[str, Path]:
    from tla_core.checkpoint import write_atomic, write_json
    from tla_core.runtime import git_commit, package_versions

    path = Path(path)
    files = {ending: path.with_name(f"{path.name}.{ending}") for ending in contents}
    for ending, content in contents.items():
        write_atomic(files[ending], content)
    sidecar = {
        "format": 1,
        "name": path.name,
        "caption": caption,
        "files": {
            files[ending].name: hashlib.sha256(content).hexdigest() for ending, content in sorted(contents.items())
        },
        **plain(record),
        "sources": sources or [],
        "provenance": {
            "command": command or os.environ.get("TLA_COMMAND") or " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "commit": git_commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": package_versions(),
        },
    }
    files["json"] = path.with_name(f"{path.name}.json")
    write_json(files["json"], sidecar)
    return files


def plain(value: Any) -> Any:
    """JSON values of arrays, tuples and numbers of numpy; NaN and infinity, which JSON does not have, become null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
