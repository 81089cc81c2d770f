"""What the file of each kind of result is called, and what its metadata must say by the settings alone.

The metadata also name the weights: see `analysis.scales.run_results.of_checkpoint`.
"""

import os
from pathlib import Path
from typing import Any

from analysis.scales.scale import is_project
from tla_core.config import TrainConfig
from tla_core.protocol import analysis_attack

Target = tuple[str, dict[str, Any]]


def representations(config: TrainConfig, eps: float | None = None, images: int | None = None) -> Target:
    """Of a run's test images, at a perturbation level (by default that of its dataset's attack); all, or so many."""
    attack = analysis_attack(config, eps)
    return f"representations-eps{attack.eps:g}.safetensors", {
        "layer": "penultimate", "attack": attack.to_dict(), "images": images,
    }  # fmt: skip


def train_representations() -> Target:
    """Of the clean training images."""
    return "representations-train.safetensors", {"layer": "penultimate", "split": "train"}


def class_maps(config: TrainConfig, eps: float | None, settings: dict[str, Any]) -> Target:
    """Maps of each class; settings are those of `map_classes`."""
    return _of_representations("class-maps", config, eps, settings)


def pair_maps(config: TrainConfig, eps: float | None, settings: dict[str, Any]) -> Target:
    """Maps of class pairs; settings are ``pairs`` and those of `map_pair`."""
    return _of_representations("pair-maps", config, eps, settings)


def landscapes(config: TrainConfig, settings: dict[str, Any]) -> Target:
    """Loss landscapes; settings are those of `analysis.scales.run_results.landscape_run`."""
    return "landscapes.safetensors", {"eps": analysis_attack(config).eps, **settings}


def results_dir(run_dir: Path | str) -> Path:
    """Where the results of a run lie: the same path below ``results`` as the run has below ``runs``."""
    run_dir = Path(run_dir)
    if "runs" not in run_dir.parts and not run_dir.is_absolute():  # from inside the folder of a run, or one above it
        here = Path(os.path.abspath(run_dir))
        above = next((folder for folder in here.parents if folder.name == "runs" or is_project(folder)), here)
        run_dir = here if above.name == "runs" else run_dir
    parts = list(run_dir.parts)
    if "runs" not in parts:
        return run_dir / "results"
    last = len(parts) - 1 - parts[::-1].index("runs")
    return Path(*parts[:last], "results", *parts[last + 1 :])


def _of_representations(name: str, config: TrainConfig, eps: float | None, settings: dict[str, Any]) -> Target:
    file, made_from = representations(config, eps)
    return file.replace("representations", name), {**made_from, "settings": settings}
