"""Reads what a scale consists of, and says where its runs and results lie."""

import dataclasses
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tla_core.config import METHODS, VARIANTS, AttackConfig, TrainConfig, parse_number


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything that the one word `SCALE` selects; read from ``workflow/scales/<name>.yaml``.

    Attributes
    ----------
    name : str
    root : Path
        Root of the project.
    datasets, methods, notebooks : tuple of str
    seeds : tuple of int
    points_per_class : dict
        ``clean`` and ``adversarial`` points of each map.
    tsne_iterations : int or "auto"
    overrides : dict
        Method -> fields that differ from its preset.
    """

    name: str
    root: Path
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    notebooks: tuple[str, ...]
    points_per_class: dict[str, int]
    tsne_iterations: int | str = "auto"
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = METHODS + VARIANTS
        if unknown := sorted(set(self.overrides) - set(known)):
            raise ValueError(f"overrides must name methods ({', '.join(known)}). Got {', '.join(unknown)}.")

    def config(self, dataset: str, method: str, seed: int = 0) -> TrainConfig:
        """The settings of one training: the preset, with this scale's overrides."""
        preset = TrainConfig.preset(self.preset(dataset, method), seed=seed)
        return _replaced(preset, self.overrides.get(method, {}), f"overrides of {method}")

    def preset(self, dataset: str, method: str) -> str:
        """Name of the preset of a training."""
        return f"{self.name}/{dataset}/{method}"

    def flags(self, dataset: str, method: str) -> str:
        """What `tla train PRESET` must be told for this scale's overrides, quoted for the shell."""
        preset = TrainConfig.preset(self.preset(dataset, method))
        return shlex.join(override_flags(self.config(dataset, method), preset))

    def run_dir(self, dataset: str, method: str, seed: int = 0) -> Path:
        """Folder of a training: ``runs/<scale>/<dataset>/<method>/seed<n>``."""
        return self.root / "runs" / self.name / dataset / method / f"seed{seed}"

    def map_settings(self) -> dict[str, Any]:
        """What this scale passes to `map_classes`."""
        points = self.points_per_class
        return {"n_clean": points["clean"], "n_adversarial": points["adversarial"], "n_iter": self.tsne_iterations}

    @property
    def figures_dir(self) -> Path:
        """Where this scale's figures and tables go."""
        return self.root / "figures" / self.name


def project_root(start: Path | str | None = None) -> Path:
    """The folder that holds ``workflow/scales``: ``TLA_ROOT``, or the nearest above the working directory.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if start is None and os.environ.get("TLA_ROOT"):
        return Path(os.environ["TLA_ROOT"])
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "workflow" / "scales").is_dir():
            return folder
    raise FileNotFoundError(
        f"no project above {here}: expected a folder with workflow/scales. Work inside a clone, or set TLA_ROOT to it."
    )


def load_scale(name: str = "mini", root: Path | str | None = None) -> Scale:
    """Read a scale.

    Raises
    ------
    ValueError
        For an unknown scale (they are listed), or a file with unknown or missing keys.
    """
    root = Path(root) if root is not None else project_root()
    path = root / "workflow" / "scales" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ValueError(f"unknown scale {name!r}. There are: {', '.join(known) or 'none'} in {path.parent}.")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    known = {f.name for f in dataclasses.fields(Scale)} - {"name", "root"}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{path.name} holds unknown keys: {', '.join(unknown)}. There are: {', '.join(sorted(known))}."
        )
    if missing := sorted(known - {"tsne_iterations", "overrides"} - set(values)):
        raise ValueError(f"{path.name} lacks {', '.join(missing)}.")
    lists = {key: tuple(values[key]) for key in ("datasets", "methods", "seeds", "notebooks")}
    return Scale(**{**values, **lists, "name": name, "root": root, "overrides": values.get("overrides") or {}})


def results_dir(run_dir: Path | str) -> Path:
    """Where the results of a run lie: the same path below ``results`` as the run has below ``runs``."""
    run_dir = Path(run_dir)
    parts = list(run_dir.parts)
    if "runs" not in parts:
        return run_dir / "results"
    last = len(parts) - 1 - parts[::-1].index("runs")
    return Path(*parts[:last], "results", *parts[last + 1 :])


def override_flags(config: TrainConfig, preset: TrainConfig) -> list[str]:
    """Command-line flags of `tla train` that turn a preset into a configuration."""
    flags = []
    for f in dataclasses.fields(TrainConfig):
        value, default = getattr(config, f.name), getattr(preset, f.name)
        if f.name == "seed" or value == default:
            continue
        name = f.name.replace("_", "-")
        if isinstance(value, AttackConfig):
            inner = dataclasses.asdict(value)
            changed = {k: v for k, v in inner.items() if v != getattr(default, k)}
            flags += [word for k, v in changed.items() for word in _flag(f"{name}.{k.replace('_', '-')}", v)]
        else:
            flags += _flag(name, value)
    return flags


def _replaced(settings: Any, changes: dict[str, Any], what: str) -> Any:
    """Settings with fields replaced, an attack's one by one. Numbers may be text: 8/255, or 1e-4 as YAML reads it."""
    known = [f.name for f in dataclasses.fields(settings) if f.name not in ("method", "seed")]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"{what} hold an unknown field: {', '.join(unknown)}. There are: {', '.join(known)}.")
    values = {}
    for name, value in changes.items():
        before = getattr(settings, name)
        if isinstance(before, AttackConfig) and isinstance(value, dict):
            value = _replaced(before, value, f"{what}, {name},")
        elif isinstance(before, float) and isinstance(value, str):
            value = parse_number(value)
        values[name] = value
    return dataclasses.replace(settings, **values)


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        head, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{head}{dot}no-{last}"]
    if isinstance(value, tuple):
        return [f"--{name}", *map(repr, value)]
    return [f"--{name}", repr(value) if isinstance(value, float) else str(value)]
