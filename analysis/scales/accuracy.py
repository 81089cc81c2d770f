"""The paper's accuracy table of a run: measured attack by attack, stored after each, and shown beside other runs."""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from analysis.scales.accuracy_store import (
    APGD_COLUMNS,
    STRONGEST,
    add_comparisons,
    add_outcomes,
    is_enough,
    load_outcomes,
    read_outcomes,
    with_strongest,
)
from analysis.scales.run_results import run_config, run_images
from analysis.scales.targets import results_dir
from analysis.tables import Column, Table
from tla_core.attacks import Attack, TransferAttack
from tla_core.autoattack import AutoAttack
from tla_core.checkpoint import CheckpointError, check_writable, file_sha256
from tla_core.config import canonical_json
from tla_core.datasets import ImageDataset
from tla_core.evaluation import Evaluation, describe_attack, evaluate
from tla_core.evaluation_run import image_steps
from tla_core.protocol import STRONGEST_IMAGES, accuracy_columns, strongest_attacks
from tla_core.run_folder import RunFolder
from tla_core.training import load_model

AUTOATTACK, SQUARE = "AutoAttack", "Square"


@dataclass(frozen=True, repr=False)
class RunAccuracy(Evaluation):
    """The accuracies of one run, as they are stored.

    Attributes
    ----------
    path : Path
        Where they are stored; a ``.json`` for people lies beside it.
    correct : dict of str to Tensor, (k,), bool
        ``"clean"``, each attack, and ``"strongest"``, see `with_strongest`. A costly attack may have been run on fewer
        images, evenly spread over the set.
    attacks, checks : dict of str to dict
        As of `Evaluation`, the checks as JSON values.
    """

    path: Path = Path()


def run_attacks(
    run_dir: Path | str, *, black_box: Path | str | None = None, images: int | None = None,
    long_images: int | None = None, strongest_images: int | None = None, strongest_steps: int | None = None,
    strongest_targets: int | None = None, square: int = 1000, restarts: int | None = None, autoattack: int = 0,
    only: Sequence[str] = (), device: str = "auto",
) -> tuple[dict[str, Attack], dict[str, int]]:  # fmt: skip
    """What `tla evaluate RUN` measures of a run.

    Parameters
    ----------
    run_dir : Path or str
    black_box : Path or str, optional
        An independently trained copy, whose adversarial examples are transferred; by default that in
        ``<method>@copy`` beside the run's own folder. Without one the black-box column is left out.
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
        Column -> attack: the paper's for the dataset of the run, those of `strongest_attacks`, Square and AutoAttack.
    limits : dict of str to int
        Column -> images that the attack is run on, where they are not all.

    Raises
    ------
    ValueError
        For a column that there is not.
    """
    config = run_config(run_dir)
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
        copy = black_box or _copy_of(Path(run_dir)) if column.black_box else None
        if column.black_box and copy is None:
            continue
        attacks[name] = TransferAttack(load_model(copy, device=device), attack) if copy else attack
    strong = strongest_attacks(config, RunFolder(run_dir).record()["data"]["classes"])
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
        raise ValueError(f"no column {', '.join(unknown)}. There are: clean, {', '.join(attacks)}.")
    attacks = {name: attack for name, attack in attacks.items() if not only or name in only}
    return attacks, {name: count for name, count in limits.items() if name in attacks}


def missing_columns(
    run_dir: Path | str, attacks: Mapping[str, Attack], *, split: str = "test", limits: Mapping[str, int] | None = None
) -> list[str]:
    """Which of the attacks `evaluate_run` would have to measure."""
    data = run_images(run_dir, split)
    correct = _measured(run_dir, attacks, split, limits, data)[2]
    return [name for name in ("clean", *attacks) if name not in correct]


def stored_outcomes(run_dir: Path | str, *, split: str = "test") -> dict[str, Tensor]:
    """What is stored of a run's accuracies, with the strongest; nothing is measured, and nothing is there of others."""
    correct = _measured(run_dir, {}, split, None, run_images(run_dir, split))[2]
    return with_strongest(correct) if correct else {}


