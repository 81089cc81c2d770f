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
        (Column("x", "x"), 999, "999"),
        (Column("x", "x"), 13_247_178, "13,247,178"),
        (Column("x", "x"), np.int64(-1234), "-1,234"),
        (Column("x", "x"), 1234.5, "1234.500"),  # of integers alone
        (Column("x", "x"), "13247178", "13247178"),
        (Column("x", "x"), True, "True"),
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


def test_nothing_is_best_where_rows_are_numbers_of_other_things():
    column = Column("r", "r", best="max", basis="classes")
    rows = [{"r": 1.0, "classes": "0, 1"}, {"r": 2.0, "classes": "0, 1"}, {"r": None, "classes": "1"}]
    assert [Table([column], rows).is_best(row, column) for row in rows] == [False, True, False]
    rows[0]["classes"] = "1"
    assert not any(Table([column], rows).is_best(row, column) for row in rows)
    assert "**" not in Table([column], rows).to_markdown()


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


# Errors and alignment -------------------------------------------------------------------------------------------------

MEASURED = [
    Column("method", "method"),
    Column("robust", "robust, %", digits=1, percent=True, best="max", error="robust se"),
    Column("note", "note", align="left"),
]
MEASUREMENTS = [
    {"method": "UM", "robust": 0.125, "robust se": 0.0104, "note": "a"},
    {"method": "AT", "robust": 0.875, "robust se": 0.0112, "note": "b"},
    {"method": "TLA", "robust": 0.5, "robust se": math.nan, "note": "c"},
    {"method": "ALP", "robust": None, "robust se": 0.01, "note": "d"},
    {"method": "RN", "note": "e"},
]


def test_an_error_stands_behind_its_value_where_both_are_there_and_is_not_bold():
    lines = Table(MEASURED, MEASUREMENTS).to_markdown().splitlines()
    assert lines == [
        "| method | robust, % | note |",
        "| --- | ---: | --- |",
        "| UM | 12.5 ± 1.0 | a |",
        "| AT | **87.5** ± 1.1 | b |",
        "| TLA | 50.0 | c |",
        "| ALP | – | d |",
        "| RN | – | e |",
    ]


def test_latex_and_html_have_the_error_and_the_alignment_too():
    table = Table(MEASURED, MEASUREMENTS)
    latex = table.to_latex().splitlines()
    assert latex[0] == r"\begin{tabular}{lrl}"
    assert latex[4:7] == [
        r"UM & 12.5 $\pm$ 1.0 & a \\", r"AT & \textbf{87.5} $\pm$ 1.1 & b \\", r"TLA & 50.0 & c \\",
    ]  # fmt: skip
    assert "<td><b>87.5</b> ± 1.1</td>" in table.to_html() and "<td>50.0</td>" in table.to_html()


def test_csv_has_the_error_in_full_precision_beside_its_value():
    rows = list(csv.DictReader(io.StringIO(Table(MEASURED, MEASUREMENTS).to_csv())))
    assert list(rows[0]) == ["method", "robust", "robust se", "note"]
    assert [row["robust se"] for row in rows] == ["0.0104", "0.0112", "", "0.01", ""]
    integers = Table([Column("n", "n")], [{"n": 13_247_178}])
    assert integers.to_csv() == "n\n13247178\n", "separators are for readers"


def test_an_error_decides_nothing_about_the_best():
    """Values that are printed alike are all the best, whatever their errors."""
    rows = [{"x": 0.5, "se": 0.1}, {"x": 0.5001, "se": 0.2}, {"x": 0.4, "se": 0.9}]
    column = Column("x", "x", digits=2, best="max", error="se")
    table = Table([column], rows)
    assert [table.is_best(row, column) for row in rows] == [True, True, False]


def test_the_first_column_is_on_the_left_and_others_on_the_right_unless_told():
    columns = [Column("a", "a", align="right"), Column("b", "b"), Column("c", "c", align="left")]
    table = Table(columns, [{"a": 1, "b": 2, "c": 3}])
    assert table.to_latex().splitlines()[0] == r"\begin{tabular}{lrl}"
    assert table.to_markdown().splitlines()[1] == "| --- | ---: | --- |"


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
        ("λ1, 3 × 3", r"$\lambda$1, 3 $\times$ 3"),
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
