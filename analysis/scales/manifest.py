"""Says which files show which figure or table of the paper, and whether they are all there and unchanged.

A sidecar, the JSON that `save_figure` and `save_table` write beside their files, names what it shows. Several may show
one figure or table, and one sidecar several; what shows none of the paper's is listed among the others.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.scales.scale import load_scale

# Notebook -> the figures and tables of the paper that it makes.
SHOWN_BY = {
    "fig1_3_false_classes": ("fig1", "fig2", "fig3"),
    "fig4_6_class_pairs": ("fig4", "fig5", "fig6"),
    "fig7_retrieval": ("fig7",),
    "fig8_loss_landscape": ("fig8",),
    "table1_2_architectures": ("table1", "table2"),
    "table3_distance_ratios": ("table3",),
    "table4_6_hyperparameters": ("table4", "table5", "table6"),
    "main_accuracy": ("main_accuracy",),
    "knn_and_detection": ("knn", "detection"),
}
EXPECTED = tuple(artefact for artefacts in SHOWN_BY.values() for artefact in artefacts)
MANIFEST = "manifest.json"


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
        What it shows of the paper.
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
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.files[name]:
            return f"was changed: got sha256 {digest[:12]}, expected {self.files[name][:12]}"
        return None


def read_sidecars(folder: Path | str) -> list[Sidecar]:
    """All sidecars of a folder of figures, those of the paper first and in its order.

    Other JSON files are passed over; beside files of the same name one is a sidecar with a fault.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}. `tla figures --scale {folder.name}` makes it.")
    sidecars = [s for path in sorted(folder.glob("*.json")) if path.name != MANIFEST and (s := _read(path)) is not None]
    return sorted(sidecars, key=lambda sidecar: (_order(sidecar), sidecar.stem))


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
    if faults := _faults(sidecars, folder):
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
    if unknown := [name for name in expected if name not in EXPECTED]:
        raise ValueError(f"expected must be of {', '.join(EXPECTED)}. Got {', '.join(unknown)}.")
    folder = scale_folder(scale)
    sidecars = read_sidecars(folder)
    problems = _faults(sidecars, folder)
    for artefact in expected:
        witnesses = [sidecar for sidecar in sidecars if artefact in sidecar.artefacts]
        if not witnesses:
            problems.append(f"{artefact}: no sidecar shows it. {made_by(artefact, folder)}")
        for sidecar in witnesses:
            faults = [f"{name} {problem}" for name in sidecar.files if (problem := sidecar.problem(folder, name))]
            if not sidecar.files:
                faults = [f"{sidecar.stem}.json names no file"]
            maker = f"Made by: {sidecar.command}" if sidecar.command else made_by(artefact, folder)
            problems += [f"{artefact}: {each}. {maker}" for each in faults]
    if _json(folder / MANIFEST) != _manifest(folder, sidecars):
        problems.append(f"{MANIFEST} is missing, or not what the sidecars say. Made by: {__name__}.write_manifest")
    if problems:
        raise ManifestError(folder, problems)


def made_by(artefact: str, folder: Path) -> str:
    """Which command makes an artefact that is not there."""
    notebook = next(name for name, artefacts in SHOWN_BY.items() if artefact in artefacts)
    return f"Made by: tla notebooks {notebook} --scale {folder.name}"


def scale_folder(scale: str | Path) -> Path:
    """The folder of a scale's figures: that of the named scale, or the Path itself."""
    return scale if isinstance(scale, Path) else load_scale(scale).figures_dir


def _manifest(folder: Path, sidecars: Sequence[Sidecar]) -> dict[str, Any]:
    artefacts: dict[str, list[dict[str, Any]]] = {}
    unpublished = []
    for sidecar in sidecars:
        entry = {"sidecar": f"{sidecar.stem}.json", "files": sidecar.files, "command": sidecar.command}
        for artefact in sidecar.artefacts:
            artefacts.setdefault(artefact, []).append(entry)
        unpublished += [] if sidecar.artefacts else [entry]
    missing = [artefact for artefact in EXPECTED if artefact not in artefacts]
    return {
        "format": 1,
        "scale": folder.resolve().name,
        "artefacts": artefacts,
        "others": unpublished,
        "missing": missing,
    }


def _order(sidecar: Sidecar) -> list[int]:
    """Position of each of its artefacts in the paper; beyond the last for what is not of the paper."""
    return [EXPECTED.index(a) if a in EXPECTED else len(EXPECTED) for a in sidecar.artefacts] or [len(EXPECTED)]


def _read(path: Path) -> Sidecar | None:
    content = _json(path)
    try:
        files, command, shows = content["files"], content["provenance"]["command"], tuple(content["shows"])
        if all(isinstance(text, str) and Path(name).name == name for name, text in files.items()):
            return Sidecar(path.stem, shows, str(content["caption"]), str(command), files)
    except (KeyError, TypeError, AttributeError):
        pass
    if not any(path.with_suffix(ending).exists() for ending in (".png", ".csv")):
        return None
    state = "is no sidecar of save_figure or save_table" if path.stat().st_size else "is empty"
    return Sidecar(path.stem, (), fault=f"{path.name} {state}")


def _faults(sidecars: Sequence[Sidecar], folder: Path) -> list[str]:
    return [f"{s.fault}. Made by: tla notebooks --scale {folder.name}" for s in sidecars if s.fault]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
