"""The paper's accuracy table of a run: measured attack by attack, stored after each, and shown beside other runs."""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
from analysis.scales.run_results import run_images
from analysis.scales.targets import results_dir
from analysis.tables import Column, Table
from tla_core.attacks import Attack, TransferAttack
from tla_core.checkpoint import CheckpointError, check_writable, file_sha256
from tla_core.config import canonical_json
from tla_core.datasets import ImageDataset
from tla_core.evaluation import Evaluation, describe_attack, evaluate
from tla_core.evaluation_run import image_steps
from tla_core.run_folder import RunFolder
from tla_core.training import load_model


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


@dataclass(frozen=True)
class Subject:
    """What accuracies are measured of.

    Attributes
    ----------
    path : Path
        Where they are stored.
    expected : dict
        What the file must say, see `read_outcomes`: ``checkpoint_sha256`` of the model, ``data``, ``of``, and more.
    data : ImageDataset
    load : callable
        Gives the model.
    weights : Path or None
        The file that must have that checksum also when something was measured; None for a model in memory.
    """

    path: Path
    expected: dict[str, Any]
    data: ImageDataset
    load: Callable[[], nn.Module]
    weights: Path | None = None


def missing_columns(
    run_dir: Path | str, attacks: Mapping[str, Attack], *, split: str = "test", limits: Mapping[str, int] | None = None
) -> list[str]:
    """Which of the attacks `evaluate_run` would have to measure."""
    correct = _stored(_of_run(run_dir, split), attacks, limits)[0]
    return [name for name in ("clean", *attacks) if name not in correct]


def stored_outcomes(run_dir: Path | str, *, split: str = "test") -> dict[str, Tensor]:
    """What is stored of a run's accuracies, with the strongest; nothing is measured, and nothing is there of others."""
    correct, columns = _stored(_of_run(run_dir, split), {}, None)
    settings = {name: column.get("settings", {}) for name, column in columns.items()}
    return with_strongest(correct, settings) if correct else {}


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
    settings = {name: columns[name]["settings"] for name in names if "settings" in columns.get(name, {})}
    return RunAccuracy(
        with_strongest({name: correct[name] for name in names}, settings),
        settings,
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
    subject = _of_run(run_dir, split, device)
    return evaluate_subject(subject, attacks, limits=limits, batch_size=batch_size, progress=progress)


def evaluate_subject(
    subject: Subject, attacks: Mapping[str, Attack], *, limits: Mapping[str, int] | None = None, batch_size: int = 256,
    progress: bool = True,
) -> RunAccuracy:  # fmt: skip
    """The same as `evaluate_run`, of any model on any images."""
    path, expected, data = subject.path, subject.expected, subject.data
    correct, columns = _stored(subject, attacks, limits, tell=True)
    counts = _counts(attacks, limits, data) | {name: columns[name]["images"] for name in attacks if name in correct}
    todo = [name for name in attacks if name not in correct]
    if todo or "clean" not in correct:
        check_writable(path)
        model = subject.load()
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
                    add_outcomes(path, expected, outcomes, outcome_columns, subject.weights)

                # The search without gradients takes what the strongest attacks leave, if they are run at all.
                search = set(APGD_COLUMNS) <= set(group) or not set(APGD_COLUMNS) & set(attacks)
                evaluation = evaluate(
                    model, data.images[rows], data.labels[rows], group, batch_size=batch_size, progress=bar,
                    known=known, on_outcome=store, search=search,
                )  # fmt: skip
                model_checks = {key: asdict(check) for key, check in (evaluation.checks["model"] | unreliable).items()}
                outcome_columns["clean"] = {"settings": {}, "images": len(data.labels), "checks": model_checks}
        correct, columns = add_outcomes(path, expected, outcomes, outcome_columns, subject.weights)
    else:
        with contextlib.suppress(OSError):  # what is only looked at need not be written
            add_outcomes(path, expected, {}, {}, subject.weights)
        add_comparisons(correct, columns)
    # All that is stored, the attacks of this call first.
    order = ["clean", *attacks, *sorted(set(correct) - {"clean", *attacks})]
    checks = {name: columns[name]["checks"] for name in order if name in columns}
    settings = {name: columns[name]["settings"] for name in order if name != "clean"}
    return RunAccuracy(
        with_strongest({name: correct[name] for name in order}, settings),
        settings,
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


def _of_run(run_dir: Path | str, split: str, device: str = "auto") -> Subject:
    data = run_images(run_dir, split)
    weights = RunFolder(run_dir).finished_model()
    path = results_dir(run_dir) / f"accuracy-{split}.safetensors"
    expected = {"checkpoint_sha256": file_sha256(weights), "data": data.source, "of": len(data.labels)}
    return Subject(path, expected, data, lambda: load_model(run_dir, device=device), weights)


def _stored(
    subject: Subject, attacks: Mapping[str, Attack], limits: Mapping[str, int] | None, *, tell: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is stored of its accuracies, without what was measured with other settings."""
    path, expected, data = subject.path, subject.expected, subject.data
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
    return correct, columns


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if canonical_json(old.get(key)) != canonical_json(new.get(key))]
    return ", ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys)


def _settings(attack: Attack) -> dict[str, Any]:
    if not isinstance(attack, TransferAttack):
        return describe_attack(attack)
    weights = [tensor.detach().cpu().contiguous() for _, tensor in sorted(attack.source.state_dict().items())]
    digest = hashlib.sha256(b"".join(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in weights))
    return {**describe_attack(attack), "source_weights_sha256": digest.hexdigest()}
