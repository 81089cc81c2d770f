"""Whether an artefact of a plan is made, stale, unfinished or missing, and why: the one judgement of freshness.

It compares the metadata of a file with what the plan expects. Weights are verified to the last bit; the content of a
result is verified when it is loaded.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from analysis.scales.plan import Artefact, Plan
from analysis.scales.run_results import different_settings, of_checkpoint
from analysis.scales.runs import progress_text, user_of
from analysis.scales.scale import load_scale
from tla_core.checkpoint import CheckpointError, file_sha256, read_metadata, stored_checksum
from tla_core.dataset_files import DatasetNotFoundError
from tla_core.naming import source_digest
from tla_core.run_folder import RunFolder, describe_differences

STATES = ("made", "stale", "unfinished", "missing")


class State(NamedTuple):
    """One of `STATES`, and its reason; empty where there is nothing to say."""

    name: str
    reason: str = ""


MADE = State("made")
# How the reason begins where a file is damaged.
UNREADABLE = "it cannot be read"


def judge(plan: Plan, artefact: Artefact, known: dict[str, State] | None = None) -> State:
    """Find out the state of an artefact; nothing is made or changed.

    Parameters
    ----------
    plan : Plan
    artefact : Artefact
    known : dict, optional
        Cache of states by path. This call adds to it.
    """
    known = {} if known is None else known
    if artefact.path not in known:
        needs = {need.path: judge(plan, need, known) for need in plan.needs(artefact)}
        known[artefact.path] = _judge(plan, artefact, needs)
    return known[artefact.path]


def _judge(plan: Plan, artefact: Artefact, needs: dict[str, State]) -> State:
    path = plan.scale.root / artefact.path
    try:
        if artefact.kind == "model":
            return _of_model(plan, artefact)
        if not path.is_file():
            return State("missing")
        if unmade_needs := [f"{need} is {state.name}" for need, state in needs.items() if state.name != "made"]:
            further = f", and {len(unmade_needs) - 1} more that it reads" if unmade_needs[1:] else ""
            return State("stale", unmade_needs[0] + further)
        checks = {"notebook": _why_notebook, "manifest": _why_manifest, "accuracies": _why_accuracies}
        reason = checks.get(artefact.kind, _why_result)(plan, artefact, path)
    except DatasetNotFoundError:
        return State("made", "its columns were not checked: the dataset is not here")
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return State("stale", f"{UNREADABLE}: {error}")
    return State("stale", reason) if reason else MADE


def _of_model(plan: Plan, artefact: Artefact) -> State:
    run = RunFolder((plan.scale.root / artefact.path).parent)
    record, user = run.record(), user_of(run)
    if record is None or not (user or run.model_path.exists() or run.state_path.exists()):
        return State("missing", "" if record is None else "a training ended before its first saved state")
    if record["config_identity"] != artefact.settings["identity"]:
        planned_record = {**record, "config": plan.scale.config(*artefact.run).to_dict()}
        return State(
            "stale", f"settings changed: {describe_differences(record, planned_record).replace('config.', '')}"
        )
    if (step := plan.scale.config(*artefact.run).step) and source_digest(step) != record["start"]["step_sha256"]:
        return State("stale", f"the code of its training step changed: {step}")
    for start in artefact.needs:
        model = plan.scale.root / start
        if model.is_file() and file_sha256(model) != record["start"]["init_from"]:
            return State("stale", f"the run that it starts from changed: {start}")
    if run.model_path.exists():
        run.weights()  # damaged ones say so
        return MADE
    return State("unfinished", progress_text(run, record) + (f", {user}" if user else ""))


def _why_result(plan: Plan, artefact: Artefact, path: Path) -> str:
    """Why a result is stale whose needs are made; empty if it is not."""
    metadata = read_metadata(path)
    stored, weights = metadata.get("meta", metadata), of_checkpoint(plan.scale.run_dir(*artefact.run))
    if different_settings(stored, weights):
        return "checkpoint changed"
    different = different_settings(stored, artefact.settings)
    if not different:
        return ""
    for file in sorted((plan.scale.root / "workflow" / "scales").glob("*.yaml")):
        if file.stem != plan.scale.name and not different_settings(stored, _settings_at(file.stem, plan, artefact)):
            return f"results of another scale: {file.stem}"
    return f"settings changed: {', '.join(f'{k} was {stored.get(k)}, is {artefact.settings[k]}' for k in different)}"


def _settings_at(scale: str, plan: Plan, artefact: Artefact) -> dict[str, Any]:
    """The settings that another scale would expect of the result in this place."""
    presets, level = plan.scale.presets or plan.scale.name, [float(artefact.eps)] if artefact.eps else []
    try:
        other_plan = Plan(dataclasses.replace(load_scale(scale, plan.scale.root), presets=presets))
        return getattr(other_plan, artefact.kind.replace(" ", "_"))(artefact.run, *level).settings
    except (ValueError, KeyError, TypeError):  # it has no such run, or its file cannot be read
        return {"of": scale}


def _why_accuracies(plan: Plan, artefact: Artefact, path: Path) -> str:
    from analysis.scales.accuracy import missing_columns
    from analysis.scales.accuracy_attacks import run_attacks

    model, *copy = (plan.scale.root / need for need in artefact.needs)
    if json.loads(path.read_text(encoding="utf-8"))["checkpoint_sha256"] != file_sha256(model):
        return "checkpoint changed"
    options = {**artefact.settings, "black_box": copy[0].parent if copy else None}
    attacks, limits = run_attacks(model.parent, **options, device="cpu")
    names = missing_columns(model.parent, attacks, limits=limits)
    return f"not measured, or with other settings: {', '.join(names)}" if names else ""


def _why_notebook(plan: Plan, artefact: Artefact, path: Path) -> str:
    source, notebook = plan.scale.root / "notebooks" / path.name, json.loads(path.read_text(encoding="utf-8"))
    if source.is_file() and _cells(json.loads(source.read_text(encoding="utf-8"))) != _cells(notebook):
        return "the notebook was edited"
    stored_checksums = notebook["metadata"].get("tla_read")
    if stored_checksums is None:  # executed by an earlier edition, which left only times
        time_made = path.stat().st_mtime
        changes = [need for need in artefact.needs if (plan.scale.root / need).stat().st_mtime > time_made]
        verb = "newer"
    else:
        checksums = fingerprints(plan, artefact)
        paths = {**stored_checksums, **checksums}
        changes = [path for path in paths if stored_checksums.get(path) != checksums.get(path)]
        verb = "not what it read"
    if not changes:
        return ""
    return f"{changes[0]} is {verb}" + (f", and {len(changes) - 1} more" if changes[1:] else "")


def fingerprints(plan: Plan, artefact: Artefact) -> dict[str, str]:
    """Path -> checksum, as the file itself states it, of everything that an artefact reads."""
    paths = {need: plan.scale.root / need for need in artefact.needs}
    return {need: _fingerprint(path) for need, path in paths.items() if path.is_file()}


def _fingerprint(path: Path) -> str:
    # The .json of accuracies is for people. The .safetensors of the same name holds the checksum.
    path = path.with_suffix(".safetensors") if path.suffix == ".json" else path
    return stored_checksum(path)


def _why_manifest(plan: Plan, artefact: Artefact, path: Path) -> str:
    from analysis.scales.manifest import ManifestError, check_manifest

    try:
        check_manifest(path.parent, expected=())
    except ManifestError as error:
        return error.problems[0]
    return ""


def _cells(notebook: dict[str, Any]) -> list[str]:
    """The text of a notebook's cells, without the one that papermill puts parameters into."""
    cells = [cell for cell in notebook["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])]
    sources = (cell["source"] for cell in cells)
    return [source if isinstance(source, str) else "".join(source) for source in sources]
