import csv
import io
import math

import numpy as np
import pytest

from analysis.tables import Column, Table

EVIL = "<img src=x onerror=alert(1)>"
ROWS = [
    {"method": "UM", "r": 2.1594, "accuracy": 0.98765, "runs": 1},
    {"method": "AT", "r": 1.0421, "accuracy": math.nan, "runs": 2},
    {"method": "TLA", "r": 1.04149, "accuracy": 0.5, "runs": None},
]
COLUMNS = [
    Column("method", "method"),
    Column("r", "r′, ε 0.3", best="min"),
    Column("accuracy", "clean, %", digits=1, percent=True, best="max"),
    Column("runs", "runs"),
]


@pytest.fixture
def table():
    return Table(COLUMNS, ROWS, caption="Table 3: ratios & 100 % of them")


def evil_table():
    columns = [Column("name", EVIL), Column("value", "value", best="max")]
    return Table(columns, [{"name": EVIL, "value": 1.0}, {"name": "a|b", "value": 2.0}], caption=EVIL)


# Cells ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        (Column("x", "x"), 1.23456, "1.235"),
        (Column("x", "x", digits=0), 1.6, "2"),
        (Column("x", "x", digits=1, percent=True), 0.98765, "98.8"),
        (Column("x", "x"), np.float32(1.23456), "1.235"),
        (Column("x", "x"), np.float64(1.23456), "1.235"),
        (Column("x", "x"), 40, "40"),
        (Column("x", "x"), np.int64(40), "40"),
        (Column("x", "x"), "TLA", "TLA"),
        (Column("x", "x"), None, "–"),
        (Column("x", "x"), math.nan, "–"),
        (Column("x", "x"), np.float32("nan"), "–"),
    ],
)
def test_a_cell_reads(column, value, text):
    assert column.text(value) == text


def test_the_best_is_marked_as_printed_so_ties_are_all_marked(table):
    """1.0421 and 1.04149 differ, but both are printed as 1.042 and 1.041; at two digits they tie."""
    assert [table.is_best(row, COLUMNS[1]) for row in ROWS] == [False, False, True]
    coarse = Column("r", "r", digits=2, best="min")
    assert [Table([coarse], ROWS).is_best(row, coarse) for row in ROWS] == [False, True, True]
    assert [table.is_best(row, COLUMNS[2]) for row in ROWS] == [True, False, False]
    assert not any(table.is_best(row, COLUMNS[0]) or table.is_best(row, COLUMNS[3]) for row in ROWS)


def test_nothing_is_best_where_there_is_nothing_to_compare_with():
    best = Column("x", "x", best="max")
    alone = [{"x": 1.0}, {"x": math.nan}, {}]
    assert not any(Table([best], alone).is_best(row, best) for row in alone)


# Formats --------------------------------------------------------------------------------------------------------------


def test_csv_has_full_precision_and_one_line_for_each_record(table):
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["method"] for row in rows] == ["UM", "AT", "TLA"]
    assert [float(row["r"]) for row in rows] == [2.1594, 1.0421, 1.04149]
    # An empty field is what every reader of CSV takes for a missing value.
    assert rows[1]["accuracy"] == "" and rows[2]["runs"] == ""
    assert list(csv.reader(io.StringIO(evil_table().to_csv())))[1] == [EVIL, "1.0"]


def test_markdown_marks_the_best_in_bold(table):
    lines = table.to_markdown().splitlines()
    assert lines == [
        "| method | r′, ε 0.3 | clean, % | runs |",
        "| --- | ---: | ---: | ---: |",
        "| UM | 2.159 | **98.8** | 1 |",
        "| AT | 1.042 | – | 2 |",
        "| TLA | **1.041** | 50.0 | – |",
        "",
        "Table 3: ratios & 100 % of them",
    ]


def test_latex_is_a_booktabs_tabular(table):
    text = table.to_latex()
    assert text.splitlines() == [
        "% Table 3: ratios & 100 % of them",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"method & r$'$, $\varepsilon$ 0.3 & clean, \% & runs \\",
        r"\midrule",
        r"UM & 2.159 & \textbf{98.8} & 1 \\",
        r"AT & 1.042 & -- & 2 \\",
        r"TLA & \textbf{1.041} & 50.0 & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_html_is_one_table(table):
    assert table.to_html() == (
        "<table><caption>Table 3: ratios &amp; 100 % of them</caption>"
        "<thead><tr><th>method</th><th>r′, ε 0.3</th><th>clean, %</th><th>runs</th></tr></thead><tbody>"
        "<tr><td>UM</td><td>2.159</td><td><b>98.8</b></td><td>1</td></tr>"
        "<tr><td>AT</td><td>1.042</td><td>–</td><td>2</td></tr>"
        "<tr><td>TLA</td><td><b>1.041</b></td><td>50.0</td><td>–</td></tr></tbody></table>\n"
    )
    assert table._repr_html_() == table.to_html()


# Text that means something in a format --------------------------------------------------------------------------------


def test_html_escapes_every_text():
    text = evil_table().to_html()
    assert "<img" not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") == 3


def test_markdown_escapes_every_text():
    text = evil_table().to_markdown()
    assert "<img" not in text and text.count("&lt;img") == 3
    assert "| a\\|b | **2.000** |" in text.splitlines()


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("50 % & more_or_less #1", r"50 \% \& more\_or\_less \#1"),
        ("a\\b", r"a\textbackslash{}b"),
        ("{x}^2~$y$", r"\{x\}\textasciicircum{}2\textasciitilde{}\$y\$"),
        ("<img>", r"\textless{}img\textgreater{}"),
        ("r′ at ε ± 1 – 2", r"r$'$ at $\varepsilon$ $\pm$ 1 -- 2"),
    ],
)
def test_latex_escapes(text, latex):
    lines = Table([Column("x", text)], [{"x": text}]).to_latex().splitlines()
    assert lines[2] == lines[4] == latex + r" \\"


def test_a_caption_of_several_lines_stays_a_latex_comment():
    lines = Table([Column("x", "x")], [{"x": 1}], caption="one\ntwo").to_latex().splitlines()
    assert [line for line in lines if not line.startswith(("%", "\\"))] == [r"x \\", r"1 \\"]


def test_a_table_needs_rows():
    with pytest.raises(ValueError, match=r"a table needs at least one row\. Got none"):
        Table(COLUMNS, [])


def test_repr_says_its_size(table):
    assert repr(table) == "Table(3 rows x 4 columns)"
