"""Restores what is damaged in the folder of a run from what is intact beside it."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from tla_core.checkpoint import CheckpointError, load_tensors, write_json
from tla_core.config import TrainConfig
from tla_core.run_folder import RunFolder
from tla_core.run_records import check_numbers, describe_differences, record_of


def repair_run(run_dir: Path | str) -> list[str]:
    """Verify every file of a run, and restore what is damaged: nothing is trained, and no dataset is read.

    Weights come from the state of the finished training, ``config.json`` from the weights or the state; a damaged state
    beside whole weights, and lines of the metrics that cannot be read, are removed.

    Parameters
    ----------
    run_dir : Path or str

    Returns
    -------
    list of str
        What was damaged, and what was done; empty where all is whole.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    CheckpointError
        If what is damaged cannot be restored, with what is left to do.
    RunConflictError
        If a process trains there.
    OSError
        If the folder cannot be written.
    """
    folder = RunFolder(run_dir)
    files = (folder.config_path, folder.model_path, folder.state_path)
    if not any(path.exists() for path in files):
        raise FileNotFoundError(f"{run_dir} holds no run: there is none of {', '.join(path.name for path in files)}.")
    if _is_whole(folder):
        return []
    with folder.locked():
        messages = mend(folder)
        if folder.state_path.exists() and (damage := read_intact(folder.state_path, "state")[1]):
            folder.state_path.unlink()
            messages.append(f"{_why(damage)} It is removed: the weights are whole without it.")
        if bad := folder.metrics_lines()[1]:
            folder.keep_metrics_until(math.inf)
            numbers = ", ".join(map(str, bad))
            messages.append(f"{folder.metrics_path}: line {numbers} could not be read, and is removed.")
    return messages


def mend(folder: RunFolder, identity: str | None = None) -> list[str]:
    """Restore damaged weights, and ``config.json``, of a folder that is held.

    Parameters
    ----------
    folder : RunFolder
    identity : str, optional
        That of the run to be trained there; a folder that holds another run is left as it is.

    Returns
    -------
    list of str
        What was damaged, and what was done.

    Raises
    ------
    CheckpointError
        If weights or state are there, and neither is intact.
    """
    weights, state = folder.model_path, folder.state_path
    record, damage = read_intact(weights, "model")
    source, state_metadata = weights, None
    if record is None:
        state_metadata, state_damage = read_intact(state, "state")
        if state_metadata is None:
            if damages := [str(each) for each in (damage, state_damage) if each]:
                raise CheckpointError(f"{' '.join(damages)} {folder.train_again}")
            folder.record()  # a run that has just begun: if it is damaged, this says so
            return []
        source, record = state, state_metadata["run"]
    if identity not in (None, record["identity"]):
        return []
    messages = []
    if state_metadata is not None and state_metadata["finished"]:
        folder.restore_model()
        messages.append(f"{_why(damage) if damage else f'{weights} is gone.'} It is written again from {state.name}.")
    elif state_metadata is not None and damage:
        weights.unlink()
        step = state_metadata["step"]
        messages.append(f"{_why(damage)} It is removed: {state.name} is of step {step}, from which a training goes on.")
    return messages + _mend_config(folder, record, source)


def read_intact(path: Path, kind: str) -> tuple[dict[str, Any] | None, CheckpointError | None]:
    """The metadata of whole weights or a whole state, or the damage; (None, None) if there is no file."""
    try:
        tensors, metadata = load_tensors(path)
        record = record_of(path, kind, metadata)
        prefixes = ("best/", "model/") if kind == "state" else ("",)
        check_numbers(path, {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}, record)
    except FileNotFoundError:
        return None, None
    except CheckpointError as error:
        return None, error
    return metadata, None


def is_finished(folder: RunFolder, identity: str) -> bool:
    """Whether the folder holds the finished run of that identity, whole."""
    record, _ = read_intact(folder.model_path, "model")
    with contextlib.suppress(CheckpointError):
        config_record = folder.record()
        return (
            config_record is not None
            and record is not None
            and config_record["identity"] == record["identity"] == identity
        )
    return False


def _is_whole(folder: RunFolder) -> bool:
    model, state = read_intact(folder.model_path, "model"), read_intact(folder.state_path, "state")
    if model[1] or state[1] or folder.metrics_lines()[1]:
        return False
    try:
        config_record = folder.record()
    except CheckpointError:
        return False
    if model[0] is None and state[0] is None:
        return True
    if model[0] is None and state[0]["finished"]:
        return False
    record = model[0] or state[0]["run"]
    return config_record is not None and config_record["identity"] == record["identity"]


def _why(damage: CheckpointError) -> str:
    """The damage, without the advice."""
    return str(damage).partition(" Make it again")[0].partition(" `tla repair")[0]


def _mend_config(folder: RunFolder, record: dict[str, Any], source: Path) -> list[str]:
    """Write ``config.json`` as weights or a state have it, if it is gone, damaged or that of another run."""
    reason = f"{folder.config_path} is gone."
    try:
        config_record = folder.record()
        if config_record is not None and config_record["identity"] == record["identity"]:
            return []
        if config_record is not None:
            reason = f"{folder.config_path} contradicts {source.name}: {describe_differences(record, config_record)}."
    except CheckpointError as error:
        reason = _why(error)
    machine = {"device": "unknown", "versions": {}}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        old_record = json.loads(folder.config_path.read_bytes())
        if old_record["identity"] == record["identity"] and isinstance(old_record["environment"]["versions"], dict):
            machine = old_record["environment"]
    write_json(
        folder.config_path,
        {
            "format": 1,
            "identity": record["identity"],
            "config_identity": TrainConfig.from_dict(record["config"]).identity,
            **{part: record[part] for part in ("config", "data", "start")},
            "environment": machine,
        },
    )
    return [f"{reason} It is written again from {source.name}."]
