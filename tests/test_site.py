"""The site built from the project's documents, small sites for what must not happen, and the guide's code."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_manifest import make_table
from tiny import REPOSITORY, files_of, project_folder

import analysis
import tla_core
from analysis.publish.site import MARKER, SiteError, build_site
from analysis.publish.site_check import site_problems

GUIDE = sorted((REPOSITORY / "docs" / "guide").glob("*.md"))
SMALL_CONF = (
    'extensions = ["myst_nb"]\nnb_execution_mode = "off"\nhtml_theme = "basic"\nhtml_static_path = ["_static"]\n'
)
SMALL_INDEX = "# Small\n\n[the notebook](../notebooks/fig1.ipynb)\n\n```{toctree}\nnotebooks\n```\n"
PLOT = {"data": [{"type": "scatter", "x": [1, 2], "y": [3, 4]}], "layout": {"title": {"text": "lines"}}}


def shows(**data):
    return new_output("display_data", data={key.replace("__", "/"): value for key, value in data.items()})


def write_notebook(path, *outputs, text="# Figure 1\n\nSee [the method](../docs/method.md)."):
    code = new_code_cell("1 + 1", outputs=list(outputs), execution_count=1 if outputs else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    nbformat.write(new_notebook(cells=[new_markdown_cell(text), code], metadata=metadata), path)


def text_of(path):
    return re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))


# The whole site -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The project's documents, with one notebook that was executed, one that failed and others that were not."""
    root = project_folder(tmp_path_factory.mktemp("project"))
    for name in ("docs", "notebooks"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("api", ".*"))
    for name in ("tla_core", "analysis", "README.md"):
        (root / name).symlink_to(REPOSITORY / name)
    figures = root / "figures" / "mini"
    figures.mkdir(parents=True)
    (root / "figures" / "small").symlink_to(REPOSITORY / "figures" / "small")
    make_table(figures, "table3", command="tla notebooks table3_distance_ratios --scale mini")
    (figures / "explorer.html").write_text("<!doctype html><title>explorer</title>")
    plot = {"application/vnd.plotly.v1+json": PLOT}
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}, "text/plain": "100%|tqdm|"}
    write_notebook(
        figures / "notebooks" / "table3_distance_ratios.ipynb",
        new_output("display_data", data=plot),
        new_output("display_data", data=plot),
        new_output("display_data", data=widget),
        shows(text__html='<iframe src="../explorer.html" width="700"></iframe>'),
        shows(text__html='<iframe src="../figures/mini/explorer.html"></iframe>'),
        text="# Table 3\n\nSee [the method](../docs/method.md), [ratios](../analysis/ratios.py),"
        " [all](../README.md), with $|u|^2$.",
    )
    write_notebook(figures / "notebooks" / "broken.failed.ipynb", text="# Failed")
    return build_site(root, "mini", root / "site")


def test_the_site_has_no_broken_link_and_loads_nothing_from_a_network(site):
    assert len(list(site.rglob("*.html"))) > 20
    assert site_problems(site) == []
    text = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    assert not any(word in text for word in ("cdn.", "cdnjs", "googleapis", "unpkg", "jsdelivr"))


def test_guide_method_and_architecture_are_pages(site):
    pages = ["index", "method", "architecture", "notebooks", *(f"guide/{path.stem}" for path in GUIDE)]
    assert all((site / f"{page}.html").is_file() for page in pages)


