"""Draws figures and tables again from the files beside them: it needs no model, no dataset and no other result."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.display.drawings import DrawingError, load_drawing
from analysis.display.figures import save_figure, save_table
from analysis.scales.manifest import read_sidecars
from analysis.tables import Column, Table


@dataclass(frozen=True)
class Redrawn:
    """A figure or table that was drawn again.

    Attributes
    ----------
    stem : str
        ``"fig1"``.
    changed : tuple of str
        Files whose bytes differ from those that the sidecar names; empty if none does.
    """

    stem: str
    changed: tuple[str, ...]


def draw_again(folder: Path | str, names: Sequence[str] = (), *, out: Path | str | None = None) -> list[Redrawn]:
    """Draw figures and tables again, from what lies beside them alone.

    Parameters
    ----------
    folder : Path or str
        Such as ``figures/small``.
    names : sequence of str
        Such as ``"fig1"``; by default all.
    out : Path or str, optional
        Where to write; by default into the folder.

    Returns
    -------
    list of Redrawn

    Raises
    ------
    ValueError
        For a name that is not there.
    DrawingError
        If a figure or table lies there without what it was drawn from, or with a sidecar that cannot be read.
    """
    folder = Path(folder)
    sidecars = {sidecar.stem: sidecar for sidecar in read_sidecars(folder)}
    stems = list(sidecars)
    if unknown := sorted(set(names) - set(stems)):
        raise ValueError(f"{folder} has no {', '.join(unknown)}. There are: {', '.join(stems) or 'none'}.")
    chosen_stems = [stem for stem in stems if not names or stem in names]
    if faults := [sidecars[stem].fault for stem in chosen_stems if sidecars[stem].fault]:
        raise DrawingError(f"{folder}: {'; '.join(faults)}. Make it again: `tla notebooks --scale {folder.name}`.")
    return [_redraw(folder, stem, Path(out or folder)) for stem in chosen_stems]


def changed_when_redrawn(folder: Path | str, names: Sequence[str] = ()) -> list[Redrawn]:
    """Draw again into a temporary folder, and compare; the folder of the figures is left as it is."""
    with tempfile.TemporaryDirectory() as temporary:
        return draw_again(folder, names, out=temporary)


def _redraw(folder: Path, stem: str, out: Path) -> Redrawn:
    sidecar = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    statements = {key: sidecar[key] for key in ("sources", "shows")} | {"command": sidecar["provenance"]["command"]}
    numbers = sidecar["numbers"]
    if "columns" in sidecar:
        columns = [Column(**column) for column in sidecar["columns"]]
        table = Table(columns, numbers["records"], sidecar["caption"])
        paths = save_table(table, out / stem, numbers=numbers.get("more"), **statements)
    elif (drawing := folder / f"{stem}.safetensors").is_file():
        display = load_drawing(drawing)
        paths = save_figure(display, out / stem, numbers=numbers, caption=sidecar["caption"], **statements)
    else:
        raise DrawingError(
            f"{folder / stem} lies there without {drawing.name}, which it was drawn from: it was made before these were"
            f" kept. Make it again: `{statements['command']}`."
        )
    digests = json.loads(paths["json"].read_text(encoding="utf-8"))["files"]
    return Redrawn(stem, tuple(name for name, digest in sidecar["files"].items() if digests.get(name) != digest))
