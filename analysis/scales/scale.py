"""Reads what a scale consists of, and says where its runs and results lie."""

import dataclasses
import os
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

from analysis.scales.scale_file import read_scale_file
from analysis.scales.variants import split_variant, variant_fields, variant_name
from tla_core.attack_config import AttackConfig, parse_number
from tla_core.config import TrainConfig
from tla_core.presets import METHODS, VARIANTS
from tla_core.protocol import SWEEPS, analysis_attack
from tla_core.validation import did_you_mean

STRONGEST_LIMITS = ("images", "steps", "targets")
FIGURE_KINDS = ("maps", "landscapes", "sweeps")
SWEEP_COLUMNS = ("PGD100", "APGD-CE", "APGD-T")  # the attack that sweeps are compared by, and the strongest


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything that the one word `SCALE` selects; read from ``workflow/scales/<name>.yaml``.

    Attributes
    ----------
    name : str
    root : Path
        Root of the project.
    datasets, methods, notebooks : tuple of str
    seeds : tuple of int, or dict
        Of the main runs of every dataset, or dataset -> seeds; the first is that of the figures.
    points_per_class : dict
        ``clean`` and ``adversarial`` points of each map.
    tsne_iterations : int or "auto"
    analysis_images : dict
        Dataset -> test images that representations are taken of, evenly spread over the set; by default all. The
        representations behind the maps, those of the first seed, are always of all images.
    presets : str
        First part of the presets' names; by default the scale's own name.
    overrides : dict
        Method -> fields that differ from its preset.
    variant_overrides : dict
        Fields that every variant on the dataset of the sweeps has, such as a shorter training; with
        ``fine_tune: true`` it goes on from the AT run of its seed.
    figure_datasets : dict
        ``maps``, ``landscapes`` or ``sweeps`` -> dataset of these figures; by default the first.
    neighbour_datasets : tuple of str
        The datasets for which kNN accuracies and detection are shown; by default all.
    class_pairs : dict
        Dataset -> pairs of class names, of Fig. 4-6.
    pair_points : int
        Clean images of each class of a pair.
    landscape : dict
        ``images``, ``resolution``, and ``radius`` in units of eps; in ``rise``, the ``images`` and ``resolution`` for
        the mean rise of the loss.
    sweeps : tuple of str
        See `tla_core.protocol.SWEEPS`.
    sweep_seeds : tuple of int
        Of the sweeps' runs; by default the first of their dataset.
    accuracy : dict
        What the accuracy tables hold:

        - ``methods``: of the main table. ``variant_seeds``: ``first`` or ``all``, the seeds of those among them that
          are not methods of the scale.
        - ``other_seeds``: columns of all seeds but the first; by default all that need neither AutoAttack nor a copy.
        - ``images``: for every attack; ``sweep_images``: the same for the runs of sweeps. ``long_images`` and
          ``restarts``: limits of costly attacks.
        - ``strongest``: the ``images``, ``steps`` and ``targets`` of APGD, by default 1,000, 100 and 9. ``square``: the
          queries of Square, by default none. ``autoattack``: images for it.
        - ``black_box``: the ``variant`` and ``seed`` of the copies, and the ``methods`` that have one, by default all.

        ``methods``, ``autoattack`` and ``black_box`` hold for all datasets, or for each that they name. Null is no
        limit, and none.
    own_datasets : dict
        Those of `datasets` that are images of one's own -> ``folder``, or the name of images in memory, and ``like``,
        the dataset whose presets they have. In the file ``datasets: {mine: {folder: ...}}``.
    own_methods : dict
        Models that are not trained here -> ``model``, as `tla_core.naming.import_object` takes it, and the ``dataset``
        that they classify. In the file ``methods: {mine: {model: file.py:function}}``; see `as_results`.
    own_steps : dict
        Those of `methods` that are trained by a step of one's own -> ``step``, as `TrainConfig` has it, and ``like``,
        the method whose presets and overrides they have. In the file
        ``methods: {mine: {step: file.py:function, like: at}}``.
    """

    name: str
    root: Path
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] | dict[str, list[int]]
    notebooks: tuple[str, ...]
    points_per_class: dict[str, int]
    tsne_iterations: int | str = "auto"
    analysis_images: dict[str, int] = field(default_factory=dict)
    presets: str = ""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    variant_overrides: dict[str, Any] = field(default_factory=dict)
    figure_datasets: dict[str, str] = field(default_factory=dict)
    neighbour_datasets: tuple[str, ...] = ()
    class_pairs: dict[str, list[list[str]]] = field(default_factory=dict)
    pair_points: int = 200
    landscape: dict[str, Any] = field(
        default_factory=lambda: {"images": 3, "resolution": 41, "radius": 2, "rise": {"images": 20, "resolution": 11}}
    )
    sweeps: tuple[str, ...] = ()
    sweep_seeds: tuple[int, ...] = ()
    accuracy: dict[str, Any] = field(default_factory=dict)
    own_datasets: dict[str, dict[str, str]] = field(default_factory=dict)
    own_methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    own_steps: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = (*METHODS, *VARIANTS, *self.own_steps)
        if unknown := sorted(set(self.overrides) - set(known)):
            raise ValueError(f"overrides must name methods ({', '.join(known)}). Got {', '.join(unknown)}.")
        object.__setattr__(self, "neighbour_datasets", self.neighbour_datasets or self.datasets)
        figures = {
            *self.figure_datasets.values(), *self.neighbour_datasets, *self.class_pairs, *self.analysis_images
        }  # fmt: skip
        if unknown := sorted(figures - set(self.datasets)):
            raise ValueError(f"figures need datasets of the scale ({', '.join(self.datasets)}). Got {unknown}.")
        if unknown := sorted(set(self.figure_datasets) - set(FIGURE_KINDS)):
            raise ValueError(f"figure_datasets must be of {', '.join(FIGURE_KINDS)}. Got {', '.join(unknown)}.")
        by_dataset = [value for key in ("autoattack", "methods") if isinstance(value := self.accuracy.get(key), dict)]
        dataset_keys = {*(self.accuracy.get("black_box") or {}), *chain(*by_dataset)}
        names = ", ".join(self.datasets)
        if unknown := sorted(dataset_keys - {"variant", "seed", "methods", *self.datasets}):
            raise ValueError(f"black_box, autoattack and methods need datasets of the scale ({names}). Got {unknown}.")
        seeds_by_dataset = self.seeds if isinstance(self.seeds, dict) else dict.fromkeys(self.datasets, self.seeds)
        if set(seeds_by_dataset) != set(self.datasets) or not all(map(len, seeds_by_dataset.values())):
            raise ValueError(f"seeds must be a list, or one for each dataset ({names}). Got {self.seeds}.")
        if unknown := sorted(set(self.accuracy.get("strongest") or {}) - set(STRONGEST_LIMITS)):
            raise ValueError(f"strongest has {', '.join(STRONGEST_LIMITS)}. Got {', '.join(unknown)}.")
        if (variant_seeds := self.accuracy.get("variant_seeds", "first")) not in ("first", "all"):
            raise ValueError(f"variant_seeds must be first or all. Got {variant_seeds!r}.")
        if unknown := sorted(set(self.sweep_seeds) - set(self.seeds_of(self.dataset_of("sweeps")))):
            raise ValueError(f"sweep_seeds must be among the seeds of {self.dataset_of('sweeps')}. Got {unknown}.")
        copy = self.copy_of(self.dataset_of("sweeps"), self.methods[0])
        if self.variant_overrides.get("fine_tune") and copy and "@" in copy[0]:
            raise ValueError(f"copies of a black-box attack are independent: none goes on from AT. Got {copy[0]}.")
        if unknown := sorted(set(self.sweeps) - set(SWEEPS)):
            raise ValueError(f"sweeps must be among {', '.join(SWEEPS)}. Got {', '.join(unknown)}.")

    def config(self, dataset: str, method: str, seed: int = 0) -> TrainConfig:
        """The settings of one training: the preset, with this scale's overrides and those of a variant."""
        name, variant = split_variant(method)
        own = {"dataset": self.own_datasets[dataset]["folder"]} if dataset in self.own_datasets else {}
        if name in self.own_steps:
            own["step"] = self.own_steps[name]["step"]
        config = TrainConfig.preset(self.preset(dataset, method), seed=seed, **own)
        for overridden in dict.fromkeys((self._like(name), name)):
            config = replaced_settings(config, self.overrides.get(overridden, {}), f"overrides of {overridden}")
        if not variant:
            return config
        if dataset == self.dataset_of("sweeps"):
            config = replaced_settings(config, self.variant_overrides, "variant_overrides")
        return replaced_settings(config, variant_fields(variant), f"the variant {variant}")

    def preset(self, dataset: str, method: str) -> str:
        """Name of the preset of a training."""
        like = self.own_datasets.get(dataset, {}).get("like", dataset)
        return f"{self.presets or self.name}/{like}/{self._like(split_variant(method)[0])}"

    def _like(self, method: str) -> str:
        """The method whose settings a method has: its own, or those that a step of the user's is given."""
        return self.own_steps.get(method, {}).get("like", method)

    def dataset_of(self, kind: str) -> str:
        """The dataset of a kind of figure: ``maps``, ``landscapes`` or ``sweeps``."""
        return self.figure_datasets.get(kind, self.datasets[0])

    def dataset_of_run(self, data: str) -> str:
        """The scale's name of the dataset that runs were trained on: ``mnist`` for ``mnist-mini``, at `mini`."""
        names = {self.config(name, "um").dataset: name for name in self.datasets}
        return names.get(data, data)

    def sweep(self, name: str) -> dict[Any, str]:
        """Value of the swept setting -> method with its variant, such as ``"tla@lambda_triplet=2"``.

        The scale's own value is ``"tla@short"``, or ``"tla"`` where variants are trained as long as the main runs.
        """
        if name not in SWEEPS:
            raise ValueError(f"unknown sweep {name!r}. There are: {', '.join(SWEEPS)}.")
        sweep, own = SWEEPS[name], "tla@short" if self.variant_overrides else "tla"
        unchanged = self.config(self.dataset_of("sweeps"), own)
        methods = {}
        for value in sweep.values:
            changes = {**sweep.base, sweep.field: "penultimate" if value == "higher" else value}  # one layer, two names
            changed = {field: new for field, new in changes.items() if new != getattr(unchanged, field)}
            methods[value] = f"tla@{variant_name(changed)}" if changed else own
        return methods

    def sweep_runs(self, method: str) -> list[tuple[str, str, int]]:
        """Dataset, method and seed of the runs of one value of a sweep."""
        dataset = self.dataset_of("sweeps")
        return [(dataset, method, seed) for seed in self.sweep_seeds or self.seeds_of(dataset)[:1]]

    def spread_runs(self) -> list[tuple[str, str, int]]:
        """The runs whose spread is the error of the sweeps where these have one seed: TLA's own of all seeds."""
        dataset = self.dataset_of("sweeps")
        seeds = self.seeds_of(dataset) if len(self.sweep_seeds) < 2 else ()
        return [(dataset, "tla", seed) for seed in seeds if len(seeds) > 1]

    def seeds_of(self, dataset: str) -> tuple[int, ...]:
        """The seeds of a dataset's main runs; the first is that of the figures."""
        return tuple(self.seeds[dataset] if isinstance(self.seeds, dict) else self.seeds)

    def copy_of(self, dataset: str, method: str) -> tuple[str, int] | None:
        """Method with its variant, and seed, of the independently trained copy of a method; None if there is none."""
        copy = self.accuracy.get("black_box")
        if copy and "seed" not in copy:
            copy = copy.get(dataset)
        if not copy or method not in copy.get("methods", (method,)):
            return None
        return (f"{method}@{copy['variant']}" if copy.get("variant") else method), int(copy["seed"])

    def table_methods(self, dataset: str) -> tuple[str, ...]:
        """The methods of a dataset's main table; by default the scale's."""
        methods = self.accuracy.get("methods", self.methods)
        methods = methods.get(dataset, self.methods) if isinstance(methods, dict) else methods
        return tuple(dict.fromkeys((*methods, *self.own_steps)))

    def table_runs(self, dataset: str) -> list[tuple[str, str, int]]:
        """Dataset, method and seed of each run of a dataset's main table."""
        seeds, every = self.seeds_of(dataset), self.accuracy.get("variant_seeds") == "all"
        return [
            (dataset, method, seed)
            for method in self.table_methods(dataset)
            for seed in (seeds if every or method in self.methods else seeds[:1])
        ]

    def autoattack_images(self, dataset: str, method: str) -> int | None:
        """The number of images for AutoAttack; None for no AutoAttack, as for the main table's variants of TLA."""
        images = self.accuracy.get("autoattack") if method in self.methods else None
        return images.get(dataset) if isinstance(images, dict) else images

    def flags(self, dataset: str, method: str) -> list[str]:
        """What `tla train PRESET` must be told for this scale's overrides and a variant, word by word."""
        preset = TrainConfig.preset(self.preset(dataset, method))
        return override_flags(self.config(dataset, method), preset)

    def run_dir(self, dataset: str, method: str, seed: int = 0) -> Path:
        """Folder of a training: ``runs/<scale>/<dataset>/<method>[@<variant>]/seed<n>``."""
        return self.root / "runs" / self.name / dataset / method / f"seed{seed}"

    def images_at(self, dataset: str, method: str, eps: float | None = None, seed: int | None = None) -> int | None:
        """The number of test images of the representations at a perturbation level; None for all.

        The representations behind the maps are of all images: those of the methods' first seed, at the main level.
        """
        main = analysis_attack(self.config(dataset, self.methods[0])).eps
        is_mapped = dataset == self.dataset_of("maps") and (eps is None or f"{eps:g}" == f"{main:g}")
        first = method in self.methods and seed in (None, self.seeds_of(dataset)[0])
        return None if is_mapped and first else self.analysis_images.get(dataset)

    def landscape_of(self, dataset: str, seed: int | None = None) -> dict[str, Any]:
        """What this scale passes to `landscape_run`; landscapes are drawn for the first seed only."""
        first = seed is None or seed == self.seeds_of(dataset)[0]
        return self.landscape if first else {**self.landscape, "images": 0}

    def map_settings(self) -> dict[str, Any]:
        """What this scale passes to `map_classes`."""
        points = self.points_per_class
        return {"n_clean": points["clean"], "n_adversarial": points["adversarial"], "n_iter": self.tsne_iterations}

    def pair_settings(self, dataset: str) -> dict[str, Any] | None:
        """What this scale passes to `project_pairs_run`; None for a dataset without pairs."""
        pairs = self.class_pairs.get(dataset)
        return {"pairs": pairs, "n_clean": self.pair_points, "n_iter": self.tsne_iterations} if pairs else None

    def accuracy_options(self, dataset: str, method: str, seed: int) -> dict[str, Any]:
        """Options of `accuracy_attacks.run_attacks` for a run; ``black_box`` is (method, seed) of the copy, or None.

        A run of the main table has all columns where it is of the first seed, and those of ``other_seeds`` otherwise.
        Any other run has the columns that sweeps are compared by.
        """
        limits = {name: self.accuracy.get(name) for name in ("images", "long_images", "restarts")}
        strongest = self.accuracy.get("strongest") or {}
        limits |= {f"strongest_{name}": strongest.get(name) for name in STRONGEST_LIMITS}
        square = self.accuracy.get("square", 0)
        options = {**limits, "only": SWEEP_COLUMNS, "square": square, "autoattack": 0, "black_box": None}
        if (dataset, method, seed) not in self.table_runs(dataset):
            return options | {"images": self.accuracy.get("sweep_images") or limits["images"]}
        if seed != self.seeds_of(dataset)[0]:
            return options | {"only": tuple(self.accuracy.get("other_seeds") or ())}
        autoattack = self.autoattack_images(dataset, method) or 0
        return options | {"only": (), "autoattack": autoattack, "black_box": self.copy_of(dataset, method)}

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
    start_folder = Path(start or Path.cwd()).resolve()
    for folder in (start_folder, *start_folder.parents):
        if is_project(folder):
            return folder
    raise FileNotFoundError(
        f"no project above {start_folder}: expected a folder with workflow/scales. Work inside a clone, or set TLA_ROOT"
        " to it."
    )


