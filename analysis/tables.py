"""Tables as records that render to CSV, Markdown, LaTeX (booktabs) and HTML, with the best values marked."""

import csv
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analysis.frames import frame_of_records


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    key : str
        In each record.
    title : str
        Printed above it.
    digits : int
        After the decimal point, of floats.
    best : {"min", "max"}, optional
        Which value is marked.
    percent : bool
        Print a fraction as a percentage.
    error : str, optional
        Key of the standard error, printed behind the value as ``± error``.
    mark : str, optional
        Key of what is printed behind the error, such as ``*``; the caption says what it means.
    basis : str, optional
        Key of what the value is a number of, such as certain classes: where rows differ in it, none is the best.
    align : {"left", "right"}
        The first column is always on the left.
    """

    key: str
    title: str
    digits: int = 3
    best: Literal["min", "max"] | None = None
    percent: bool = False
    error: str | None = None
    mark: str | None = None
    basis: str | None = None
    align: Literal["left", "right"] = "right"

    def text(self, value: Any) -> str:
        """A value as printed; an en dash where there is none."""
        if _is_missing(value):
            return "–"
        if isinstance(value, (float, np.floating)):
            return f"{value * 100 if self.percent else value:.{self.digits}f}"
        return f"{value:,}" if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Table:
    """Records under columns.

    Parameters
    ----------
    columns : sequence of Column
    rows : sequence of dict
        Each has the columns' keys; a missing or nan value is printed as a dash.
    caption : str

    Raises
    ------
    ValueError
        If there are no rows.
    """

    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a table needs at least one row. Got none.")

    def is_best(self, row: dict[str, Any], column: Column) -> bool:
        """Whether the row's value is the best of its column, as printed: ties at that precision are all marked."""
        if column.best is None or _is_missing(row.get(column.key)):
            return False
        rows = [r for r in self.rows if not _is_missing(r.get(column.key))]
        if column.basis and any(r.get(column.basis) != row.get(column.basis) for r in rows):
            return False
        values = [r[column.key] for r in rows]
        pick = min if column.best == "min" else max
        return len(values) > 1 and column.text(row[column.key]) == column.text(pick(values))

    def to_dataframe(self):
        """The records as they are, full precision: a row for each, a column for each key of the table's columns."""
        keys = [key for c in self.columns for key in (c.key, c.error, c.mark) if key]
        return frame_of_records([{key: row.get(key) for key in keys} for row in self.rows])

    def to_csv(self) -> str:
        """Full precision, one line per record, keys as the header; a missing value is an empty field."""
        buffer = io.StringIO()
        keys = [key for c in self.columns for key in (c.key, c.error, c.mark) if key]
        writer = csv.DictWriter(buffer, keys, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: None if _is_missing(v) else v for k, v in row.items()} for row in self.rows)
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """A pipe table with the best values in bold; all text is escaped."""
        rules = ["---:" if place and c.align == "right" else "---" for place, c in enumerate(self.columns)]
        lines = [[_markdown(c.title) for c in self.columns], rules]
        lines += [[self._cell(row, c, "**{}**", _markdown) for c in self.columns] for row in self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{body}\n\n{_markdown(self.caption)}\n" if self.caption else f"{body}\n"

    def to_latex(self) -> str:
        """A booktabs tabular with the best values in bold, the caption as a comment; all text is escaped."""
        align = "".join(c.align[0] if place else "l" for place, c in enumerate(self.columns))
        lines = [" & ".join(latex_text(c.title) for c in self.columns) + r" \\", r"\midrule"]
        for row in self.rows:
            lines.append(" & ".join(self._cell(row, c, r"\textbf{{{}}}", latex_text) for c in self.columns) + r" \\")
        body = "\n".join(lines)
        caption = "".join(f"% {line}\n" for line in self.caption.splitlines())
        return f"{caption}\\begin{{tabular}}{{{align}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"

    def to_html(self) -> str:
        """A table element with the best values in bold; all text is escaped."""
        head = "".join(f"<th>{html.escape(c.title)}</th>" for c in self.columns)
        cells = [[self._cell(row, c, "<b>{}</b>", html.escape) for c in self.columns] for row in self.rows]
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in cells)
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>\n"

    def _repr_html_(self) -> str:
        return self.to_html()

    def __repr__(self) -> str:
        return f"Table({len(self.rows)} rows x {len(self.columns)} columns)"

    def _cell(self, row: dict[str, Any], column: Column, mark: str, escape: Callable[[str], str]) -> str:
        text = escape(column.text(row.get(column.key)))
        text = mark.format(text) if self.is_best(row, column) else text
        error = row.get(column.error) if column.error else None
        if not (_is_missing(error) or _is_missing(row.get(column.key))):
            text = f"{text} {escape('±')} {column.text(error)}"
        sign = row.get(column.mark) if column.mark else None
        return f"{text} {escape(sign)}" if sign else text


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "′": "$'$", "ε": r"$\varepsilon$", "±": r"$\pm$", "×": r"$\times$", "λ": r"$\lambda$",
})  # fmt: skip


def latex_text(text: str) -> str:
    """Text with everything escaped that means something to TeX."""
    return text.translate(_LATEX)


def _markdown(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", r"\|")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))
