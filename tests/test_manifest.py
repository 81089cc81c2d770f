import json

import matplotlib.pyplot as plt
import pytest
from tiny import REPOSITORY, project_folder

from analysis.command import main as cli
from analysis.display.figures import save_figure, save_table
from analysis.paper.figure_index import safe_table, title_of, write_index
from analysis.publish.site_check import site_problems
from analysis.scales.manifest import (
    EXPECTED,
    SHOWN_BY,
    ManifestError,
    check_manifest,
    read_sidecars,
    write_manifest,
)
from analysis.tables import Column, Table

EVIL = '<img src=x onerror="alert(1)">'
COMMAND = "tla notebooks fig1_3_false_classes --scale mini"


def make_figure(folder, name, shows, caption="A caption.", command=COMMAND):
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.plot([0, 1])
    files = save_figure(figure, folder / name, shows=shows, caption=caption, command=command)
    plt.close(figure)
    return files


def make_table(folder, name, shows=(), caption="Ratios.", command="tla notebooks table3 --scale mini"):
    columns = [Column("method", "method"), Column("r", "r′", best="max")]
    rows = [{"method": "UM", "r": 1.5}, {"method": "TLA", "r": 1.7}]
    return save_table(Table(columns, rows, caption=caption), folder / name, shows=shows, command=command)


@pytest.fixture
def folder(tmp_path):
    """A scale's folder with two sidecars of the paper and another."""
    folder = project_folder(tmp_path) / "figures" / "mini"
    make_figure(folder, "fig1_3", ["fig1", "fig2", "fig3"])
    make_table(folder, "table3", ["table3"])
    make_table(folder, "mine")
    return folder


# Which sidecar shows what ---------------------------------------------------------------------------------------------


def test_each_artefact_of_the_paper_is_made_by_one_notebook():
    assert len(EXPECTED) == len(set(EXPECTED)) == 8 + 6 + 3
    assert {path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")} >= set(SHOWN_BY)


def test_sidecars_come_in_the_order_of_the_paper_others_last(folder):
    make_table(folder, "main_accuracy_mnist", ["main_accuracy"])
    make_table(folder, "table1", ["table1"])
    (folder / "notes.json").write_text('{"files": 3}')
    (folder / "list.json").write_text("[1]")
    stems = [sidecar.stem for sidecar in read_sidecars(folder)]
    assert stems == ["fig1_3", "table1", "table3", "main_accuracy_mnist", "mine"]


# The manifest ---------------------------------------------------------------------------------------------------------


def test_the_manifest_maps_artefacts_to_files(folder):
    manifest = json.loads(write_manifest(folder).read_text(encoding="utf-8"))
    assert set(manifest["artefacts"]) == {"fig1", "fig2", "fig3", "table3"}
    (entry,) = manifest["artefacts"]["fig2"]
    assert entry["sidecar"] == "fig1_3.json" and entry["command"] == COMMAND
    assert set(entry["files"]) == {"fig1_3.pdf", "fig1_3.png", "fig1_3.svg"}
    assert [other["sidecar"] for other in manifest["others"]] == ["mine.json"]
    assert manifest["scale"] == "mini" and manifest["missing"][:2] == ["fig4", "fig5"]


def test_several_sidecars_may_show_one_artefact(folder):
    make_table(folder, "cifar10", ["table3"])
    manifest = json.loads(write_manifest(folder).read_text(encoding="utf-8"))
    assert [entry["sidecar"] for entry in manifest["artefacts"]["table3"]] == ["cifar10.json", "table3.json"]


def test_the_same_sidecars_give_the_same_bytes_and_a_new_date_changes_nothing(folder):
    before = write_manifest(folder).read_bytes()
    sidecar = json.loads((folder / "table3.json").read_text(encoding="utf-8"))
    sidecar["provenance"]["date"] = "later"
    (folder / "table3.json").write_text(json.dumps(sidecar))
    assert write_manifest(folder).read_bytes() == before


def test_a_scale_can_be_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert write_manifest("mini") == folder / "manifest.json"
    check_manifest("mini", ["fig1", "table3"])
    with pytest.raises(ValueError, match=r"unknown scale 'huge'. There are: mini"):
        write_manifest("huge")


def test_a_complete_folder_passes(folder):
    write_manifest(folder)
    check_manifest(folder, expected=["fig1", "fig2", "fig3", "table3"])


def problems(folder, expected):
    with pytest.raises(ManifestError) as error:
        check_manifest(folder, expected)
    assert all(problem in str(error.value) for problem in error.value.problems)
    return list(error.value.problems)


def test_everything_that_is_wrong_is_listed_with_what_makes_it(folder):
    write_manifest(folder)
    (folder / "fig1_3.png").write_bytes(b"")
    (folder / "fig1_3.svg").unlink()
    (folder / "table3.csv").write_text("changed")
    found = problems(folder, ["fig2", "table3", "fig5", "fig6", "knn"])
    assert found[0] == f"fig2: fig1_3.png is empty. Made by: {COMMAND}"
    assert found[1] == f"fig2: fig1_3.svg is missing. Made by: {COMMAND}"
    assert found[2].startswith("table3: table3.csv was changed: got sha256 ")
    assert found[2].endswith("Made by: tla notebooks table3 --scale mini")
    assert found[3:] == [
        "fig5: no sidecar shows it. Made by: tla notebooks fig4_6_class_pairs --scale mini",
        "fig6: no sidecar shows it. Made by: tla notebooks fig4_6_class_pairs --scale mini",
        "knn: no sidecar shows it. Made by: tla notebooks knn_and_detection --scale mini",
    ]


def test_only_what_is_expected_is_checked(folder):
    write_manifest(folder)
    (folder / "table3.csv").unlink()
    check_manifest(folder, ["fig1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "table3.json is empty"),
        ("{", "table3.json is no sidecar"),
        ('{"files": {}}', "table3.json is no sidecar"),
        ('{"files": {"../x": "0"}, "caption": "", "provenance": {"command": ""}}', "table3.json is no sidecar"),
    ],
)
def test_a_broken_sidecar_is_a_problem(folder, content, message):
    write_manifest(folder)
    (folder / "table3.json").write_text(content)
    found = problems(folder, ["table3"])
    assert found[0].startswith(message) and found[0].endswith("Made by: tla notebooks --scale mini")
    assert found[1] == "table3: no sidecar shows it. Made by: tla notebooks table3_distance_ratios --scale mini"
    with pytest.raises(ManifestError, match=message):
        write_manifest(folder)


def test_a_sidecar_without_files_is_a_problem(folder):
    sidecar = json.loads((folder / "table3.json").read_text(encoding="utf-8")) | {"files": {}}
    (folder / "table3.json").write_text(json.dumps(sidecar))
    write_manifest(folder)
    assert "table3: table3.json names no file" in problems(folder, ["table3"])[0]


def test_a_manifest_that_is_missing_or_old_is_a_problem(folder):
    assert "manifest.json is missing" in problems(folder, ["fig1"])[0]
    write_manifest(folder)
    make_table(folder, "table5", ["table5"])
    assert "not what the sidecars say" in problems(folder, ["fig1"])[0]


@pytest.mark.parametrize("name", ["figure1", "fig1_3", "knn_accuracy"])
def test_what_no_sidecar_can_show_cannot_be_expected(folder, name):
    with pytest.raises(ValueError, match=rf"expected must be of fig1, .*Got {name}"):
        check_manifest(folder, [name])


@pytest.mark.parametrize("call", [write_manifest, check_manifest, write_index])
def test_a_folder_that_is_not_there_is_said(tmp_path, call):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*mini. `tla figures --scale mini` makes it"):
        call(tmp_path / "mini")


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_figure_and_table_with_links_and_commands(folder):
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "fig1_3_false_classes.ipynb").touch()
    text = write_index(folder).read_text(encoding="utf-8")
    assert '<img src="fig1_3.png" alt="Figures 1–3. A caption."' in text
    assert "<table><thead><tr><th>method</th><th>r′</th></tr></thead>" in text and "<td><b>1.700</b></td>" in text
    for name in ("fig1_3.pdf", "fig1_3.svg", "fig1_3.json", "table3.csv", "table3.tex", "table3.json", "mine.csv"):
        assert f'<a href="{name}">' in text
    assert '<a href="notebooks/fig1_3_false_classes.ipynb">' in text and f"<code>{COMMAND}</code>" in text
    assert text.count("Ratios.") == 2  # once for each of the two tables: the caption is not repeated inside them
    assert "<li>Figure 5: Made by: tla notebooks fig4_6_class_pairs --scale mini</li>" in text
    assert site_problems(folder) == []


