"""The table in docs/guide/models.md is what is found: every cell works, or has the error that is the right answer."""

import re

import pytest
from model_rows import COLUMNS, NOTES, PAGE, ROWS, WORKS, is_installed, page_with_table, try_all


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_cell_is_what_the_table_says(row):
    if not is_installed(row):
        pytest.skip(f"{row.library} is not installed")
    found = try_all(row)
    for column in COLUMNS:
        expected = NOTES[row.notes[column]][1] if column in row.notes else WORKS
        assert found[column] == WORKS if expected == WORKS else expected in found[column], (column, found[column])


def test_the_code_of_the_page_runs():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(code, names)
    assert names["sets"]["penultimate"].features.shape == (12, 16)


def test_the_page_has_the_table():
    assert PAGE.read_text() == page_with_table(PAGE.read_text()), "run python tests/model_rows.py"
