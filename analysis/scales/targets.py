"""The file name of each kind of result, and the settings that its metadata must hold.

The metadata also name the weights: see `analysis.scales.run_results.of_checkpoint`.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from analysis.scales.scale import is_project
from tla_core.config import TrainConfig
from tla_core.protocol import analysis_attack


class Target(NamedTuple):
    """A file of results: its name, below the results of its run, and the settings that its metadata must hold."""

    file: str
    settings: dict[str, Any]


def representations(config: TrainConfig, eps: float | None = None, images: int | None = None) -> Target:
    """Of a run's test images, at a perturbation level (by default that of its dataset's attack); all, or so many."""
    attack = analysis_attack(config, eps)
    settings = {"layer": "penultimate", "attack": attack.to_dict(), "images": images}
    return Target(f"representations-eps{attack.eps:g}.safetensors", settings)


def train_representations() -> Target:
    """Of the clean training images."""
    return Target("representations-train.safetensors", {"layer": "penultimate", "split": "train"})


def class_maps(config: TrainConfig, eps: float | None, settings: dict[str, Any]) -> Target:
    """Maps of each class; settings are those of `map_classes`."""
    return _maps("class-maps", config, eps, settings)


def pair_maps(config: TrainConfig, eps: float | None, settings: dict[str, Any]) -> Target:
    """Maps of class pairs; settings are ``pairs`` and those of `map_pair`."""
    return _maps("pair-maps", config, eps, settings)


def landscapes(config: TrainConfig, settings: dict[str, Any]) -> Target:
    """Loss landscapes; settings are those of `analysis.scales.run_results.landscape_run`."""
    return Target("landscapes.safetensors", {"eps": analysis_attack(config).eps, **settings})


def results_dir(run_dir: Path | str) -> Path:
    """Where the results of a run lie: the same path below ``results`` as the run has below ``runs``."""
    run_dir = Path(run_dir)
    if "runs" not in run_dir.parts and not run_dir.is_absolute():  # from inside the folder of a run, or one above it
        absolute = Path(os.path.abspath(run_dir))
        top = next((folder for folder in absolute.parents if folder.name == "runs" or is_project(folder)), absolute)
        run_dir = absolute if top.name == "runs" else run_dir
    parts = list(run_dir.parts)
    if "runs" not in parts:
        return run_dir / "results"
    place = len(parts) - 1 - parts[::-1].index("runs")
    return Path(*parts[:place], "results", *parts[place + 1 :])


def _maps(name: str, config: TrainConfig, eps: float | None, settings: dict[str, Any]) -> Target:
    source = representations(config, eps)
    return Target(source.file.replace("representations", name), {**source.settings, "settings": settings})
