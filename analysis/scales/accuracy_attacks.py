"""Which attacks the accuracy table of a run, or of any model, consists of."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.scales.run_results import run_config
from tla_core.attacks import Attack, TransferAttack
from tla_core.autoattack import AutoAttack
from tla_core.config import TrainConfig
from tla_core.protocol import STRONGEST_IMAGES, accuracy_columns, strongest_attacks
from tla_core.run_folder import RunFolder
from tla_core.training import load_model
from tla_core.validation import did_you_mean

AUTOATTACK, SQUARE = "AutoAttack", "Square"


def run_attacks(
    run_dir: Path | str, *, black_box: Path | str | None = None, **options: Any
) -> tuple[dict[str, Attack], dict[str, int]]:
    """What `tla evaluate RUN` measures of a run: see `table_attacks`.

    The black-box column is of an independently trained copy, by default that in ``<method>@copy`` beside the run's own
    folder.
    """
    config, copy = run_config(run_dir), black_box or _copy_of(Path(run_dir))
    return table_attacks(config, RunFolder(run_dir).record()["data"]["classes"], black_box=copy, **options)


def table_attacks(
    config: TrainConfig, n_classes: int, *, black_box: Path | str | None = None, images: int | None = None,
    long_images: int | None = None, strongest_images: int | None = None, strongest_steps: int | None = None,
    strongest_targets: int | None = None, square: int = 1000, restarts: int | None = None, autoattack: int = 0,
    only: Sequence[str] = (), device: str = "auto",
) -> tuple[dict[str, Attack], dict[str, int]]:  # fmt: skip
    """The attacks of the accuracy table.

    Parameters
    ----------
    config : TrainConfig
        Whose dataset, and for one of the user's whose attack, says how strong they are.
    n_classes : int
    black_box : Path or str, optional
        An independently trained run, whose adversarial examples are transferred. Without one that column is left out.
    images : int, optional
        Images for every attack; by default all.
    long_images : int, optional
        Images for the paper's attacks of more than 40 steps, or with restarts; by default 500 of mnist-mini, and all of
        any other dataset.
    strongest_images, strongest_steps, strongest_targets : int, optional
        Images for those of `strongest_attacks`, and for Square, by default 1,000; the steps of the former, by default
        100; and the classes that the targeted one goes towards, by default 9.
    square : int
        Queries of Square, which needs no gradients; 0 leaves it out.
    restarts : int, optional
        Restarts beyond it are not run; the column's name says how many were. By default 3 on mnist-mini, elsewhere 20.
    autoattack : int
        Images for AutoAttack; 0 leaves it out.
    only : sequence of str
        Columns; by default all.
    device : str

    Returns
    -------
    attacks : dict of str to attack
        Column -> attack: the paper's for the dataset, those of `strongest_attacks`, Square and AutoAttack.
    limits : dict of str to int
        Column -> images that the attack is run on, where they are not all.

    Raises
    ------
    ValueError
        For a column that there is not.
    """
    mini = config.dataset == "mnist-mini"
    long_images, restarts = long_images or (500 if mini else None), restarts or (3 if mini else 20)
    attacks: dict[str, Attack] = {}
    limits: dict[str, int] = {}
    for name, column in accuracy_columns(config).items():
        attack = column.attack
        if attack.restarts > restarts:
            name = name.replace(str(attack.restarts), str(restarts), 1)
            attack = replace(attack, restarts=restarts)
        if count := (long_images if attack.steps > 40 or attack.restarts > 1 else None) or images:
            limits[name] = min(count, images or count)
        if column.black_box and black_box is None:
            continue
        attacks[name] = TransferAttack(load_model(black_box, device=device), attack) if column.black_box else attack
    strong = strongest_attacks(config, n_classes)
    for name, attack in strong.items():
        targets = strongest_targets if attack.targets else None
        strong[name] = replace(attack, steps=strongest_steps or attack.steps, targets=targets or attack.targets)
    count = strongest_images or STRONGEST_IMAGES
    if square:
        strong[SQUARE] = replace(strong["APGD-CE"], name="square", steps=square)
    attacks, limits = attacks | strong, limits | dict.fromkeys(strong, min(count, images or count))
    if autoattack:
        attacks[AUTOATTACK] = AutoAttack(eps=strong["APGD-CE"].eps, norm=strong["APGD-CE"].norm)
        limits[AUTOATTACK] = autoattack
    if unknown := sorted(set(only) - {"clean", *attacks}):
        near = did_you_mean(unknown[0], attacks)
        raise ValueError(f"no column {', '.join(unknown)}.{near} There are: clean, {', '.join(attacks)}.")
    attacks = {name: attack for name, attack in attacks.items() if not only or name in only}
    return attacks, {name: count for name, count in limits.items() if name in attacks}


def _copy_of(run_dir: Path) -> Path | None:
    """A finished run in ``<method>@copy`` beside the folder of the method."""
    run_dir = Path(os.path.abspath(run_dir))  # it may be the folder that one is in
    copies = run_dir.parent.with_name(f"{run_dir.parent.name.partition('@')[0]}@copy")
    return next((path.parent for path in sorted(copies.glob("seed*/model.safetensors"))), None)
