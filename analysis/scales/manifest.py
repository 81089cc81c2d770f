"""Says which files show which figure or table of the paper, and whether they are all there and unchanged.

A sidecar, the JSON that `save_figure` and `save_table` write beside their files, names the artefacts that it shows by
how its file name begins:

* ``fig<n>`` and ``table<n>`` show that one figure or table;
* ``fig<n>_<m>`` and ``table<n>_<m>``, m greater than n, show all from n to m: ``fig1_3`` shows fig1, fig2 and fig3;
* ``main_accuracy``, ``knn`` and ``detection`` show those results of the main text, ``knn_and_detection`` both.

Behind this the name ends, or goes on with ``-`` or ``_``: ``fig4-cifar10``, ``table4_6_sweeps``, ``knn_accuracy``,
``main_accuracy_mnist``. A number right behind ``fig<n>_`` is always the end of a range; write ``fig4-10-steps`` for
anything else. A sidecar with another name, such as ``figure1`` or ``detections``, shows no artefact and is listed among
the others. Several sidecars may show one artefact. Notebooks are named by the same rule, so that a missing artefact's
notebook is known.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.scales.scale import load_scale

EXPECTED = (
    *(f"fig{n}" for n in range(1, 9)),
    *(f"table{n}" for n in range(1, 7)),
    "main_accuracy",
    "knn",
    "detection",
)
MANIFEST = "manifest.json"
_NUMBERED = re.compile(r"(fig|table)([1-9]\d*)(?:_(\d+))?(?=[-_]|$)")
_NAMED = re.compile(r"(main_accuracy|knn|detection)(?=[-_]|$)")


class ManifestError(RuntimeError):
    """Artefacts of a scale are missing, empty or changed.

    Attributes
    ----------
    problems : tuple of str
        One for each.
    """

    def __init__(self, folder: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{folder} is not complete. Of what it should hold:{lines}")


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says of its figure or table.

    Attributes
    ----------
    stem : str
        Its file name without ``.json``.
    artefacts : tuple of str
        What it shows; empty if its name is no artefact's.
    caption, command : str
    files : dict of str to str
        File beside it -> SHA-256.
    fault : str
        Why the sidecar cannot be read; empty if it can.
    """

    stem: str
    artefacts: tuple[str, ...]
    caption: str = ""
    command: str = ""
    files: dict[str, str] = field(default_factory=dict)
    fault: str = ""

    def problem(self, folder: Path, name: str) -> str | None:
        """What is wrong with one of its files: missing, empty or changed."""
        path = folder / name
        if not path.is_file():
            return "is missing"
        content = path.read_bytes()
        if not content:
            return "is empty"
        found = hashlib.sha256(content).hexdigest()
        if found != self.files[name]:
            return f"was changed: got sha256 {found[:12]}, expected {self.files[name][:12]}"
        return None


def artefacts_of(stem: str) -> tuple[str, ...]:
    """The artefacts that a sidecar or notebook of this name shows; the module says by which rule.

    Raises
    ------
    ValueError
        For a range that does not go up, such as ``fig3_1``.

    Examples
    --------
    >>> artefacts_of("table4_6_sweeps")
    ('table4', 'table5', 'table6')
    """
    if _NAMED.match(stem):
        return tuple(named[1] for part in stem.split("_and_") if (named := _NAMED.match(part)))
    numbered = _NUMBERED.match(stem)
    if not numbered:
        return ()
    kind, first, last = numbered[1], int(numbered[2]), int(numbered[3] or numbered[2])
    if numbered[3] and last <= first:
        raise ValueError(f"the range of {stem} must go up, as in {kind}1_3; behind a - any number may stand.")
    return tuple(f"{kind}{n}" for n in range(first, last + 1))


