import json
import shutil

import numpy as np
import pytest
from test_display import make_panel
from tiny import REPOSITORY

from analysis.display import (
    ClassPairDisplay,
    ClassPairPanel,
    FalseClassesDisplay,
    LandscapeDisplay,
    LandscapesDisplay,
    RetrievalDisplay,
    RetrievalStrip,
    RocCurve,
    RocDisplay,
)
from analysis.display.drawings import DrawingError, drawing_bytes, load_drawing
from analysis.display.figures import save_figure, save_table
from analysis.paper.redraw import changed_when_redrawn, draw_again
from analysis.scales.manifest import EXPECTED, check_manifest, read_sidecars
from analysis.tables import Column, Table
from tla_core.checkpoint import CheckpointError, save_tensors

RNG = np.random.default_rng(0)
NAMES = ("cat", "dog")


def pair_panel():
    points = RNG.normal(size=(3, 8, 2))
    return ClassPairPanel(np.concatenate(points[:2]), np.arange(16) // 8, points[2], (0, 1), NAMES, 0.25)


def landscape():
    return LandscapeDisplay(RNG.random((5, 5)), np.linspace(-2, 2, 5), 0.5, "eps")


def strip():
    images = RNG.integers(0, 256, (3, 1, 6, 6), dtype=np.uint8)
    return RetrievalStrip(images, np.array([0, 0, 1]), np.array([4, 5, 6]), np.array([0.1, 0.2]))


def displays():
    return {
        "fig1": FalseClassesDisplay([[make_panel(), make_panel(seed=1)]], ["UM", "AT"]),
        "fig4": ClassPairDisplay([pair_panel(), pair_panel()], ["UM", "AT"]),
        "fig7": RetrievalDisplay({"AT": (strip(), strip())}, NAMES),
        "fig8": LandscapesDisplay({"AT": [landscape()], "TLA": [landscape()]}, ["cat"], images=[RNG.random((1, 6, 6))]),
        "detection": RocDisplay([RocCurve("AT", np.array([0, 0.5, 1]), np.array([0, 0.7, 1]), 0.6)], title="ROC"),
        "your_own_model": make_panel(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for name, display in displays().items():
        numbers = {"n": [1, np.float32(0.5)]}
        save_figure(display.plot(), folder / name, numbers=numbers, caption=f"ε of {name}", command="c")
    rows = [{"method": "UM", "r": 1.5, "se": 0.1}, {"method": "AT", "r": float("nan"), "se": None}]
    columns = [Column("method", "method"), Column("r", "r′", digits=2, best="max", error="se")]
    table = Table(columns, rows, "Table 3.")
    save_table(table, folder / "table3", numbers={"left_out": 1}, sources=[{"run": "runs/um"}])
    return folder


def test_every_display_is_drawn_again_byte_for_byte(folder, tmp_path):
    drawn = draw_again(folder, out=tmp_path)
    assert {each.stem for each in drawn} == {*displays(), "table3"}
    assert [each for each in drawn if each.changed] == []
    for path in folder.iterdir():
        if path.suffix != ".json":
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
        else:
            before, after = (json.loads(p.read_text()) for p in (path, tmp_path / path.name))
            for each in (before, after):
                del each["provenance"]["date"]
            assert before == after


def test_a_drawing_gives_the_same_bytes_after_it_was_read(folder):
    content = (folder / "fig1.safetensors").read_bytes()
    assert drawing_bytes(load_drawing(folder / "fig1.safetensors")) == content


def test_what_would_change_is_named_and_nothing_is_written(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    sidecar = json.loads((copy / "table3.json").read_text())
    sidecar["numbers"]["records"][0]["r"] = 1.6
    (copy / "table3.json").write_text(json.dumps(sidecar))
    before = {path: path.read_bytes() for path in copy.iterdir()}
    (found,) = changed_when_redrawn(copy, ["table3"])
    assert set(found.changed) == {f"table3.{ending}" for ending in ("csv", "html", "md", "tex")}
    assert {path: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_broken_sidecar_is_named_with_what_makes_it_again(folder, tmp_path, content):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "fig4.json").write_bytes(content)
    with pytest.raises(DrawingError, match=r"fig4\.json is (empty|no sidecar).*`tla notebooks --scale copy`"):
        changed_when_redrawn(copy)
    assert [each.stem for each in changed_when_redrawn(copy, ["fig1"])] == ["fig1"]


def test_names_that_are_not_there_and_figures_without_a_drawing_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no fig9\. There are: detection, fig1, fig4"):
        draw_again(folder, ["fig9"])
    save_figure(make_panel().plot().figure_, tmp_path / "fig1", command="tla notebooks fig1_3_false_classes")
    with pytest.raises(DrawingError, match=r"without fig1\.safetensors.*`tla notebooks fig1_3_false_classes`"):
        draw_again(tmp_path)


def test_files_that_are_no_drawing_are_refused(folder, tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"x": np.zeros(2)}, {"kind": "maps"})
    with pytest.raises(DrawingError, match=r"holds no drawing\. Got maps"):
        load_drawing(tmp_path / "other.safetensors")
    contents = {"display": "Popen", "arguments": {"args": "ls"}}
    save_tensors(tmp_path / "evil.safetensors", {}, {"kind": "drawing", "contents": contents})
    with pytest.raises(DrawingError, match="unknown Display 'Popen'"):
        load_drawing(tmp_path / "evil.safetensors")
    (tmp_path / "short.safetensors").write_bytes((folder / "fig1.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError):
        load_drawing(tmp_path / "short.safetensors")
    with pytest.raises(TypeError, match="Got a object"):
        drawing_bytes(object())


OF_EACH_KIND = ("fig4", "fig7", "fig8", "table3", "table4", "detection-mnist", "main_accuracy-mnist")


@pytest.mark.parametrize("names", [OF_EACH_KIND, pytest.param((), marks=pytest.mark.confirmation)])
def test_committed_figures_are_complete_and_drawn_again_byte_for_byte(names):
    folder = REPOSITORY / "figures" / "small"
    check_manifest(folder)
    drawn = changed_when_redrawn(folder, names)
    assert [each for each in drawn if each.changed] == []
    assert {artefact for sidecar in read_sidecars(folder) for artefact in sidecar.artefacts} == set(EXPECTED)
