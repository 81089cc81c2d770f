"""Finds out whether a run or result of a scale is made, stale, unfinished or missing, and why."""

import json
from pathlib import Path
from typing import Any

from analysis.run_inventory import progress_text, user_of
from analysis.run_results import (
    landscapes_target,
    maps_target,
    pair_maps_target,
    representations_target,
    train_representations_target,
)
from analysis.scale_contents import Item
from analysis.scales import Scale, load_scale
from tla_core.checkpoint import CheckpointError, file_sha256, read_metadata
from tla_core.config import TrainConfig, canonical_json
from tla_core.datasets import DatasetError
from tla_core.run_folder import RunFolder, describe_differences

STATES = ("made", "stale", "unfinished", "missing")


class ItemState:
    """Finds out the state of one item.

    Parameters
    ----------
    scale : Scale
    item : Item
    states : dict
        State and reason of what the item needs, by path.
    """

    def __init__(self, scale: Scale, item: Item, states: dict[str, tuple[str, str]]) -> None:
        self.scale, self.item, self.states = scale, item, states
        self.path = scale.root / item.path

    @property
    def config(self) -> TrainConfig:
        return self.scale.config(self.item.dataset, self.item.method, self.item.seed)

    @property
    def state(self) -> tuple[str, str]:
        """One of `STATES`, and why."""
        try:
            if self.item.kind == "model":
                return self.of_model()
            if not self.path.is_file():
                return "missing", ""
            if behind := [path for path in self.item.needs if self.states[path][0] != "made"]:
                first = f"{behind[0]} is {self.states[behind[0]][0]}"
                return "stale", first if len(behind) == 1 else f"{first}, and {len(behind) - 1} more that it reads"
            if why := self.check():
                return "stale", why
        except DatasetError:
            return "made", "its columns were not checked: the dataset is not here"
        except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            return "stale", f"it cannot be read: {error}"
        return "made", ""

    def of_model(self) -> tuple[str, str]:
        run, record = RunFolder(self.path.parent), RunFolder(self.path.parent).record()
        user = user_of(run)
        if record is None or not (user or run.model_path.exists() or run.state_path.exists()):
            return "missing", "" if record is None else "a training ended before its first saved state"
        config = self.config
        if record["config_identity"] != config.identity:
            now = {**record, "config": config.to_dict()}
            return "stale", f"settings changed: {describe_differences(record, now).replace('config.', '')}"
        if config.fine_tune and self.start_changed(record):
            return "stale", f"the run that it starts from changed: {self.item.needs[0]}"
        if run.model_path.exists():
            run.weights()  # damaged ones say so
            return "made", ""
        return "unfinished", progress_text(run, record) + (f", {user}" if user else "")

    def start_changed(self, record: dict[str, Any]) -> bool:
        start = self.scale.root / self.item.needs[0]
        return start.is_file() and file_sha256(start) != record["start"]["init_from"]

    def check(self) -> str:
        """Why a file that is there, with all that it needs, is stale; empty if it is not."""
        if self.item.kind == "notebook":
            return self.check_notebook()
        if self.item.kind == "manifest":
            return self.check_manifest()
        if self.item.kind == "accuracies":
            return self.check_accuracies()
        metadata = read_metadata(self.path)
        found = metadata.get("meta", metadata)
        expected = self.expected(self.scale)
        different = _different(found, expected)
        if not different:
            return ""
        if "checkpoint_sha256" in different:
            return "checkpoint changed"
        for path in sorted((self.scale.root / "workflow" / "scales").glob("*.yaml")):
            other = load_scale(path.stem, self.scale.root)
            if other.name != self.scale.name and not _different(found, self.expected(other)):
                return f"results of another scale: {other.name}"
        return f"settings changed: {', '.join(f'{k} was {found.get(k)}, is {expected[k]}' for k in different)}"

    def expected(self, scale: Scale) -> dict[str, Any]:
        """What the metadata of a result must say, by the settings of a scale."""
        run, eps = self.scale.run_dir(self.item.dataset, self.item.method, self.item.seed), float(self.item.eps or 0)
        targets = {
            "representations": lambda: representations_target(
                run, eps, scale.images_at(self.item.dataset, self.item.method, eps, self.item.seed)
            ),
            "train representations": lambda: train_representations_target(run),
            "class maps": lambda: maps_target(run, eps, scale.map_settings()),
            "pair maps": lambda: pair_maps_target(run, eps, scale.pair_settings(self.item.dataset)),
            "landscapes": lambda: landscapes_target(run, scale.landscape_of(self.item.dataset, self.item.seed)),
        }
        return targets[self.item.kind]()[1]

    def check_accuracies(self) -> str:
        from analysis.accuracy import missing_columns, run_attacks

        of_run, *copy = (self.scale.root / path for path in self.item.needs)
        if json.loads(self.path.read_text(encoding="utf-8"))["checkpoint_sha256"] != file_sha256(of_run):
            return "checkpoint changed"
        options = self.scale.accuracy_options(self.item.dataset, self.item.method, self.item.seed)
        options["black_box"] = copy[0].parent if copy else None
        attacks, limits = run_attacks(of_run.parent, **options, device="cpu")
        names = missing_columns(of_run.parent, attacks, limits=limits)
        return f"not measured, or with other settings: {', '.join(names)}" if names else ""

    def check_notebook(self) -> str:
        source = self.scale.root / "notebooks" / self.path.name
        if source.is_file() and not set(_sources(source)) <= set(_sources(self.path)):
            return "the notebook was edited"
        made = self.path.stat().st_mtime
        newer = [path for path in self.item.needs if (self.scale.root / path).stat().st_mtime > made]
        return f"{newer[0]} is newer" + (f", as are {len(newer) - 1} more" if newer[1:] else "") if newer else ""

    def check_manifest(self) -> str:
        from analysis.manifest import ManifestError, check_manifest

        try:
            check_manifest(self.path.parent, expected=())
        except ManifestError as error:
            return error.problems[0]
        return ""


def _different(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [key for key, value in expected.items() if canonical_json(found.get(key)) != canonical_json(value)]


def _sources(path: Path) -> list[str]:
    """The text of a notebook's cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]) for cell in cells]
