"""What a scale consists of: every run and result, its state, the command that makes it, and what that costs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.scales.costs import Costs, duration_text, size_of, size_text
from analysis.scales.plan import Item, scale_items
from analysis.scales.scale import Scale, load_scale
from analysis.scales.states import STATES, ItemState
from analysis.tables import Column, Table


@dataclass(frozen=True)
class ItemStatus:
    """An item and its state.

    Attributes
    ----------
    item : Item
    state : str
        ``made``, ``stale``, ``unfinished`` or ``missing``.
    why : str
        Why it is stale, or how far an unfinished training is.
    size : int
        Bytes that are there now; of a training those of its folder.
    seconds : float or None
        What making it, or the rest of it, would take by measurements; None if none was made.
    size_when_made : int or None
        Bytes by those of files of the same kind; None if there are none.
    """

    item: Item
    state: str
    why: str = ""
    size: int = 0
    seconds: float | None = 0.0
    size_when_made: int | None = None


@dataclass(frozen=True)
class ScaleStatus:
    """The state of all that a scale consists of; see `scale_status`."""

    scale: str
    records: tuple[ItemStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of items."""
        found = Counter(record.state for record in self.records)
        return {state: found[state] for state in STATES}

    @property
    def summary(self) -> str:
        """Totals for people: items by state, hours of the remaining trainings, and bytes here and to come."""
        todo = [record for record in self.records if record.state != "made"]
        trainings = [record.seconds for record in todo if record.item.kind == "model"]
        others = [record.seconds for record in todo if record.item.kind != "model"]
        to_come = [record.size_when_made for record in todo]
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        return (
            f"{self.scale}: {counts}.\n"
            f"Remaining trainings: {_sum_text(trainings, duration_text)}; other jobs:"
            f" {_sum_text(others, duration_text)} (as measured at this scale, one after another).\n"
            f"On disk: {size_text(sum(record.size for record in self.records))}."
            f" What is not made takes {_sum_text(to_come, size_text)}."
        )

    def to_table(self, only: Sequence[str] = ()) -> Table:
        """One row for each item, or for each in some of the states; the caption holds the totals of all.

        Raises
        ------
        ValueError
            If no item is in these states.
        """
        shown = [record for record in self.records if not only or record.state in only]
        if not shown:
            raise ValueError(f"nothing of {self.scale} is {' or '.join(only)}. {self.summary}")
        rows = [
            {
                "kind": record.item.kind,
                "name": record.item.name,
                "state": f"{record.state}: {record.why}" if record.why else record.state,
                "time": "" if record.state == "made" else duration_text(record.seconds),
                "size": size_text(record.size if record.state == "made" else record.size_when_made),
                "command": "" if record.state == "made" else record.item.command,
            }
            for record in shown
        ]
        titles = {"kind": "", "name": "", "state": "state", "time": "to make", "size": "disk", "command": "made by"}
        right = ("time", "size")
        columns = [Column(key, titles[key], align="right" if key in right else "left") for key in titles]
        return Table(columns, rows, self.summary)


def scale_status(scale: str | Scale, root: Path | str | None = None) -> ScaleStatus:
    """Look at everything that a scale consists of; nothing is made, loaded onto a device or changed.

    Of large files the metadata is read, not the content: whether a file was altered is found out by who loads it.

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
    items = scale_items(scale)
    costs, states = Costs(scale, items), {}
    for item in items:
        states[item.path] = ItemState(scale, item, states).state
    found = []
    todo = {path for path, (state, _) in states.items() if state != "made"}
    for item in items:
        state, why = states[item.path]
        seconds = 0.0 if state == "made" else costs.seconds(item, todo)
        found.append(ItemStatus(item, state, why, size_of(costs.place(item)), seconds, costs.bytes(item)))
    return ScaleStatus(scale.name, tuple(found))


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
    aligned = [
        "  ".join(
            f"{cell:{'>' if c.align == 'right' else '<'}{w}}" for cell, c, w in zip(line, columns, widths, strict=True)
        )
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in aligned), "", table.caption])


def _sum_text(values: list[float | None], text: Callable[[float], str]) -> str:
    known, unknown = [value for value in values if value is not None], values.count(None)
    if not values:
        return "none"
    if not known:
        return f"unknown ({unknown})"
    return text(sum(known)) + (f", and {unknown} of {len(values)} unknown" if unknown else "")