def is_project(folder: Path) -> bool:
    """Whether a folder is the root of a project."""
    return (folder / "workflow" / "scales").is_dir()


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
        near = did_you_mean(name, known)
        raise ValueError(f"unknown scale {name!r}.{near} There are: {', '.join(known) or 'none'} in {path.parent}.")
    known = {f.name for f in dataclasses.fields(Scale)} - {"name", "root", "own_datasets", "own_methods", "own_steps"}
    values = read_scale_file(path, root, known)
    try:
        scale = Scale(**values, name=name, root=root)
        for dataset, method in product(scale.datasets, scale.methods):
            scale.config(dataset, method)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    return scale


def accuracy_flags(options: dict[str, Any]) -> list[str]:
    """What `tla evaluate RUN` must be told for these options of `run_attacks`, word by word."""
    words = []
    for name, value in options.items():
        if value or name == "square":  # which the command does unless it is told not to
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


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


def replaced_settings(settings: Any, changes: dict[str, Any], source: str) -> Any:
    """Settings with fields replaced, of an attack one by one. Numbers may be text: 8/255, or 1e-4 as YAML reads it."""
    known = [f.name for f in dataclasses.fields(settings) if f.name not in ("method", "seed")]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"{source} hold an unknown field: {', '.join(unknown)}. There are: {', '.join(known)}.")
    values = {}
    for name, value in changes.items():
        old_value = getattr(settings, name)
        if isinstance(old_value, AttackConfig) and isinstance(value, dict):
            value = replaced_settings(old_value, value, f"{source}, {name},")
        elif isinstance(old_value, float) and isinstance(value, str):
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
