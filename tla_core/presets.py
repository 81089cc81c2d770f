"""The tables of settings. Every value carries its source, so that a reader sees what is published and what is ours."""

from typing import Any

from tla_core.config import METHODS, AttackConfig, TrainConfig

SUPPLEMENT, OURS = "supplement", "ours"

# Field -> (value, source). A narrow Table 1 network and a short schedule: four methods in minutes on two cores.
_MINI_MNIST: dict[str, tuple[Any, str]] = {
    "dataset": ("mnist-mini", OURS),
    "network": ("lenet", SUPPLEMENT),
    "width": (1 / 8, OURS),
    "epochs": (6, OURS),
    "batch_size": (100, OURS),
    "optimizer": ("adam", SUPPLEMENT),
    "learning_rate": (0.006, OURS),
    "schedule": ("onecycle", OURS),
    "warmup": (0.3, OURS),
    "weight_decay": (2e-4, SUPPLEMENT),
    "label_smoothing": (0.1, SUPPLEMENT),
    "attack": (AttackConfig(eps=0.3, step_size=0.15, steps=3), OURS),
    "eps_ramp": (1 / 3, OURS),
    "holdout": (300, OURS),
    "selection_attack": (AttackConfig(eps=0.3, step_size=0.06, steps=10), OURS),
}

# What a method adds to, or changes in, the settings of its dataset.
_METHOD_MNIST: dict[str, dict[str, tuple[Any, str]]] = {
    "um": {},
    "at": {},
    "alp": {"lambda_alp": (0.5, SUPPLEMENT)},
    "tla": {
        "lambda_triplet": (0.5, SUPPLEMENT),
        "lambda_norm": (0.001, SUPPLEMENT),
        "margin": (0.05, SUPPLEMENT),
        "pool_size": (50, SUPPLEMENT),
        "layer": ("penultimate", SUPPLEMENT),
    },
}

PRESETS: dict[str, dict[str, tuple[Any, str]]] = {
    f"mini/mnist/{method}": {"method": (method, SUPPLEMENT), **_MINI_MNIST, **_METHOD_MNIST[method]}
    for method in METHODS
}

# By dataset: the attack that tables and figures are made with, and the perturbation levels of Table 3, to which it is
# scaled: as many steps, of a size in proportion.
ANALYSIS_ATTACKS: dict[str, AttackConfig] = {"mnist-mini": AttackConfig(eps=0.3, step_size=0.03, steps=20)}
ANALYSIS_LEVELS: dict[str, tuple[float, ...]] = {"mnist-mini": (0.03, 0.3)}


def list_presets() -> tuple[str, ...]:
    """Names of all presets, ``<scale>/<dataset>/<method>``."""
    return tuple(PRESETS)


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of a preset, without their sources.

    Raises
    ------
    ValueError
        If there is no such preset; the message lists them.
    """
    return {field: value for field, (value, _) in _preset(name).items()}


def preset_sources(name: str) -> dict[str, str]:
    """Where each value of a preset comes from: the supplement, or ours.

    Raises
    ------
    ValueError
        If there is no such preset; the message lists them.
    """
    return {field: source for field, (_, source) in _preset(name).items()}


def analysis_attack(config: TrainConfig, eps: float | None = None) -> AttackConfig:
    """The attack that a run is analysed with, at any perturbation level.

    That of its dataset; for a dataset of the user's, 20 steps of a tenth of the eps that it was trained with. File
    names and commands give a level with six digits: 0.0313725 stands for the level 8/255.
    """
    own = AttackConfig(norm=config.attack.norm, eps=config.attack.eps, step_size=config.attack.eps / 10, steps=20)
    attack = ANALYSIS_ATTACKS.get(config.dataset, own)
    if eps is None:
        return attack
    levels = (attack.eps, *ANALYSIS_LEVELS.get(config.dataset, ()))
    eps = next((level for level in levels if f"{level:g}" == f"{eps:g}"), eps)
    return attack if eps == attack.eps else attack.scaled(eps)


def _preset(name: str) -> dict[str, tuple[Any, str]]:
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}. There are: {', '.join(PRESETS)}.")
    return PRESETS[name]
