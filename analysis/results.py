"""Finds the runs and results of a scale, and makes what is missing or stale: the same calls that the pipeline makes."""

from pathlib import Path
from shlex import quote
from typing import Any

from analysis.class_maps import ClassMap, load_maps, map_classes, save_maps
from analysis.representations import RepresentationSet
from analysis.scales import load_scale, results_dir
from tla_core.checkpoint import CheckpointError, file_sha256, load_tensors
from tla_core.config import AttackConfig, TrainConfig, canonical_json
from tla_core.presets import ANALYSIS_LEVELS, analysis_attack
from tla_core.run_folder import RunFolder


class MissingResultError(FileNotFoundError):
    """A result that is missing or stale, at a scale where it is not made in passing."""


class Results:
    """The results of one scale, by method; notebooks ask for these.

    Parameters
    ----------
    scale : str
        Name of a scale, such as ``"mini"``.
    root : Path or str, optional
        Root of the project; by default found from the working directory.
    make : bool, optional
        Make what is missing or stale. By default only at ``mini``, where it takes minutes.
    progress : bool
        Show progress bars while something is made.

    Examples
    --------
    >>> results = Results("mini")                                    # doctest: +SKIP
    >>> results.representations("tla", eps=0.3)                      # doctest: +SKIP
    """

    def __init__(
        self, scale: str = "mini", *, root: Path | str | None = None, make: bool | None = None, progress: bool = True
    ) -> None:
        self.scale = load_scale(scale, root)
        self.make = scale == "mini" if make is None else make
        self.progress = progress

    def __repr__(self) -> str:
        s = self.scale
        return f"Results({s.name!r}: {', '.join(s.datasets)}; {', '.join(s.methods)}; seeds {list(s.seeds)})"

    @property
    def methods(self) -> tuple[str, ...]:
        """The scale's methods, in the order um, at, alp, tla."""
        return self.scale.methods

    def levels(self, dataset: str | None = None) -> tuple[float, ...]:
        """The perturbation levels that a dataset is analysed at, eps in pixel units."""
        return ANALYSIS_LEVELS[self._config(self.methods[0], dataset).dataset]

    def attack(self, eps: float | None = None, dataset: str | None = None) -> AttackConfig:
        """The attack of the analysis, at one of its levels."""
        return analysis_attack(self._config(self.methods[0], dataset), eps)

    def run(self, method: str, *, dataset: str | None = None, seed: int = 0) -> Path:
        """The run folder of a method, trained if it is missing or was trained with other settings."""
        from tla_core.training import train

        dataset = dataset or self.scale.datasets[0]
        config = self.scale.config(dataset, method, seed)
        path = self.scale.run_dir(dataset, method, seed)
        if not is_trained(path, config):
            preset, flags = self.scale.preset(dataset, method), self.scale.flags(dataset, method)
            command = f"tla train {preset} --seed {seed} --out {quote(str(path))} --replace {flags}"
            self._may_make(path, command.rstrip())
            train(config, path, replace=True, progress=self.progress)
        return path

    def representations(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int = 0
    ) -> RepresentationSet:
        """Clean and adversarial test representations of a method at a perturbation level."""
        run = self.run(method, dataset=dataset, seed=seed)
        path, expected = representations_target(run, eps)
        if not _is_current(path, expected):
            self._may_make(path, f"tla extract {quote(str(run))} --eps {expected['attack']['eps']:g}")
            extract_run(run, eps, progress=self.progress)
        return RepresentationSet.load(path)

    def class_maps(
        self, method: str, eps: float | None = None, *, dataset: str | None = None, seed: int = 0
    ) -> dict[int, ClassMap]:
        """The map of each class of a method at a perturbation level."""
        run = self.run(method, dataset=dataset, seed=seed)
        settings = self.map_settings()
        path, expected = maps_target(run, eps, settings)
        if not _is_current(path, expected):
            level = f"--eps {expected['attack']['eps']:g} --scale {self.scale.name}"
            self._may_make(path, f"tla project {quote(str(run))} {level}")
            self.representations(method, eps, dataset=dataset, seed=seed)
            project_run(run, eps, settings, progress=self.progress)
        return load_maps(path)

    def map_settings(self) -> dict[str, Any]:
        """What this scale passes to `map_classes`."""
        return self.scale.map_settings()

    def source(self, method: str, *, dataset: str | None = None, seed: int = 0) -> dict[str, Any]:
        """Where a method's numbers come from, for the sidecar of a figure."""
        run = self.run(method, dataset=dataset, seed=seed)
        record = RunFolder(run).record()
        return {
            "method": method,
            "run": run.relative_to(self.scale.root).as_posix(),
            "config_identity": record["config_identity"],
            "checkpoint_sha256": file_sha256(RunFolder(run).model_path),
            "data": record["data"]["source"],
        }

    def _config(self, method: str, dataset: str | None) -> TrainConfig:
        return self.scale.config(dataset or self.scale.datasets[0], method)

    def _may_make(self, path: Path, command: str) -> None:
        if not self.make:
            raise MissingResultError(
                f"{path} is missing or stale. Make it with `{command}`, or everything of this scale with"
                f" `SCALE={self.scale.name} make figures`."
            )