@pytest.mark.parametrize("package", [tla_core, analysis], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_object(site, package):
    text = (site / "api" / f"{package.__name__}.html").read_text(encoding="utf-8")
    missing = [name for name in package._PUBLIC if f'id="{package.__name__}.{name}"' not in text]
    assert not missing


def test_the_reference_has_what_a_class_inherits_from_ours(site):
    text = (site / "api" / "analysis.html").read_text(encoding="utf-8")
    displays = [name for name in analysis._PUBLIC if name.endswith("Display")]
    assert not [name for name in displays if f'id="analysis.{name}.plot"' not in text]


def test_executed_notebooks_are_shown_with_outputs_that_need_no_kernel(site):
    text = (site / "figures/mini/notebooks/table3_distance_ratios.html").read_text(encoding="utf-8")
    assert text.count("_static/plotly.min.js") == 1
    assert text.count('class="plotly-graph-div"') == 2 and '"showSendToCloud": false' in text
    assert text.count('src="../explorer.html"') == 2
    assert "tqdm" not in text and "<math" in text
    assert 'href="../../../method.html"' in text and 'href="../../../api/analysis.html#analysis-ratios"' in text
    assert (site / "_static" / "plotly.min.js").stat().st_size > 1_000_000
    assert not list(site.rglob("*failed*"))


def test_what_was_not_executed_is_said_with_the_command(site):
    text = text_of(site / "notebooks.html")
    assert "they were not executed at this scale" in text
    assert "make figures SCALE=mini" in text and "tla notebooks NAME --scale mini" in text
    assert (site / "figures/mini/notebooks/fig1_3_false_classes.html").is_file()


def test_figures_and_their_page_are_on_the_site(site):
    index = (site / "figures" / "mini" / "index.html").read_text(encoding="utf-8")
    assert '<a href="notebooks/table3_distance_ratios.html">' in index and (site / "figures/mini/table3.csv").is_file()
    assert "<li>Figure 2: Made by: tla notebooks fig1_3_false_classes --scale mini</li>" in index
    assert 'href="figures/mini/index.html"' in (site / "notebooks.html").read_text(encoding="utf-8")


def test_the_site_opens_with_figures_of_natural_images_and_an_explorer(site):
    """The explorer is that of natural images where there is one, else the scale's own, which says so."""
    index = (site / "index.html").read_text(encoding="utf-8")
    images = re.findall(r'<img[^>]*src="([^"]+)"', index)
    assert {Path(image).name for image in images} >= {"fig1.png", "fig7.png"}
    for name in ("fig1.png", "fig7.png"):
        (shown,) = [site / image for image in images if Path(image).name == name]
        assert shown.read_bytes() == (REPOSITORY / "figures" / "small" / name).read_bytes()
    assert '<iframe src="figures/mini/explorer.html"' in index
    assert "tla notebooks explore_embeddings --scale small" in index
    assert (site / "figures/small/index.html").is_file()
    assert 'href="figures/small/index.html"' in (site / "notebooks.html").read_text(encoding="utf-8")


def test_the_front_page_has_the_explorer_of_natural_images_first_and_without_any_a_picture(small):
    from analysis.publish.site import explorer_frame
    from analysis.scales.scale import load_scale

    scale = load_scale("mini", small)
    assert "explorer-light.png" in explorer_frame(scale) and "make demo" in explorer_frame(scale)
    for name in ("mini", "small"):
        (small / "figures" / name).mkdir(parents=True)
        (small / "figures" / name / "explorer.html").write_text("<title>explorer</title>")
        assert f'src="figures/{name}/explorer.html"' in explorer_frame(scale)


# Small sites ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A project with a document of its own and one notebook, whose site is built in two seconds."""
    root = project_folder(tmp_path / "project")
    (root / "docs").mkdir()
    (root / "docs" / "conf.py").write_text(SMALL_CONF)
    (root / "docs" / "index.md").write_text(SMALL_INDEX)
    (root / "docs" / "method.md").write_text("---\norphan: true\n---\n\n# Method\n")
    write_notebook(root / "notebooks" / "fig1.ipynb")
    return root


def execute(root, *outputs):
    write_notebook(root / "figures" / "mini" / "notebooks" / "fig1.ipynb", *outputs)


def test_without_executed_notebooks_the_committed_ones_are_shown(small):
    site = build_site(small, "mini", small / "site")
    assert "`" not in text_of(site / "notebooks.html")
    assert "make figures SCALE=mini" in text_of(site / "notebooks.html")
    assert "1 + 1" in text_of(site / "figures/mini/notebooks/fig1.html").replace("\xa0", " ")
    assert not (site / "figures" / "mini" / "index.html").exists()


def test_a_site_is_replaced_as_a_whole_by_the_same_bytes(small):
    execute(small, new_output("display_data", data={"application/vnd.plotly.v1+json": PLOT}))
    (small / "site").mkdir()  # an empty folder may become the site
    site = build_site(small, "mini", small / "site")
    before = files_of(site)
    assert MARKER in before and "index.html" in before
    (site / "left-over.html").write_text("old")
    build_site(small, "mini", small / "site")
    assert files_of(site) == before
    assert not list(small.glob(".site-*"))


def test_a_site_that_is_not_whole_does_not_replace_the_old_one(small):
    (small / "site").mkdir()
    (small / "site" / MARKER).write_text("the old site")
    execute(
        small,
        shows(text__html='<img src="https://example.org/x.png">'),
        shows(text__html='<script src="//example.org/x.js"></script>'),
        shows(text__html='<a href="gone.html">gone</a>'),
        shows(text__html='<iframe src="../explorer.html"></iframe>'),
    )
    with pytest.raises(SiteError, match="the site is not complete") as error:
        build_site(small, "mini", small / "site")
    page = "figures/mini/notebooks/fig1.html"
    assert str(error.value).splitlines()[1:] == [
        f"  {page} loads //example.org/x.js",
        f"  {page} loads https://example.org/x.png",
        f"  {page}: ../explorer.html leads nowhere",
        f"  {page}: gone.html leads nowhere",
    ]
    assert files_of(small / "site") == {MARKER: b"the old site"}
    assert not list(small.glob(".site-*"))


def test_a_warning_of_sphinx_is_an_error_that_names_the_document(small):
    (small / "docs" / "index.md").write_text(SMALL_INDEX + "\n[nowhere](gone.md)\n")
    with pytest.raises(SiteError, match=r"(?s)Sphinx \(status 1\) says:.*index.md:9: WARNING: .*gone.md"):
        build_site(small, "mini", small / "site")
    assert not (small / "site").exists()


def test_what_is_not_installed_is_named(small, monkeypatch):
    monkeypatch.setattr("analysis.publish.site.find_spec", lambda name: None if name == "furo" else name)
    with pytest.raises(SiteError, match=r"^furo must be installed: `make env`"):
        build_site(small, "mini", small / "site")


def test_a_folder_that_is_no_site_is_not_replaced(small):
    (small / "site").mkdir()
    (small / "site" / "thesis.tex").write_text("mine")
    with pytest.raises(SiteError, match=r"site is no site that this command made, and is not replaced"):
        build_site(small, "mini", small / "site")
    with pytest.raises(SiteError, match="is not replaced"):
        build_site(small, "mini", small / "site" / "thesis.tex")
    assert files_of(small / "site") == {"thesis.tex": b"mine"}


def test_an_unknown_scale_lists_those_there_are(small):
    with pytest.raises(ValueError, match=r"unknown scale 'huge'. There are: mini"):
        build_site(small, "huge", small / "site")


# The check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<link rel="stylesheet" href="https://a.org/x.css">', "page.html loads https://a.org/x.css"),
        ('<img srcset="y.png 1x, http://a.org/y.png 2x">', "page.html loads http://a.org/y.png"),
        ("<style>@import 'https://a.org/f.css';</style>", "page.html loads https://a.org/f.css"),
        ('<p style="background: url(//a.org/b.png)">', "page.html loads //a.org/b.png"),
        ('<video poster="HTTPS://a.org/p.png"></video>', "page.html loads HTTPS://a.org/p.png"),
        ('<object data="http://a.org/o"></object>', "page.html loads http://a.org/o"),
        ('<svg><use xlink:href="https://a.org/s#x"/></svg>', "page.html loads https://a.org/s#x"),
        ('<a href="z.html">z</a>', "page.html: z.html leads nowhere"),
        ('<a href="#here">h</a>', "page.html: #here leads nowhere"),
        ('<a href="other.html#there">o</a>', "page.html: other.html#there leads nowhere"),
        ('<a href="folder/">a server would know</a>', "page.html: folder/ leads nowhere"),
        ('<a href="../outside.html">o</a>', "page.html: ../outside.html leads nowhere"),
        ('<a href="/page.html">/</a>', "page.html: /page.html leads nowhere"),
    ],
)
def test_the_check_finds(tmp_path, html, problem):
    folder = tmp_path / "site"
    (folder / "folder").mkdir(parents=True)
    (folder / "y.png").touch()
    (folder / "other.html").write_text('<p id="other">')
    (tmp_path / "outside.html").touch()
    (folder / "page.html").write_text(html)
    assert problem in site_problems(folder)


