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
        done = mend(folder)
        if folder.state_path.exists() and (damage := read_intact(folder.state_path, "state")[1]):
            folder.state_path.unlink()
            done.append(f"{_why(damage)} It is removed: the weights are whole without it.")
        if bad := folder.metrics_lines()[1]:
            folder.keep_metrics_until(math.inf)
            numbers = ", ".join(map(str, bad))
            done.append(f"{folder.metrics_path}: line {numbers} could not be read, and is removed.")
    return done


def mend(folder: RunFolder, identity: str | None = None) -> list[str]:
    """Restore damaged weights, and ``config.json``, of a folder that is held.

    Parameters
    ----------
    folder : RunFolder
    identity : str, optional
        Of the run that is to be trained there: that of another one is left as it is.

    Returns
    -------
    list of str
        What was damaged, and what was done.

    Raises
    ------
    CheckpointError
        If neither weights nor state are intact, where one of them is there.
    """
    weights, state = folder.model_path, folder.state_path
    record, damage = read_intact(weights, "model")
    source, of_state = weights, None
    if record is None:
        of_state, damage_of_state = read_intact(state, "state")
        if of_state is None:
            if damages := [str(each) for each in (damage, damage_of_state) if each]:
                raise CheckpointError(f"{' '.join(damages)} {folder.train_again}")
            folder.record()  # a run that has just begun: if it is damaged, this says so
            return []
        source, record = state, of_state["run"]
    if identity not in (None, record["identity"]):
        return []
    done = []
    if of_state is not None and of_state["finished"]:
        folder.restore_model()
        done.append(f"{_why(damage) if damage else f'{weights} is gone.'} It is written again from {state.name}.")
    elif of_state is not None and damage:
        weights.unlink()
        step = of_state["step"]
        done.append(f"{_why(damage)} It is removed: {state.name} is of step {step}, from which a training goes on.")
    return done + _mend_config(folder, record, source)


def read_intact(path: Path, kind: str) -> tuple[dict[str, Any] | None, CheckpointError | None]:
    """The metadata of weights or a state that are whole; or what is wrong with them. Neither where there is no file."""
    try:
        tensors, metadata = load_tensors(path)
        record = record_of(path, kind, metadata)
        kept = ("best/", "model/") if kind == "state" else ("",)
        check_numbers(path, {name: tensor for name, tensor in tensors.items() if name.startswith(kept)}, record)
    except FileNotFoundError:
        return None, None
    except CheckpointError as error:
        return None, error
    return metadata, None


def is_finished(folder: RunFolder, identity: str) -> bool:
    """Whether the folder holds the finished run of that identity, whole."""
    record, _ = read_intact(folder.model_path, "model")
    with contextlib.suppress(CheckpointError):
        own = folder.record()
        return own is not None and record is not None and own["identity"] == record["identity"] == identity
    return False


def _is_whole(folder: RunFolder) -> bool:
    of_model, of_state = read_intact(folder.model_path, "model"), read_intact(folder.state_path, "state")
    if of_model[1] or of_state[1] or folder.metrics_lines()[1]:
        return False
    try:
        own = folder.record()
    except CheckpointError:
        return False
    if of_model[0] is None and of_state[0] is None:
        return True
    if of_model[0] is None and of_state[0]["finished"]:
        return False
    known = of_model[0] or of_state[0]["run"]
    return own is not None and own["identity"] == known["identity"]


def _why(damage: CheckpointError) -> str:
    """What is wrong with a file, without what could be done."""
    return str(damage).partition(" Make it again")[0].partition(" `tla repair")[0]


def _mend_config(folder: RunFolder, record: dict[str, Any], source: Path) -> list[str]:
    """Write ``config.json`` as weights or a state have it, if it is gone, damaged or that of another run."""
    why = f"{folder.config_path} is gone."
    try:
        own = folder.record()
        if own is not None and own["identity"] == record["identity"]:
            return []
        if own is not None:
            why = f"{folder.config_path} contradicts {source.name}: {describe_differences(record, own)}."
    except CheckpointError as error:
        why = _why(error)
    machine = {"device": "unknown", "versions": {}}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads(folder.config_path.read_bytes())
        if before["identity"] == record["identity"] and isinstance(before["environment"]["versions"], dict):
            machine = before["environment"]
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
    return [f"{why} It is written again from {source.name}."]
