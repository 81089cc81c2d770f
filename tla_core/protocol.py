"""What the paper does with trained networks: its sweeps, the attacks of its figures, the columns of its tables."""

from dataclasses import dataclass, replace
from typing import Any

from tla_core.attack_config import AttackConfig
from tla_core.config import TrainConfig
from tla_core.presets import OURS, SUPPLEMENT

# Sweeps ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """One field of TLA's settings, and the values that a table of the supplement gives it.

    Attributes
    ----------
    field : str
    values : tuple
    base : dict
        Other fields that the sweep holds fixed.
    source : str
        Where the values come from.
    """

    field: str
    values: tuple[Any, ...]
    base: dict[str, Any]
    source: str


SWEEPS: dict[str, Sweep] = {
    "table4": Sweep("lambda_triplet", (0.0, 0.025, 0.5, 1.0, 2.0, 4.0), {}, SUPPLEMENT),
    "table5": Sweep("margin", (0.0, 0.025, 0.05, 0.1, 0.2), {"lambda_triplet": 2.0}, SUPPLEMENT),
    "table6": Sweep("layer", ("lower", "middle", "higher", "logits"), {"lambda_triplet": 2.0}, SUPPLEMENT),
    "pool_size": Sweep("pool_size", (10, 50, 100, 250, 500), {}, OURS),
}


def sweep_configs(name: str, preset: str, *, seed: int = 0, **overrides: Any) -> dict[str, TrainConfig]:
    """The trainings of a sweep, by their variants.

    Parameters
    ----------
    name : {"table4", "table5", "table6", "pool_size"}
    preset : str
        A preset of TLA.
    seed : int
    **overrides
        Fields that are replaced in all of them, such as ``epochs``.

    Returns
    -------
    dict of str to TrainConfig
        Keys such as ``"lambda_triplet=2"``.

    Raises
    ------
    ValueError
        For an unknown sweep or preset, or a preset of another method.
    """
    if name not in SWEEPS:
        raise ValueError(f"unknown sweep {name!r}. There are: {', '.join(SWEEPS)}.")
    sweep = SWEEPS[name]
    base = TrainConfig.preset(preset, seed=seed, **{**sweep.base, **overrides})
    if base.method != "tla":
        raise ValueError(f"a sweep is over settings of TLA. Got the preset {preset!r}; use .../tla.")
    return {
        f"{sweep.field}={value if isinstance(value, str) else format(value, 'g')}": replace(
            base, **{sweep.field: value}
        )
        for value in sweep.values
    }


# Analysis and evaluation ----------------------------------------------------------------------------------------------

# By dataset: the attack that tables and figures are made with, and the perturbation levels of Table 3, to which it is
# scaled: as many steps, of a size in proportion.
_PGD20_NATURAL = AttackConfig(eps=8 / 255, step_size=1 / 255, steps=20)
ANALYSIS_ATTACKS: dict[str, AttackConfig] = {
    "mnist-mini": AttackConfig(eps=0.3, step_size=0.06, steps=10),
    "mnist": AttackConfig(eps=0.3, step_size=0.01, steps=100),
    "cifar10": _PGD20_NATURAL,
    "cifar10-jpeg": _PGD20_NATURAL,
    "tiny-imagenet": replace(_PGD20_NATURAL, step_size=2 / 255),
}
ANALYSIS_LEVELS: dict[str, tuple[float, ...]] = {
    "mnist-mini": (0.03, 0.3),
    "mnist": (0.03, 0.3),
    "cifar10": (8 / 255, 25 / 255),
    "cifar10-jpeg": (8 / 255, 25 / 255),
    "tiny-imagenet": (8 / 255, 25 / 255),
}


def analysis_attack(config: TrainConfig, eps: float | None = None) -> AttackConfig:
    """The attack that a run is analysed with, at any perturbation level.

    That of its dataset; for a dataset of the user's, 20 steps of a tenth of the eps that it was trained with. File
    names and commands give a level with six digits: 0.0313725 stands for the level 8/255.
    """
    trained_with = config.attack
    users = AttackConfig(norm=trained_with.norm, eps=trained_with.eps, step_size=trained_with.eps / 10, steps=20)
    attack = ANALYSIS_ATTACKS.get(config.dataset, users)
    if eps is None:
        return attack
    levels = (attack.eps, *ANALYSIS_LEVELS.get(config.dataset, ()))
    eps = next((level for level in levels if f"{level:g}" == f"{eps:g}"), eps)
    return attack if eps == attack.eps else attack.scaled(eps)


def analysis_levels(config: TrainConfig) -> tuple[float, ...]:
    """The perturbation levels of a run's analysis: those of its dataset; for a user's dataset that of its attack."""
    return ANALYSIS_LEVELS.get(config.dataset) or (analysis_attack(config).eps,)


@dataclass(frozen=True)
class AccuracyColumn:
    """A column of the paper's accuracy table.

    Attributes
    ----------
    attack : AttackConfig
    black_box : bool
        The examples are made against an independently trained copy.
    """

    attack: AttackConfig
    black_box: bool = False


def accuracy_columns(config: TrainConfig) -> dict[str, AccuracyColumn]:
    """The columns of the paper's accuracy table for the dataset of a run, besides the clean accuracy.

    The names are the paper's: ``20PGD100`` is PGD with 100 steps and 20 restarts, the worst case of each image;
    ``BB100`` is transferred from an independently trained copy. Step sizes, which are published for PGD alone: MNIST
    0.01; CIFAR-10 1/255 for PGD with 20 steps and MIM, and 2/255, as in training, for BIM, C&W and PGD with 7;
    Tiny-ImageNet 2/255. For a dataset of the user's: those of CIFAR-10, in proportion to the eps that the run was
    trained with.
    """
    name = config.dataset
    if name in ("mnist", "mnist-mini"):
        return _columns(0.3, 0.01, 0.01, short=40, long=100, cw=40, mim=200, black_box=100, norm="linf")
    if name == "tiny-imagenet":
        return _columns(8 / 255, 2 / 255, 2 / 255, short=7, long=20, cw=30, mim=40, black_box=7, norm="linf")
    eps = 8 / 255 if name in ("cifar10", "cifar10-jpeg") else config.attack.eps
    norm = config.attack.norm
    return _columns(eps, eps / 4, eps / 8, short=7, long=20, cw=30, mim=40, black_box=7, norm=norm)


# Images that the strongest attacks are run on: the standard error of an accuracy is at most 1.6 points.
STRONGEST_IMAGES = 1000


def strongest_attacks(config: TrainConfig, n_classes: int) -> dict[str, AttackConfig]:
    """The two attacks that every accuracy table has, at the dataset's `eps`: the gradient attacks of AutoAttack.

    APGD with 100 steps on the cross-entropy, and towards each of nine classes on the targeted difference of logits
    ratio (Croce and Hein 2020); with fewer than four classes, for which that is not defined, on the margin.
    """
    return strongest_of(analysis_attack(config), n_classes)


def strongest_of(attack: AttackConfig, n_classes: int) -> dict[str, AttackConfig]:
    """The same at the norm and `eps` of an attack."""
    apgd = AttackConfig(name="apgd", norm=attack.norm, eps=attack.eps, steps=100)
    return {"APGD-CE": apgd, "APGD-T": replace(apgd, loss="dlr" if n_classes > 3 else "margin", targets=9)}


def _columns(
    eps: float, step: float, fine: float, *, short: int, long: int, cw: int, mim: int, black_box: int, norm: str
) -> dict[str, AccuracyColumn]:
    def attack(name: str, steps: int, step_size: float, restarts: int = 1) -> AttackConfig:
        return AttackConfig(name=name, norm=norm, eps=eps, step_size=step_size, steps=steps, restarts=restarts)

    return {
        "FGSM": AccuracyColumn(attack("fgsm", 1, eps)),
        f"BIM{short}": AccuracyColumn(attack("bim", short, step)),
        f"C&W{cw}": AccuracyColumn(attack("cw", cw, step)),
        f"PGD{short}": AccuracyColumn(attack("pgd", short, step)),
        f"PGD{long}": AccuracyColumn(attack("pgd", long, fine)),
        f"20PGD{long}": AccuracyColumn(attack("pgd", long, fine, restarts=20)),
        f"MIM{mim}": AccuracyColumn(attack("mim", mim, fine)),
        f"BB{black_box}": AccuracyColumn(attack("pgd", black_box, step), black_box=True),
    }