def test_the_check_finds_remote_fonts_in_style_sheets(tmp_path):
    (tmp_path / "a.css").write_text("@font-face { src: url('https://a.org/f.woff2') }")
    assert site_problems(tmp_path) == ["a.css loads https://a.org/f.woff2"]


def test_the_check_lets_ordinary_links_pass(tmp_path):
    (tmp_path / "a page.html").write_text(
        '<p id="é"></p><a href="https://arxiv.org">paper</a><a href="mailto:a@b.c">m</a><a href="#%C3%A9">é</a>'
        '<a href="a%20page.html">self</a><a href="">top</a><img src="data:image/png;base64,AAAA">'
        "<script>x = '<img src=\"https://a.org/x\">'</script><code>https://a.org</code>"
    )
    assert site_problems(tmp_path) == []


# The guide ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", GUIDE, ids=lambda path: path.stem)
def test_the_code_of_a_guide_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_table(tmp_path / "figures" / "mini", "table3")
    for folder in ("figures/small", "checkpoints"):  # as in the root of a clone
        (tmp_path / folder).symlink_to(REPOSITORY / folder)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(code, page.name, "exec"), names)
    plt.close("all")
    for drawn in tmp_path.glob("yours-*.png"):  # the page shows what its code draws
        assert plt.imread(drawn).shape == plt.imread(page.with_name(drawn.name)).shape


