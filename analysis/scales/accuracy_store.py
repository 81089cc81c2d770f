"""The file of a run's accuracies: verified when it is read, and written so that two evaluations lose nothing."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tla_core.checkpoint import CheckpointError, file_sha256, load_tensors, tensor_bytes, write_atomic
from tla_core.config import canonical_json
from tla_core.masking import COMPARISONS, compare_attacks
from tla_core.masking.of_outcomes import ball_of

STRONGEST = "strongest"
APGD_COLUMNS = ("APGD-CE", "APGD-T")  # there is no worst case without both
Outcomes = tuple[dict[str, Tensor], dict[str, Any]]


def read_outcomes(path: Path, expected: Mapping[str, Any]) -> Outcomes:
    """The stored outcomes of these weights and images.

    Parameters
    ----------
    path : Path
    expected : mapping
        ``checkpoint_sha256``, ``data`` and ``of``: the weights, the images and their number.

    Returns
    -------
    correct : dict of str to Tensor, (k,), bool
        ``"clean"`` and each attack; empty where there is no such file, or one of other weights or images.
    columns : dict of str to dict
        Each of these -> ``settings``, ``images`` and ``checks``.

    Warns
    -----
    UserWarning
        If the file is damaged: what it held is measured again.
    """
    try:
        correct, metadata = load_outcomes(path)
    except FileNotFoundError:
        return {}, {}
    except CheckpointError as error:
        warnings.warn(str(error), stacklevel=3)
        return {}, {}
    if any(metadata.get(key) != value for key, value in expected.items()):
        return {}, {}
    return correct, metadata["columns"]


def load_outcomes(path: Path) -> Outcomes:
    """The outcomes in a file, and its metadata. Both are verified, except for which weights they belong to.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is damaged, another kind of file, or its columns do not fit its outcomes.
    """
    try:
        correct, metadata = load_tensors(path)
        columns = metadata.get("columns")
        if metadata.get("kind") != "accuracy" or not isinstance(columns, dict):
            raise ValueError(f"does not hold the accuracies of a run: got a file of {metadata.get('kind')!r}")
        for name, outcome in correct.items():
            if outcome.dtype != torch.bool or outcome.ndim != 1 or not len(outcome):
                raise ValueError(f"was altered: the outcomes of {name} are {tuple(outcome.shape)} {outcome.dtype}")
        for name, column in columns.items():
            is_whole = isinstance(column, dict) and {"images", "settings", "checks"} <= set(column) and name in correct
            if not is_whole or column["images"] != len(correct[name]):
                raise ValueError(f"was altered: the settings of {name} are not those of its outcomes")
        if missing_names := {"clean", *correct} - {"clean", *columns} or {"clean"} - set(correct):
            raise ValueError(f"was altered: it lacks {', '.join(sorted(missing_names))}")
        if not {"checkpoint_sha256", "data"} <= set(metadata):
            raise ValueError("was altered: it does not say of which weights and images")
    except ValueError as error:
        message = str(error) if isinstance(error, CheckpointError) else f"{path} {error}."
        raise CheckpointError(f"{message} `tla evaluate` measures again what it held, and replaces it.") from error
    return correct, metadata


def is_enough(column: Mapping[str, Any], settings: Mapping[str, Any], images: int) -> bool:
    """Whether a stored column is what is asked for: of these settings, and of at least so many images."""
    is_same = canonical_json(column.get("settings")) == canonical_json(settings)
    return is_same and column["images"] >= images


def add_outcomes(
    path: Path, expected: Mapping[str, Any], correct: Mapping[str, Tensor], columns: Mapping[str, Any],
    weights: Path | None,
) -> Outcomes:  # fmt: skip
    """Add measured columns to those in the file, which another evaluation may have written meanwhile.

    A column of the same settings stays if it was measured on more images. All columns are compared with each other
    again.

    Parameters
    ----------
    path : Path
    expected : mapping
        See `read_outcomes`.
    correct, columns : mapping
        Of what was measured.
    weights : Path or None
        File that was evaluated; None for a model in memory, which nothing can replace.

    Returns
    -------
    Outcomes
        All that the file holds now, as `read_outcomes` gives it.

    Raises
    ------
    CheckpointError
        If the run has other weights by now; the file stays as it was.
    OSError
        If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path.parent):
        if weights is not None and file_sha256(weights) != expected["checkpoint_sha256"]:
            raise CheckpointError(
                f"{weights} was replaced while it was evaluated: what was measured is of the old weights and is not"
                f" stored. Run `tla evaluate {weights.parent}` again."
            )
        stored_outcomes, stored_columns = read_outcomes(path, expected)
        # What another evaluation measured on more images stays.
        for name, outcome in correct.items():
            other = stored_columns.get(name)
            if other is None or not is_enough(other, columns.get(name, {}).get("settings"), len(outcome) + 1):
                stored_outcomes[name] = outcome
        for name, column in columns.items():
            if len(stored_outcomes[name]) == column["images"]:
                stored_columns[name] = column
        add_comparisons(stored_outcomes, stored_columns)
        _write(path, expected, stored_outcomes, stored_columns)
    return stored_outcomes, stored_columns


