import hashlib
import json
import math
import os

import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_display import make_panel

from analysis.display import LandscapeDisplay, LandscapesDisplay
from analysis.display.figures import save_figure, save_table
from analysis.tables import Column, Table

IMAGES = ("pdf", "png", "svg")
NUMBERS = {"false_share": 0.6, "points": [30, 20]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("figures") / "fig1"
    sources = [{"method": "um", "run": "runs/mini/mnist/um/seed0"}]
    return save_figure(make_panel().plot().figure_, path, numbers=NUMBERS, caption="Figure 1: ε.", sources=sources)


def make_table():
    return Table([Column("method", "method"), Column("r", "r′")], [{"method": "UM", "r": 1.5}], caption="Table 3.")


def test_a_figure_is_written_in_three_formats_and_a_sidecar(saved):
    folder = saved["pdf"].parent
    assert {ending: path.name for ending, path in saved.items()} == {e: f"fig1.{e}" for e in (*IMAGES, "json")}
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in saved.values())
    starts = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}
    assert all(saved[ending].read_bytes().startswith(start) for ending, start in starts.items())


def test_the_same_data_give_the_same_bytes_and_numbers(saved, tmp_path):
    figure = make_panel().plot().figure_
    again = save_figure(figure, tmp_path / "fig1", numbers=NUMBERS, caption="Figure 1: ε.")
    twice = save_figure(figure, tmp_path / "twice", numbers=NUMBERS)
    for ending in IMAGES:
        assert again[ending].read_bytes() == saved[ending].read_bytes(), ending
        assert twice[ending].read_bytes() == saved[ending].read_bytes(), f"{ending}, from one figure"
    first, second = (json.loads(files["json"].read_text(encoding="utf-8")) for files in (saved, again))
    assert first["numbers"] == second["numbers"] and first["files"] == second["files"]


def test_a_display_that_was_shown_before_gives_the_same_bytes_and_leaves_no_figure_open(tmp_path):
    panel = LandscapeDisplay(np.arange(25.0).reshape(5, 5), np.linspace(-2, 2, 5), 12.0, "eps", "cat")

    def saved_after(n_drawings):
        display = LandscapesDisplay({"AT": [panel], "TLA": [panel]}, ["cat"], images=[np.zeros((1, 6, 6))])
        for _ in range(n_drawings):
            display.plot().figure_.draw_without_rendering()
            display.figure_.draw_without_rendering()
        plt.close("all")
        saved = save_figure(display, tmp_path / f"shown{n_drawings}")
        assert plt.get_fignums() == []
        return saved

    fresh, shown = saved_after(0), saved_after(1)
    for ending in (*IMAGES, "safetensors"):
        assert fresh[ending].read_bytes() == shown[ending].read_bytes(), ending


def test_another_figure_gives_other_bytes(saved, tmp_path):
    other = save_figure(make_panel(seed=1).plot().figure_, tmp_path / "fig1")
    assert all(other[ending].read_bytes() != saved[ending].read_bytes() for ending in IMAGES)


def test_the_sidecar_says_what_is_shown_and_where_it_comes_from(saved):
    sidecar = json.loads(saved["json"].read_text(encoding="utf-8"))
    assert set(sidecar) == {"format", "name", "caption", "files", "numbers", "shows", "sources", "provenance"}
    assert (sidecar["name"], sidecar["caption"]) == ("fig1", "Figure 1: ε.")
    assert sidecar["numbers"] == NUMBERS
    assert sidecar["sources"] == [{"method": "um", "run": "runs/mini/mnist/um/seed0"}]
    assert sidecar["files"] == {
        f"fig1.{ending}": hashlib.sha256(saved[ending].read_bytes()).hexdigest() for ending in IMAGES
    }
    provenance = sidecar["provenance"]
    assert set(provenance) == {"command", "commit", "date", "versions"}
    assert provenance["versions"]["matplotlib"] and provenance["date"].endswith("+00:00") and provenance["command"]


def test_the_command_is_the_one_that_was_given_or_that_runs(tmp_path, monkeypatch):
    def recorded(**options):
        files = save_table(make_table(), tmp_path / "t", **options)
        return json.loads(files["json"].read_text(encoding="utf-8"))["provenance"]["command"]

    monkeypatch.setattr("sys.argv", ["/usr/bin/tla", "report", "mine"])
    assert recorded() == "tla report mine"
    monkeypatch.setenv("TLA_COMMAND", "tla notebooks table3 --scale mini")
    assert recorded() == "tla notebooks table3 --scale mini"
    assert recorded(command="by hand") == "by hand"


def test_fonts_are_embedded_as_truetype(saved):
    content = saved["pdf"].read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content


def test_files_tell_no_date_and_no_program(saved):
    pdf = saved["pdf"].read_bytes()
    assert not any(key in pdf for key in (b"/CreationDate", b"/Producer", b"/Creator"))
    assert b"Software" not in saved["png"].read_bytes()
    svg = saved["svg"].read_text(encoding="utf-8")
    assert "<dc:date>" not in svg and "<dc:creator>" not in svg


def test_a_failed_write_leaves_the_old_files(saved, tmp_path, monkeypatch):
    path = tmp_path / "table"
    before = {p: p.read_bytes() for p in save_table(make_table(), path).values()}

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"could not write .*No space left on device"):
        save_table(Table([Column("x", "x")], [{"x": 2}]), path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_table_is_written_in_four_formats_and_a_sidecar(tmp_path):
    table = make_table()
    files = save_table(table, tmp_path / "below" / "table3", numbers={"per_class": [1, 2]})
    assert sorted(p.name for p in (tmp_path / "below").iterdir()) == [
        f"table3.{e}" for e in ("csv", "html", "json", "md", "tex")
    ]
    texts = {"csv": table.to_csv(), "md": table.to_markdown(), "tex": table.to_latex(), "html": table.to_html()}
    assert {ending: files[ending].read_text(encoding="utf-8") for ending in texts} == texts
    sidecar = json.loads(files["json"].read_text(encoding="utf-8"))
    assert sidecar["numbers"] == {"records": [{"method": "UM", "r": 1.5}], "more": {"per_class": [1, 2]}}
    assert sidecar["caption"] == "Table 3."
    again = save_table(table, tmp_path / "again")
    assert all(again[ending].read_bytes() == files[ending].read_bytes() for ending in texts)


def test_the_sidecar_is_strict_json_whatever_numbers_it_is_given(tmp_path):
    """NaN is no JSON: a browser would refuse the whole file."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    numbers = {
        "nan": math.nan, "inner": [{"x": np.float32("nan")}, math.inf], "array": np.arange(3), 5: np.float64(0.25),
        "count": np.int64(3), "flag": np.True_, "tuple": (1.0, None),
    }  # fmt: skip
    table = Table([Column("r", "r")], [{"r": math.nan}, {"r": np.float32(0.5)}])
    files = save_table(table, tmp_path / "t", numbers=numbers)
    found = json.loads(files["json"].read_text(encoding="utf-8"), parse_constant=refuse)["numbers"]
    assert found["records"] == [{"r": None}, {"r": 0.5}]
    assert found["more"] == {
        "nan": None, "inner": [{"x": None}, None], "array": [0, 1, 2], "5": 0.25, "count": 3, "flag": True,
        "tuple": [1.0, None],
    }  # fmt: skip