def test_the_same_folder_gives_the_same_page(folder):
    assert write_index(folder).read_bytes() == write_index(folder).read_bytes()


def test_every_text_is_escaped(folder):
    make_figure(folder, "fig4", ["fig4"], caption=EVIL, command=EVIL)
    make_table(folder, "table4", ["table4"], caption=EVIL)
    (folder / "table3.html").write_text(f"<table><tr><td onclick='x()'>{EVIL}</td></tr></table><script>x()</script>")
    text = write_index(folder).read_text(encoding="utf-8")
    assert "<img src=x" not in text and "onclick" not in text and "<script" not in text
    assert text.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;") >= 3
    assert '<p class="bad">table3.html was changed' in text


def test_a_table_is_rebuilt_from_table_tags_alone():
    text = '<table class="x"><caption>c</caption><tr><th>a &amp; <i>b</i></th><td>1 &lt; 2</td></tr></table>'
    assert safe_table(text) == "<table><tr><th>a &amp; b</th><td>1 &lt; 2</td></tr></table>"


def test_a_missing_file_is_said_on_the_page(folder):
    (folder / "fig1_3.png").unlink()
    (folder / "table3.json").write_text("")
    text = write_index(folder).read_text(encoding="utf-8")
    assert '<p class="bad">fig1_3.png is missing</p>' in text and '<img src="fig1_3.png"' not in text
    assert '<p class="bad">table3.json is empty</p>' in text
    assert site_problems(folder) == []


def test_the_page_names_artefacts_as_people_do(folder):
    assert title_of(("fig1", "fig2", "fig3")) == "Figures 1–3" and title_of(("table6",)) == "Table 6"
    made = {"main_accuracy_mnist": ["main_accuracy"], "knn_accuracy": ["knn"], "detection": ["detection"]}
    for name, shows in (made | {"table4_6-black_box": ["table4", "table5", "table6"]}).items():
        make_table(folder, name, shows)
    text = write_index(folder).read_text(encoding="utf-8")
    names = ("Accuracy (mnist)", "Nearest neighbours (accuracy)", "Detection", "Tables 4–6 (black box)", "mine")
    assert all(f">{name}</a>" in text for name in names)


@pytest.mark.parametrize(("notebooks", "missing"), [((), 0), (("fig8_loss_landscape",), 1)])
def test_a_scale_needs_what_its_notebooks_show_and_no_more(folder, notebooks, missing, monkeypatch, capsys):
    """The scale `medium` leaves Tables 4 to 6 out."""
    root = folder.parents[1]
    project_folder(root, notebooks=["fig1_3_false_classes", "table3_distance_ratios", *notebooks])
    monkeypatch.setenv("TLA_ROOT", str(root))
    assert cli.main(["manifest"]) == missing
    assert ("fig8: no sidecar shows it" in capsys.readouterr().err) == bool(missing)