def is_trained(run_dir: Path | str, config: TrainConfig) -> bool:
    """Whether the folder holds a finished run of these settings."""
    folder = RunFolder(run_dir)
    record = folder.record()
    return record is not None and record["config_identity"] == config.identity and folder.model_path.exists()


def run_config(run_dir: Path | str) -> TrainConfig:
    """The settings of a run.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    """
    record = RunFolder(run_dir).record()
    if record is None:
        raise FileNotFoundError(f"{run_dir} holds no run: there is no config.json. Train one with `tla train`.")
    return TrainConfig.from_dict(record["config"])


def representations_target(run_dir: Path | str, eps: float | None = None) -> tuple[Path, dict[str, Any]]:
    """Path of a run's representations, and what their metadata must say to be those of this checkpoint and attack."""
    from tla_core.evaluation import describe_attack

    attack = analysis_attack(run_config(run_dir), eps)
    model_path = RunFolder(run_dir).finished_model()
    path = results_dir(run_dir) / f"representations-eps{attack.eps:g}.safetensors"
    expected = {"checkpoint_sha256": file_sha256(model_path), "layer": "penultimate", "attack": describe_attack(attack)}
    return path, expected


def extract_run(
    run_dir: Path | str, eps: float | None = None, *, device: str = "auto", progress: bool = True
) -> Path:
    """Extract and store the test representations of a run at a perturbation level; see `extract`.

    Returns the path; nothing is done where the file is there and belongs to this checkpoint and attack.
    """
    from analysis.extraction import extract
    from tla_core.datasets import load_dataset
    from tla_core.training import load_model

    path, expected = representations_target(run_dir, eps)
    if _is_current(path, expected):
        return path
    config = run_config(run_dir)
    test = load_dataset(config.dataset, "test")
    reps = extract(
        load_model(run_dir, device=device),
        test.images,
        test.labels,
        attack=AttackConfig(**expected["attack"]),
        class_names=test.class_names,
        meta={**expected, "dataset": config.dataset, "split": "test", "source": test.source, "method": config.method},
        progress=progress,
    )
    reps.save(path)
    return path


def maps_target(run_dir: Path | str, eps: float | None, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Path of a run's class maps, and what their metadata must say."""
    path, expected = representations_target(run_dir, eps)
    return path.with_name(path.name.replace("representations", "class-maps")), {**expected, "settings": settings}


def project_run(run_dir: Path | str, eps: float | None, settings: dict[str, Any], *, progress: bool = True) -> Path:
    """Make and store the class maps of a run; its representations must be there."""
    source, _ = representations_target(run_dir, eps)
    path, expected = maps_target(run_dir, eps, settings)
    if not _is_current(path, expected):
        maps = map_classes(RepresentationSet.load(source), progress=progress, **settings)
        save_maps(path, maps, expected)
    return path


def _is_current(path: Path, expected: dict[str, Any]) -> bool:
    """Whether the file says that it is what is expected; a missing, truncated or altered one is not."""
    try:
        _, metadata = load_tensors(path)
    except (FileNotFoundError, CheckpointError):
        return False
    found = metadata.get("meta", metadata)
    return canonical_json({key: found.get(key) for key in expected}) == canonical_json(expected)
