"""The table in docs/guide/models.md is what is found: every cell works, or has the error that is the right answer."""

import re

import pytest
from model_rows import CELLS, NOTES, PAGE, ROWS, WORKS, Row, is_installed, page_with_table, try_cells, try_report

REPORTED = ("LeNet that flattens with `.view`", "output: two of one shape", "torch.jit.trace", "dynamic quantised")


def check(row: Row, column: str, found: str) -> None:
    expected = NOTES[row.notes[column]][1] if column in row.notes else WORKS
    assert found == WORKS if expected == WORKS else expected in found, (column, found)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_cell_is_what_the_table_says(row):
    if not is_installed(row):
        pytest.skip(f"{row.library} is not installed")
    found = try_cells(row)
    for column in CELLS:
        check(row, column, found[column])


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=row.name,
            marks=[]
            if row.name in REPORTED or row.library  # a group of which something is skipped would never be noted
            else pytest.mark.confirmation(of=("analysis/reports", "tests/model_rows.py")),
        )
        for row in ROWS
    ],
)
def test_a_report_is_what_the_table_says(row, tmp_path):
    if not is_installed(row):
        pytest.skip(f"{row.library} is not installed")
    check(row, "report", try_report(row, tmp_path / "report"))


def test_the_code_of_the_page_runs():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(code, names)
    assert names["sets"]["penultimate"].features.shape == (12, 16)


def test_the_page_has_the_table():
    assert PAGE.read_text() == page_with_table(PAGE.read_text()), "run python tests/model_rows.py"