def read_sidecars(folder: Path | str) -> list[Sidecar]:
    """All sidecars of a folder of figures, those of the paper first and in its order.

    Other JSON files are passed over, unless they are named after an artefact: then they are a sidecar with a fault.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}. `tla figures --scale {folder.name}` makes it.")
    found = [s for path in sorted(folder.glob("*.json")) if path.name != MANIFEST and (s := _read(path)) is not None]
    return sorted(found, key=lambda sidecar: (_order(sidecar), sidecar.stem))


def write_manifest(scale: str | Path) -> Path:
    """Write ``manifest.json`` of a scale's figures, from their sidecars.

    The same sidecars give the same bytes.

    Parameters
    ----------
    scale : str or Path
        Name of a scale, or (as a Path) the folder of its figures.

    Returns
    -------
    Path

    Raises
    ------
    ManifestError
        If a sidecar cannot be read.
    FileNotFoundError
        If there is no such folder.
    """
    from tla_core.checkpoint import write_json

    folder = scale_folder(scale)
    sidecars = read_sidecars(folder)
    if faults := [f"{sidecar.fault}. {made_by(sidecar.artefacts[0], folder)}" for sidecar in sidecars if sidecar.fault]:
        raise ManifestError(folder, faults)
    write_json(folder / MANIFEST, _manifest(folder, sidecars))
    return folder / MANIFEST


def check_manifest(scale: str | Path, expected: Sequence[str] = EXPECTED) -> None:
    """Verify that every expected artefact is there, with files that are neither missing nor empty nor changed.

    Parameters
    ----------
    scale : str or Path
        Name of a scale, or (as a Path) the folder of its figures.
    expected : sequence of str
        Artefacts, by default all of the paper's.

    Raises
    ------
    ManifestError
        It lists every problem, and what makes each artefact.
    ValueError
        If something is expected that no sidecar can show.
    FileNotFoundError
        If there is no such folder.
    """
    if unknown := [name for name in expected if artefacts_of(name) != (name,)]:
        raise ValueError(f"expected must name artefacts such as {', '.join(EXPECTED[::5])}. Got {', '.join(unknown)}.")
    folder = scale_folder(scale)
    sidecars = read_sidecars(folder)
    problems = []
    for artefact in expected:
        showing = [sidecar for sidecar in sidecars if artefact in sidecar.artefacts]
        if not showing:
            problems.append(f"{artefact}: no sidecar shows it. {made_by(artefact, folder)}")
        for sidecar in showing:
            wrong = [f"{name} {problem}" for name in sidecar.files if (problem := sidecar.problem(folder, name))]
            if not sidecar.files:
                wrong = [sidecar.fault or f"{sidecar.stem}.json names no file"]
            maker = f"Made by: {sidecar.command}" if sidecar.command else made_by(artefact, folder)
            problems += [f"{artefact}: {each}. {maker}" for each in wrong]
    if _json(folder / MANIFEST) != _manifest(folder, sidecars):
        problems.append(f"{MANIFEST} is missing, or not what the sidecars say. Made by: {__name__}.write_manifest")
    if problems:
        raise ManifestError(folder, problems)


def made_by(artefact: str, folder: Path, notebooks: Path | None = None) -> str:
    """Which command makes an artefact that is not there, by the names of the notebooks: by default the project's."""
    stems = sorted(path.stem for path in (notebooks or folder.resolve().parents[1] / "notebooks").glob("*.ipynb"))
    commands = [f"tla notebooks {stem} --scale {folder.name}" for stem in stems if artefact in artefacts_of(stem)]
    return f"Made by: {' and '.join(commands)}" if commands else "No notebook is named after it"


def scale_folder(scale: str | Path) -> Path:
    """The folder of a scale's figures: that of the named scale, or the Path itself."""
    return scale if isinstance(scale, Path) else load_scale(scale).figures_dir


def _manifest(folder: Path, sidecars: Sequence[Sidecar]) -> dict[str, Any]:
    artefacts: dict[str, list[dict[str, Any]]] = {}
    others = []
    for sidecar in sidecars:
        entry = {"sidecar": f"{sidecar.stem}.json", "files": sidecar.files, "command": sidecar.command}
        for artefact in sidecar.artefacts:
            artefacts.setdefault(artefact, []).append(entry)
        others += [] if sidecar.artefacts else [entry]
    missing = [artefact for artefact in EXPECTED if artefact not in artefacts]
    return {"format": 1, "scale": folder.resolve().name, "artefacts": artefacts, "others": others, "missing": missing}


def _order(sidecar: Sidecar) -> list[int]:
    """Position of each of its artefacts in the paper; beyond the last for what is not of the paper."""
    return [EXPECTED.index(a) if a in EXPECTED else len(EXPECTED) for a in sidecar.artefacts] or [len(EXPECTED)]


def _read(path: Path) -> Sidecar | None:
    artefacts, content = artefacts_of(path.stem), _json(path)
    try:
        files, command = content["files"], content["provenance"]["command"]
        if all(isinstance(text, str) and Path(name).name == name for name, text in files.items()):
            return Sidecar(path.stem, artefacts, str(content["caption"]), str(command), files)
    except (KeyError, TypeError, AttributeError):
        pass
    state = "is no sidecar of save_figure or save_table" if path.stat().st_size else "is empty"
    return Sidecar(path.stem, artefacts, fault=f"{path.name} {state}") if artefacts else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