def stored_accuracy(path: Path | str, weights: Path | str, order: Sequence[str] = ()) -> RunAccuracy:
    """The accuracies in a file of `evaluate_run`, which must be those of the weights, in a given order of attacks.

    Attacks that the order does not name follow.

    Raises
    ------
    CheckpointError
        If they are those of other weights, or the file cannot be trusted.
    """
    correct, metadata = load_outcomes(Path(path))
    if metadata["checkpoint_sha256"] != file_sha256(weights):
        raise CheckpointError(f"{path} was measured of other weights than those of {weights}. Run `tla evaluate`.")
    columns = metadata["columns"]
    add_comparisons(correct, columns)
    order = ("clean", *order)
    names = sorted(correct, key=lambda name: (order.index(name) if name in order else len(order), name))
    return RunAccuracy(
        with_strongest({name: correct[name] for name in names}),
        {name: columns[name]["settings"] for name in names if name in columns and "settings" in columns[name]},
        {"model" if name == "clean" else name: columns[name]["checks"] for name in names if name in columns},
        Path(path),
    )


def evaluate_run(
    run_dir: Path | str,
    attacks: Mapping[str, Attack],
    *,
    split: str = "test",
    limits: Mapping[str, int] | None = None,
    batch_size: int = 256,
    device: str = "auto",
    progress: bool = True,
) -> RunAccuracy:
    """Measure those accuracies of a run that are not stored yet, and store each as soon as it is measured.

    Several evaluations of one run may work at the same time: each adds its columns to those that the others stored.

    Parameters
    ----------
    run_dir : Path or str
    attacks : mapping of str to AttackConfig, TransferAttack or callable
        See `run_attacks`. An attack that is stored under its name, with the same settings and checkpoint, and of as
        many images or more, is not run again.
    split : {"test", "train", "holdout"}
        See `analysis.scales.run_results.run_images`.
    limits : mapping of str to int, optional
        Attack -> number of images that it is run on, evenly spread over the split; by default all.
    batch_size : int
    device : str
    progress : bool

    Returns
    -------
    RunAccuracy
        Of the clean images and of all stored attacks, those asked for in this call first.

    Raises
    ------
    CheckpointError
        If the run's files are damaged, or the run was trained again meanwhile.
    OSError
        If the results cannot be written: before anything is measured.

    Warns
    -----
    UserWarning
        If an attack is stored with other settings: its outcomes are replaced.
    """
    data = run_images(run_dir, split)
    path, expected, correct, columns = _measured(run_dir, attacks, split, limits, data, tell=True)
    weights = RunFolder(run_dir).model_path
    counts = _counts(attacks, limits, data) | {name: columns[name]["images"] for name in attacks if name in correct}
    todo = [name for name in attacks if name not in correct]
    if todo or "clean" not in correct:
        check_writable(path)
        model = load_model(run_dir, device=device)
        clean = {"clean": correct["clean"]} if "clean" in correct else {}
        total = sum(image_steps(attacks[name]) * counts[name] for name in todo) + len(data.labels) * (not clean)
        with tqdm(total=total, unit="image step", unit_scale=True, disable=not progress, desc="evaluate") as bar:
            unreliable = {}
            if not clean:
                evaluation = evaluate(model, data.images, data.labels, batch_size=batch_size, progress=bar)
                correct["clean"], unreliable = evaluation.correct["clean"], evaluation.checks.get("model", {})
            # Attacks that are run on the same images go together; each outcome is stored at once.
            outcomes, outcome_columns = {"clean": correct["clean"]}, {}
            for count in dict.fromkeys(counts[name] for name in todo):
                rows = torch.arange(count) * len(data.labels) // count
                group = {name: attacks[name] for name in attacks if counts[name] == count}
                known = {"clean": correct["clean"][rows]} | {name: correct[name] for name in group if name in correct}

                def store(name: str, outcome: Tensor, checks: dict, count: int = count) -> None:
                    outcomes[name] = outcome
                    values = {key: asdict(check) for key, check in checks.items()}
                    outcome_columns[name] = {"settings": _settings(attacks[name]), "images": count, "checks": values}
                    add_outcomes(path, expected, outcomes, outcome_columns, weights)

                # The search without gradients takes what the strongest attacks leave, if they are run at all.
                search = set(APGD_COLUMNS) <= set(group) or not set(APGD_COLUMNS) & set(attacks)
                evaluation = evaluate(
                    model, data.images[rows], data.labels[rows], group, batch_size=batch_size, progress=bar,
                    known=known, on_outcome=store, search=search,
                )  # fmt: skip
                model_checks = {key: asdict(check) for key, check in (evaluation.checks["model"] | unreliable).items()}
                outcome_columns["clean"] = {"settings": {}, "images": len(data.labels), "checks": model_checks}
        correct, columns = add_outcomes(path, expected, outcomes, outcome_columns, weights)
    else:
        with contextlib.suppress(OSError):  # what is only looked at need not be written
            add_outcomes(path, expected, {}, {}, weights)
        add_comparisons(correct, columns)
    # All that is stored, the attacks of this call first.
    order = ["clean", *attacks, *sorted(set(correct) - {"clean", *attacks})]
    checks = {name: columns[name]["checks"] for name in order if name in columns}
    return RunAccuracy(
        with_strongest({name: correct[name] for name in order}),
        {name: columns[name]["settings"] for name in order if name != "clean"},
        {"model" if name == "clean" else name: checked for name, checked in checks.items()},
        path,
    )