def with_strongest(
    correct: Mapping[str, Tensor], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Tensor]:
    """The outcomes, and ``"strongest"``: the worst case for each image of all attacks that were run on it.

    It has the images that APGD was run on with both of its losses; without these attacks there is no such column. An
    attack that was run on fewer images counts on those. One whose `settings` say another norm or eps than APGD's does
    not count.
    """
    balls = {name: ball_of(described) for name, described in (settings or {}).items()}
    ball = balls.get(APGD_COLUMNS[0])
    apgd = [correct[name] for name in APGD_COLUMNS if name in correct]
    if len(apgd) < len(APGD_COLUMNS):
        return dict(correct)
    n, count = len(correct["clean"]), min(len(outcome) for outcome in apgd)
    rows = torch.arange(count) * n // count
    survivors = torch.ones(n, dtype=torch.bool)
    for name, outcome in correct.items():
        if None not in (ball, balls.get(name)) and balls[name] != ball:
            continue
        survivors[torch.arange(len(outcome)) * n // len(outcome)] &= outcome
    return {**correct, STRONGEST: survivors[rows]}


def _settings_of(columns: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: column["settings"] for name, column in sorted(columns.items()) if column.get("settings")}


def add_comparisons(correct: Mapping[str, Tensor], columns: dict[str, Any]) -> bool:
    """Put what `compare_attacks` finds into the checks of the stored columns, in place of earlier comparisons.

    Parameters
    ----------
    correct : mapping of str to Tensor, (k,), bool
        ``"clean"`` and each attack.
    columns : dict of str to dict
        Each of these -> ``settings``, ``images`` and ``checks``. Changed.

    Returns
    -------
    bool
        Whether anything changed.
    """
    # Sorted, as in a stored file: where weaker attacks leave equally much, a check names the first.
    settings = {name: described for name, described in _settings_of(columns).items() if name in correct}  # fmt: skip
    comparisons = compare_attacks(correct, settings, len(correct["clean"]))
    checks_before = canonical_json({name: columns[name]["checks"] for name in settings})
    for name in settings:
        other_checks = {key: check for key, check in columns[name]["checks"].items() if key not in COMPARISONS}
        comparison = {comparisons[name].name: asdict(comparisons[name])} if name in comparisons else {}
        columns[name]["checks"] = other_checks | comparison
    return canonical_json({name: columns[name]["checks"] for name in settings}) != checks_before


def _write(path: Path, expected: Mapping[str, Any], correct: dict[str, Tensor], columns: dict[str, Any]) -> None:
    """Write the file, and a ``.json`` for people beside it; those that hold this already stay as they are."""
    columns = json.loads(canonical_json(columns))  # as it is read again, so that equal content is equal bytes
    readable = {}
    for name, outcome in with_strongest(correct, _settings_of(columns)).items():
        share = outcome.double().mean().item()
        readable[name] = {
            "accuracy": share,
            "standard_error": (share * (1 - share) / len(outcome)) ** 0.5,
            **columns.get(name, {"images": len(outcome)}),
        }
    metadata = {"kind": "accuracy", **expected, "columns": columns}
    text = json.dumps({"format": 1, **expected, "accuracies": readable}, indent=2, sort_keys=True, ensure_ascii=False)
    readable_file = path.with_suffix(".json")
    for file, content in ((path, tensor_bytes(correct, metadata)), (readable_file, f"{text}\n".encode())):
        if not file.is_file() or file.read_bytes() != content:
            write_atomic(file, content)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder for a moment; the operating system lets go of it however the process ends.

    Where folders cannot be locked, the moment is short.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
