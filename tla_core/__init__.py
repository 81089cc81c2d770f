"""Trains, attacks and evaluates image classifiers: UM, AT, ALP and TLA. Import it as ``import tla_core as tla``."""

import importlib
from typing import Any

# Name -> module. torch takes seconds to import, so nothing is imported before it is used.
_PUBLIC = {
    "AttackConfig": "attack_config",
    "TrainConfig": "config",
    "parse_number": "attack_config",
    "list_presets": "presets",
    "sweep_configs": "protocol",
    "ImageDataset": "datasets",
    "DatasetError": "datasets",
    "load_dataset": "datasets",
    "download_dataset": "datasets",
    "build_model": "models",
    "Normalize": "models",
    "pgd": "attacks",
    "fgsm": "attacks",
    "attack_mode": "attacks",
    "run_attack": "attacks",
    "TransferAttack": "attacks",
    "AutoAttack": "autoattack",
    "angular_distance": "losses",
    "triplet_loss": "losses",
    "norm_loss": "losses",
    "logit_pairing_loss": "losses",
    "hardest_negatives": "mining",
    "random_negatives": "mining",
    "semi_hard_negatives": "mining",
    "um_step": "methods",
    "at_step": "methods",
    "alp_step": "methods",
    "tla_step": "methods",
    "forward_with_layer": "layers",
    "list_layers": "layers",
    "wrap": "wrapping",
    "load_weights": "weights",
    "LoadedWeights": "weights",
    "train": "training",
    "load_model": "training",
    "TrainResult": "training",
    "TrainingDivergedError": "training_loop",
    "RunConflictError": "run_folder",
    "RankError": "distributed",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "masking_checks": "masking",
    "MaskingCheck": "masking",
    "MaskingWarning": "masking",
    "CheckpointError": "checkpoint",
}

__all__ = list(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