def accuracy_table(runs: Mapping[str, RunAccuracy], *, caption: str = "") -> Table:
    """One row for each run: accuracies in percent, each followed by its standard error.

    Parameters
    ----------
    runs : mapping of str to RunAccuracy
    caption : str
        By default the attacks' images, where they are not all, are named.
    """
    names = list(dict.fromkeys(name for run in runs.values() for name in run.correct))
    names.sort(key=lambda name: name == STRONGEST)  # behind the attacks of which it is the worst case
    rows = []
    for label, run in runs.items():
        row: dict[str, Any] = {"model": label}
        for name, value in run.accuracy.items():
            row |= {name: value, f"{name} se": run.standard_error[name]}
        rows.append(row)
    columns = [Column("model", "")]
    for name in names:
        title = "Clean" if name == "clean" else name
        columns.append(Column(name, title, digits=2, best="max", percent=True, error=f"{name} se"))
    if not caption:
        caption = f"Accuracy in %, with standard errors, {images_note(runs)}"
        if STRONGEST in names:
            caption += f"; {STRONGEST}: the worst case for each image of all attacks that were run"
    return Table(columns, rows, caption)


def images_note(runs: Mapping[str, RunAccuracy]) -> str:
    """The number of images behind each accuracy: ``on 1000 images; PGD100 on 250``."""
    total = next((len(run.correct["clean"]) for run in runs.values()), 0)
    smaller_counts = {
        name: len(run.correct[name])
        for run in runs.values()
        for name in run.correct
        if len(run.correct[name]) < len(run.correct["clean"])
    }
    names: dict[int, list[str]] = {}
    for name, count in smaller_counts.items():
        names.setdefault(count, []).append(name)
    return f"on {total} images" + "".join(f"; {', '.join(columns)} on {count}" for count, columns in names.items())


def _counts(attacks: Mapping[str, Attack], limits: Mapping[str, int] | None, data: ImageDataset) -> dict[str, int]:
    return {name: min((limits or {}).get(name, len(data.labels)), len(data.labels)) for name in attacks}


def _measured(
    run_dir: Path | str, attacks: Mapping[str, Attack], split: str, limits: Mapping[str, int] | None,
    data: ImageDataset, *, tell: bool = False,
) -> tuple[Path, dict[str, Any], dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """Path and metadata of a run's accuracies, and what is stored, without what was measured with other settings."""
    checkpoint = RunFolder(run_dir).finished_model()
    path = results_dir(run_dir) / f"accuracy-{split}.safetensors"
    expected = {"checkpoint_sha256": file_sha256(checkpoint), "data": data.source, "of": len(data.labels)}
    correct, columns = read_outcomes(path, expected)
    counts = _counts(attacks, limits, data)
    for name, attack in attacks.items():
        stored, settings = columns.get(name), _settings(attack)
        if stored is None or is_enough(stored, settings, counts[name]):
            continue
        if tell and (changed := _changes(stored["settings"], settings)):
            outcome = correct[name]
            warnings.warn(
                f"{path}: {name}, {100 * outcome.double().mean().item():.2f} % on {len(outcome)} images, is measured"
                f" again and replaced: {changed}.",
                stacklevel=3,
            )
        del correct[name], columns[name]
    return path, expected, correct, columns


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if canonical_json(old.get(key)) != canonical_json(new.get(key))]
    return ", ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys)


def _copy_of(run_dir: Path) -> Path | None:
    """A finished run in ``<method>@copy`` beside the folder of the method."""
    run_dir = Path(os.path.abspath(run_dir))  # it may be the folder that one is in
    copies = run_dir.parent.with_name(f"{run_dir.parent.name.partition('@')[0]}@copy")
    return next((path.parent for path in sorted(copies.glob("seed*/model.safetensors"))), None)


def _settings(attack: Attack) -> dict[str, Any]:
    if not isinstance(attack, TransferAttack):
        return describe_attack(attack)
    weights = [tensor.detach().cpu().contiguous() for _, tensor in sorted(attack.source.state_dict().items())]
    digest = hashlib.sha256(b"".join(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in weights))
    return {**describe_attack(attack), "source_weights_sha256": digest.hexdigest()}
