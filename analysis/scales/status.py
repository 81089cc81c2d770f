"""The state of all that a scale consists of, for people: `tla status`."""

import contextlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.scales.costs import duration_text, seconds_per_step, size_of, size_text, total_steps
from analysis.scales.plan import Artefact, Plan
from analysis.scales.scale import Scale, load_scale
from analysis.scales.states import STATES, State, judge
from analysis.scales.variants import split_variant
from analysis.tables import Column, Table
from tla_core.checkpoint import CheckpointError, read_metadata
from tla_core.run_folder import RunFolder


@dataclass(frozen=True)
class ArtefactStatus:
    """An artefact and its state.

    Attributes
    ----------
    artefact : Artefact
    state : State
    size : int
        Bytes that are there now; of a training those of its folder.
    seconds : float or None
        How long the rest of a training takes, by the steps of other trainings of the same method and dataset; None if
        there are none, and for anything but a training.
    """

    artefact: Artefact
    state: State
    size: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class ScaleStatus:
    """The state of all that a scale consists of; see `scale_status`."""

    scale: str
    records: tuple[ArtefactStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of artefacts."""
        counts = Counter(record.state.name for record in self.records)
        return {state: counts[state] for state in STATES}

    @property
    def summary(self) -> str:
        """Totals for people: artefacts by state, time of the remaining trainings, and bytes here."""
        estimates = [r.seconds for r in self.records if r.artefact.kind == "model" and r.state.name != "made"]
        seconds_known = [seconds for seconds in estimates if seconds is not None]
        rest = duration_text(sum(seconds_known)) if seconds_known else ""
        if unknown := len(estimates) - len(seconds_known):
            rest += f"{rest and ', and '}unknown of {unknown} of {len(estimates)}"
        return (
            f"{self.scale}: {', '.join(f'{count} {state}' for state, count in self.counts.items())}.\n"
            f"Remaining trainings: {rest or 'none'} (by steps measured at this scale, one after another).\n"
            f"On disk: {size_text(sum(record.size for record in self.records))}."
        )

    def to_table(self, only: Sequence[str] = ()) -> Table:
        """One row for each artefact, or for each in some of the states; the caption holds the totals of all.

        Raises
        ------
        ValueError
            If none is in these states.
        """
        records = [record for record in self.records if not only or record.state.name in only]
        if not records:
            raise ValueError(f"nothing of {self.scale} is {' or '.join(only)}. {self.summary}")
        rows = []
        for record in records:
            is_made = record.state.name == "made"
            rows.append({
                "kind": record.artefact.kind,
                "name": record.artefact.name,
                "state": ": ".join(filter(None, record.state)),
                "time": duration_text(record.seconds) if record.artefact.kind == "model" and not is_made else "",
                "size": size_text(record.size) if record.size else "",
                "command": "" if is_made else record.artefact.command,
            })  # fmt: skip
        titles = {"kind": "", "name": "", "state": "state", "time": "to train", "size": "disk", "command": "made by"}
        right_aligned = ("time", "size")
        columns = [Column(key, titles[key], align="right" if key in right_aligned else "left") for key in titles]
        return Table(columns, rows, self.summary)


def scale_status(scale: str | Scale, root: Path | str | None = None) -> ScaleStatus:
    """Look at everything that a scale consists of; nothing is made, loaded onto a device or changed.

    Of results the metadata is read, not the content, which is verified when they are loaded.

    Parameters
    ----------
    scale : str or Scale
    root : Path or str, optional
        Root of the project, for a scale by name; by default found from the working directory.

    Returns
    -------
    ScaleStatus
    """
    scale = scale if isinstance(scale, Scale) else load_scale(scale, root)
    plan, states = Plan(scale), {}
    trainings = _Trainings(plan)
    records = []
    for artefact in plan.artefacts.values():
        state, path = judge(plan, artefact, states), scale.root / artefact.path
        is_model = artefact.kind == "model"
        seconds = trainings.rest(artefact) if is_model and state.name != "made" else None
        records.append(ArtefactStatus(artefact, state, size_of(path.parent if is_model else path), seconds))
    return ScaleStatus(scale.name, tuple(records))


class _Trainings:
    """How long the trainings of a plan take, by the time stamps of those that are there."""

    def __init__(self, plan: Plan) -> None:
        self.scale, self._images, self._rates = plan.scale, {}, defaultdict(list)
        for artefact in plan.artefacts.values():
            if artefact.kind != "model":
                continue
            dataset, method, _ = artefact.run
            run = RunFolder(plan.scale.run_dir(*artefact.run))
            with contextlib.suppress(CheckpointError, KeyError, OSError):
                if record := run.record():
                    self._images[dataset] = record["data"]["images"]
                if rate := seconds_per_step(run.metrics()):
                    self._rates[dataset, split_variant(method)[0]].append(rate)

    def rest(self, artefact: Artefact) -> float | None:
        dataset, method, _ = artefact.run
        config, rates = self.scale.config(*artefact.run), self._rates[dataset, split_variant(method)[0]]
        images = self._images.get(dataset)
        if not rates or not (images or config.iterations):
            return None
        steps_done, run = 0, RunFolder(self.scale.run_dir(*artefact.run))
        with contextlib.suppress(CheckpointError, FileNotFoundError, KeyError):
            if (record := run.record()) is not None and record["config_identity"] == config.identity:
                steps_done = read_metadata(run.state_path)["step"]
        return statistics.median(rates) * (total_steps(config, images or 0) - steps_done)


def table_text(table: Table, leave_out: Sequence[str] = ()) -> str:
    """A table for the terminal: columns of equal width without rules, the caption below.

    Parameters
    ----------
    table : Table
    leave_out : sequence of str
        Keys of columns that are not shown.
    """
    columns = [column for column in table.columns if column.key not in leave_out]
    lines = [[column.title for column in columns]]
    lines += [[column.text(row.get(column.key)) for column in columns] for row in table.rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            f"{cell:{'>' if c.align == 'right' else '<'}{w}}" for cell, c, w in zip(line, columns, widths, strict=True)
        )
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in texts), "", table.caption])