def indented_commands(word):
    lines = (line for page in GUIDE for line in page.read_text(encoding="utf-8").splitlines())
    return sorted({line.strip().partition("#")[0].strip() for line in lines if line.startswith(f"    {word} ")})


def test_the_guide_names_make_targets_that_there_are():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = {command.split()[1] for command in indented_commands("make")}
    assert targets >= {"env", "figures", "site"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


@pytest.mark.parametrize("command", indented_commands("tla"))
def test_the_guide_names_commands_and_flags_that_there_are(command, capsys):
    from analysis.command import main as cli

    _, name, *words = command.split()
    named = [words[0]] if name == "train" else []
    with pytest.raises(SystemExit):
        cli.main([name, *named, "--help"])
    text = capsys.readouterr().out
    assert f"usage: tla {name}" in text
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert all(flag in text for flag in flags)


def test_a_notebook_is_valid_after_staging(small):
    from analysis.publish.site import stage_sources
    from analysis.scales.scale import load_scale

    execute(small, new_output("display_data", data={"application/vnd.plotly.v1+json": PLOT}))
    stage_sources(load_scale("mini", small), small / "staged")
    path = small / "staged" / "figures/mini/notebooks/fig1.ipynb"
    nbformat.validate(nbformat.read(path, as_version=4))
    source = small / "figures/mini/notebooks/fig1.ipynb"
    assert json.loads(path.read_text())["cells"][1]["source"] == json.loads(source.read_text())["cells"][1]["source"]
    assert Path(small / "staged" / "index.md").read_text().count("/figures/mini/notebooks/fig1.ipynb") == 1
