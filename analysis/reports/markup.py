"""Pieces of HTML: text that is escaped, tables, numbers with their errors."""

import html
from collections.abc import Sequence
from typing import Any


def text(value: Any) -> str:
    """Text of anyone's as HTML."""
    return html.escape(str(value), quote=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", css: str = "") -> str:
    """A table of cells that are HTML already; its first column names the rows. A wide one scrolls by itself."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        f"<tr><th scope='row'>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    about = f"<caption>{caption}</caption>" if caption else ""
    rest = f"{about}<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{css}">{rest}</table></div>'


def percent(value: float | None, error: float | None = None) -> str:
    """A fraction in percent, with its standard error in points."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + "\u00a0%"


def number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")


def section(key: str, title: str, about: str, body: str) -> str:
    """A section with the sentence that says what it shows, and what it cannot."""
    return f'<section id="{key}"><h2>{text(title)}</h2><p class="about">{about}</p>{body}</section>'
