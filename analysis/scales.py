"""Reads what a scale consists of, and says where its runs and results lie."""

import dataclasses
import os
import shlex
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from analysis.published import KNN
from analysis.variants import split_variant, variant_fields, variant_name
from tla_core.attack_config import AttackConfig, parse_number
from tla_core.config import TrainConfig
from tla_core.presets import METHODS, VARIANTS, preset_fields
from tla_core.protocol import SWEEPS, analysis_attack

FIGURE_KINDS = ("maps", "landscapes", "sweeps")
SWEEP_COLUMN = "PGD100"  # the attack that sweeps are compared by


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
        Of the main runs; the first is that of the figures.
    points_per_class : dict
        ``clean`` and ``adversarial`` points of each map.
    tsne_iterations : int or "auto"
    analysis_images : dict
        Dataset -> test images that representations are taken of, evenly spread over the set; by default all. What
        the maps are drawn from is always taken of all.
    presets : str
        First part of the presets' names; by default the scale's own name.
    overrides : dict
        Method -> fields that differ from its preset.
    variant_overrides : dict
        Fields that every variant has otherwise, such as a shorter training.
    figure_datasets : dict
        ``maps``, ``landscapes``, ``sweeps`` -> dataset of those figures; by default the first.
    class_pairs : dict
        Dataset -> pairs of class names, of Fig. 4-6.
    pair_points : int
        Clean images of each class of a pair.
    landscape : dict
        ``images``, ``resolution``, and ``radius`` in units of eps; ``rise``, the ``images`` and ``resolution`` that its
        mean is taken over.
    sweeps : tuple of str
        See `tla_core.protocol.SWEEPS`.
    spread : dict
        ``variant`` (may be empty) and ``seeds``, of all methods or of each that they name, of the runs whose spread
        Table 3 shows, of all datasets or of those of ``datasets``; no seeds, no spread.
    accuracy : dict
        ``methods`` of the main table; ``long_images`` and ``restarts``, limits of costly attacks; ``autoattack``, the
        number of images for it; ``black_box``, the ``variant`` and ``seed`` of the copies. Methods, AutoAttack and
        copies are for all datasets, or for each that they name. Null is no limit, and none.
    """

    name: str
    root: Path
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    notebooks: tuple[str, ...]
    points_per_class: dict[str, int]
    tsne_iterations: int | str = "auto"
    analysis_images: dict[str, int] = field(default_factory=dict)
    presets: str = ""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    variant_overrides: dict[str, Any] = field(default_factory=dict)
    figure_datasets: dict[str, str] = field(default_factory=dict)
    class_pairs: dict[str, list[list[str]]] = field(default_factory=dict)
    pair_points: int = 200
    landscape: dict[str, Any] = field(
        default_factory=lambda: {"images": 3, "resolution": 41, "radius": 2, "rise": {"images": 20, "resolution": 11}}
    )
    sweeps: tuple[str, ...] = ()
    spread: dict[str, Any] = field(default_factory=lambda: {"variant": "", "seeds": []})
    accuracy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = METHODS + VARIANTS
        if unknown := sorted(set(self.overrides) - set(known)):
            raise ValueError(f"overrides must name methods ({', '.join(known)}). Got {', '.join(unknown)}.")
        figures = {*self.figure_datasets.values(), *self.class_pairs, *self.analysis_images}
        if unknown := sorted(figures - set(self.datasets)):
            raise ValueError(f"figures need datasets of the scale ({', '.join(self.datasets)}). Got {unknown}.")
        if unknown := sorted(set(self.figure_datasets) - set(FIGURE_KINDS)):
            raise ValueError(f"figure_datasets must be of {', '.join(FIGURE_KINDS)}. Got {', '.join(unknown)}.")
        by_dataset = [value for key in ("autoattack", "methods") if isinstance(value := self.accuracy.get(key), dict)]
        named = {*self.spread.get("datasets", ()), *(self.accuracy.get("black_box") or {}), *chain(*by_dataset)}
        if unknown := sorted(named - {"variant", "seed", *self.datasets}):
            names = ", ".join(self.datasets)
            raise ValueError(
                f"spread, black_box, autoattack and methods need datasets of the scale ({names}). Got {unknown}."
            )
        if unknown := sorted(set(self.sweeps) - set(SWEEPS)):
            raise ValueError(f"sweeps must be among {', '.join(SWEEPS)}. Got {', '.join(unknown)}.")

    def config(self, dataset: str, method: str, seed: int = 0) -> TrainConfig:
        """The settings of one training: the preset, with this scale's overrides and those of a variant."""
        name, variant = split_variant(method)
        preset = TrainConfig.preset(self.preset(dataset, method), seed=seed)
        config = replaced_settings(preset, self.overrides.get(name, {}), f"overrides of {name}")
        if not variant:
            return config
        config = replaced_settings(config, self.variant_overrides, "variant_overrides")
        return replaced_settings(config, variant_fields(variant), f"the variant {variant}")

    def preset(self, dataset: str, method: str) -> str:
        """Name of the preset of a training."""
        return f"{self.presets or self.name}/{dataset}/{split_variant(method)[0]}"

    def dataset_of(self, kind: str) -> str:
        """The dataset of a kind of figure: ``maps``, ``landscapes`` or ``sweeps``."""
        return self.figure_datasets.get(kind, self.datasets[0])

    def neighbour_datasets(self) -> tuple[str, ...]:
        """The datasets that kNN accuracies and detection are shown of: those of the paper."""
        return tuple(dataset for dataset in self.datasets if dataset in KNN)

    def dataset_of_run(self, data: str) -> str:
        """The scale's name of the dataset that runs were trained on: ``mnist`` for ``mnist-mini``, at `mini`."""
        names = {preset_fields(self.preset(name, "um"))["dataset"]: name for name in self.datasets}
        return names.get(data, data)

    def sweep(self, name: str) -> dict[Any, str]:
        """Value of the swept setting -> method with its variant, such as ``"tla@lambda_triplet=2"``.

        The scale's own value is ``"tla@short"``, or ``"tla"`` where variants are trained as long as the main runs.
        """
        if name not in SWEEPS:
            raise ValueError(f"unknown sweep {name!r}. There are: {', '.join(SWEEPS)}.")
        sweep, own = SWEEPS[name], "tla@short" if self.variant_overrides else "tla"
        unchanged = self.config(self.dataset_of("sweeps"), own)
        found = {}
        for value in sweep.values:
            changes = {**sweep.base, sweep.field: "penultimate" if value == "higher" else value}  # one layer, two names
            changed = {field: new for field, new in changes.items() if new != getattr(unchanged, field)}
            found[value] = f"tla@{variant_name(changed)}" if changed else own
        return found

    def spread_runs(self, dataset: str, method: str) -> list[tuple[str, int]]:
        """Methods with their variant, and seeds, of the runs whose spread is shown."""
        if dataset not in self.spread.get("datasets", self.datasets):
            return []
        variant = self.spread.get("variant")
        seeds = self.spread.get("seeds", ())
        seeds = seeds.get(method, ()) if isinstance(seeds, dict) else seeds
        return [(f"{method}@{variant}" if variant else method, seed) for seed in seeds]

    def copy_of(self, dataset: str, method: str) -> tuple[str, int] | None:
        """Method with its variant, and seed, of the independently trained copy of a method; None if there is none."""
        copy = self.accuracy.get("black_box")
        if copy and "seed" not in copy:
            copy = copy.get(dataset)
        if not copy:
            return None
        return (f"{method}@{copy['variant']}" if copy.get("variant") else method), int(copy["seed"])

    def table_methods(self, dataset: str) -> tuple[str, ...]:
        """The methods of a dataset's main table; by default the scale's."""
        methods = self.accuracy.get("methods", self.methods)
        return tuple(methods.get(dataset, self.methods) if isinstance(methods, dict) else methods)

    def autoattack_images(self, dataset: str, method: str) -> int | None:
        """The number of images for AutoAttack; None for no AutoAttack, as for the main table's variants of TLA."""
        images = self.accuracy.get("autoattack") if method in self.methods else None
        return images.get(dataset) if isinstance(images, dict) else images

    def flags(self, dataset: str, method: str) -> str:
        """What `tla train PRESET` must be told for this scale's overrides and a variant, quoted for the shell."""
        preset = TrainConfig.preset(self.preset(dataset, method))
        return shlex.join(override_flags(self.config(dataset, method), preset))

    def run_dir(self, dataset: str, method: str, seed: int = 0) -> Path:
        """Folder of a training: ``runs/<scale>/<dataset>/<method>[@<variant>]/seed<n>``."""
        return self.root / "runs" / self.name / dataset / method / f"seed{seed}"

    def images_at(self, dataset: str, eps: float | None = None) -> int | None:
        """How many test images representations at a perturbation level are of; None for all, as of the maps' level."""
        main = analysis_attack(self.config(dataset, self.methods[0])).eps
        of_maps = dataset == self.dataset_of("maps") and (eps is None or f"{eps:g}" == f"{main:g}")
        return None if of_maps else self.analysis_images.get(dataset)

    def map_settings(self) -> dict[str, Any]:
        """What this scale passes to `map_classes`."""
        points = self.points_per_class
        return {"n_clean": points["clean"], "n_adversarial": points["adversarial"], "n_iter": self.tsne_iterations}

    def pair_settings(self, dataset: str) -> dict[str, Any] | None:
        """What this scale passes to `project_pairs_run`; None for a dataset without pairs."""
        pairs = self.class_pairs.get(dataset)
        return {"pairs": pairs, "n_clean": self.pair_points, "n_iter": self.tsne_iterations} if pairs else None

    def accuracy_options(self, dataset: str, method: str, seed: int) -> dict[str, Any]:
        """What `analysis.accuracy.run_attacks` is told of a run; ``black_box`` is (method, seed) of the copy, or None.

        All columns of the runs of the main table, and of others the one that sweeps are compared by.
        """
        limits = {name: self.accuracy.get(name) for name in ("long_images", "restarts")}
        if seed != self.seeds[0] or method not in self.table_methods(dataset):
            return {**limits, "only": (SWEEP_COLUMN,), "autoattack": 0, "black_box": None}
        autoattack = self.autoattack_images(dataset, method) or 0
        return {**limits, "only": (), "autoattack": autoattack, "black_box": self.copy_of(dataset, method)}

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
    given = {key: value for key, value in values.items() if value is not None}
    known = {f.name for f in dataclasses.fields(Scale)} - {"name", "root"}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{path.name} holds unknown keys: {', '.join(unknown)}. There are: {', '.join(sorted(known))}."
        )
    required = ("datasets", "methods", "seeds", "notebooks", "points_per_class")
    if missing := sorted(set(required) - set(given)):
        raise ValueError(f"{path.name} lacks {', '.join(missing)}.")
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    return Scale(**{**given, **lists, "name": name, "root": root})


def results_dir(run_dir: Path | str) -> Path:
    """Where the results of a run lie: the same path below ``results`` as the run has below ``runs``."""
    run_dir = Path(run_dir)
    parts = list(run_dir.parts)
    if "runs" not in parts:
        return run_dir / "results"
    last = len(parts) - 1 - parts[::-1].index("runs")
    return Path(*parts[:last], "results", *parts[last + 1 :])


def accuracy_flags(options: dict[str, Any]) -> str:
    """What `tla evaluate RUN` must be told for these options of `run_attacks`, quoted for the shell."""
    words = []
    for name, value in options.items():
        if value:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


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


def replaced_settings(settings: Any, changes: dict[str, Any], what: str) -> Any:
    """Settings with fields replaced, an attack's one by one. Numbers may be text: 8/255, or 1e-4 as YAML reads it."""
    known = [f.name for f in dataclasses.fields(settings) if f.name not in ("method", "seed")]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"{what} hold an unknown field: {', '.join(unknown)}. There are: {', '.join(known)}.")
    values = {}
    for name, value in changes.items():
        before = getattr(settings, name)
        if isinstance(before, AttackConfig) and isinstance(value, dict):
            value = replaced_settings(before, value, f"{what}, {name},")
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
