"""Views of the explorer: in links, in Python, in pictures that are saved."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from explorer_sets import (
    CHROMIUM,
    HOSTILE,
    lasso,
    made_set,
    open_page,
    place,
    random_maps,
    selected,
    wait_until,
)

from analysis import EmbeddingExplorer

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium, or CHROMIUM=")
NAMES = (HOSTILE, *(f"class {k}" for k in range(1, 5)))
PICTURES = "explorer.maps.panels.map((panel) => panel.points.toDataURL())"


def made_explorer(**changes):
    sets = {name: made_set(200, 8, 5, seed=seed, names=NAMES) for seed, name in enumerate(("UM", HOSTILE))}
    columns = {"brightness": np.linspace(0, 1, 200), "split": ["a", HOSTILE] * 100}
    options = {"projections": random_maps(sets), "methods": ("pca",), "columns": columns, "progress": False} | changes
    return EmbeddingExplorer(sets, **options)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return made_explorer().to_html(tmp_path_factory.mktemp("views") / "explorer.html")


@pytest.fixture
def page(browser, file):
    page, heard = open_page(browser, file)
    yield page
    assert heard == [file.as_uri()]
    page.close()


def test_a_link_shows_the_same_in_another_profile(browser, page, file):
    page.get_by_label("Map", exact=True).select_option("pca")
    page.get_by_label("Colour", exact=True).select_option("outcome")
    page.get_by_label("Outcome", exact=True).select_option("fooled")
    page.get_by_label("highest brightness").fill("0.9")
    page.get_by_label("highest brightness").blur()
    lasso(page, 1)
    chosen = selected(page)
    x, y = place(page, 0, 0)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -600)
    page.evaluate("explorer.pin(explorer.data.rowOf.get(10))")
    wait_until(page, "explorer.maps.panels.every((panel, m) => panel.coords === explorer.data.models[m].maps.pca)")
    wait_until(
        page, "['pinned=10', 'zoom=', 'map=pca', 'tab=neighbours'].every((part) => location.hash.includes(part))"
    )
    address, view = page.evaluate("[location.href, explorer.view]")
    assert view["map"] == "pca" and view["pinned"] == 10 and view["columns"] == {"brightness": [None, 0.9]}
    assert view["zoom"]["UM"][2] > 1.5 and list(view["zoom"]) == ["UM"]
    other = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
    other.goto(address)
    other.wait_for_selector("[data-ready=true]")
    assert other.evaluate("explorer.view") == view
    assert other.evaluate("explorer.selection") == chosen
    assert other.evaluate(PICTURES) == page.evaluate(PICTURES)
    assert other.get_by_label("Outcome", exact=True).evaluate("(node) => node.selectedOptions[0].text") == "fooled"
    other.reload()
    other.wait_for_selector("[data-ready=true]")
    assert other.evaluate("explorer.selection") == chosen and other.evaluate(PICTURES) == page.evaluate(PICTURES)
    other.context.close()


def test_copy_link_puts_the_address_of_the_view_on_the_clipboard(browser, file):
    page, _ = open_page(browser, file, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("explorer.select([1, 3])")
    page.get_by_role("button", name="Copy link").click()
    page.locator(".status").filter(has_text="The link is copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url and copied.startswith(f"{file.as_uri()}#") and "selection=" in copied
    page.close()


def test_what_is_untouched_has_no_fragment_and_going_back_to_it_leaves_none(page, file):
    assert page.url == file.as_uri()
    page.get_by_label("Points", exact=True).select_option("clean")
    wait_until(page, "location.hash.includes('points=clean')")
    page.get_by_label("Points", exact=True).select_option("both")
    wait_until(page, "location.hash === ''")
    assert page.url == file.as_uri()


@pytest.mark.parametrize("share", [0.01, 0.4, 1])
def test_a_link_names_the_selected_images_in_few_letters(page, share):
    indices = [10 + 2 * i for i in range(200) if np.random.default_rng(i).random() < share]
    page.evaluate("(rows) => explorer.select(rows)", [(index - 10) // 2 for index in indices])
    wait_until(page, "location.hash.includes('selection=')")
    letters = re.search(r"selection=([\w-]+)&", page.url)[1]
    assert len(letters) <= 35  # 200 bits
    fragment = page.url.partition("#")[2]
    page.evaluate("explorer.select([])")
    wait_until(page, "!location.hash.includes('selection=')")
    page.evaluate("(fragment) => { location.hash = fragment; }", fragment)
    wait_until(page, "explorer.state.count > 0")
    assert page.evaluate("explorer.selection") == indices


@pytest.mark.parametrize(
    "fragment",
    [
        "map=nonsense&colour=constructor&points=toString&neighbours=1e9&pinned=-4&classes=[99,-1,%22a%22]&zoom=[1,2]",
        'zoom={"UM":[null,0,-3],"__proto__":[0,0,5]}&columns={"__proto__":[1,2],"split":"no","brightness":"x"}&groups=[1,["a"]]',
        "selection=b!!!!&hidden={&tab=__proto__&step=UM&panel=nobody&compare=[%22UM%22]&false_class=true",
    ],
)
def test_a_link_that_says_nonsense_shows_what_it_can(browser, file, fragment):
    page = browser.new_page()
    heard = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.goto(file.as_uri())
    mark = page.evaluate("explorer.data.mark")
    page.goto("about:blank")
    page.goto(f"{file.as_uri()}#{fragment}&data={mark}")
    page.wait_for_selector("[data-ready=true]")
    assert page.evaluate("[explorer.state.method, explorer.state.colour, explorer.state.pinned]") == [
        "tsne",
        "label",
        None,
    ]
    assert page.evaluate("explorer.maps.panels.every((panel) => !panel.isZoomed)")
    assert page.evaluate("explorer.selection") == [] and heard == []
    page.close()


def test_a_link_to_other_data_selects_nothing_and_says_so(browser, file):
    page, _ = open_page(browser, file)
    page.goto("about:blank")
    page.goto(f"{file.as_uri()}#selection=sAAE&pinned=10&data=other")
    page.wait_for_selector("[data-ready=true]")
    assert page.evaluate("[explorer.selection, explorer.state.pinned]") == [[], None]
    assert "other data" in page.locator(".status").inner_text()
    page.close()


def test_a_view_from_python_is_what_the_page_opens_with(browser, tmp_path):
    explorer = made_explorer()
    view = {
        "map": "pca", "colour": "column:split", "points": "clean", "neighbours": 3, "search": "class 2",
        "classes": [1, 2], "outcome": "withstood", "model": HOSTILE,
        "columns": {"split": "a", "brightness": [0.1, None]}, "pinned": 14,
        "hidden": ["0"], "groups": [["odd", [1, 3]]], "zoom": {HOSTILE: [0.1, -0.2, 3]}, "panel": "UM",
        "compare": [HOSTILE, "UM"], "tab": "differences", "theme": "dark",
    }  # fmt: skip
    explorer.view = view
    explorer.selection = [10, 12]
    page, heard = open_page(browser, explorer.to_html(tmp_path / "view.html"))
    assert page.evaluate("explorer.view") == view and page.evaluate("explorer.selection") == [10, 12]
    assert page.locator(".panel:visible").count() == 1
    assert len(heard) == 1
    page.close()


# Pictures -------------------------------------------------------------------------------------------------------------


def saved(page, kind, path):
    with page.expect_download() as waiting:
        page.get_by_role("button", name=f"save picture as {kind}").click()
    waiting.value.save_as(path)
    return path


def test_a_png_has_the_panels_as_they_are_with_the_legend(page, tmp_path):
    from PIL import Image

    picture = Image.open(saved(page, "PNG", tmp_path / "explorer.png"))
    boxes = [page.locator(".plot").nth(at).bounding_box() for at in (0, 1)]
    assert picture.width > 2 * sum(box["width"] for box in boxes)
    assert picture.height > 2 * boxes[0]["height"] + 60
    colours = {rgb for _, rgb in picture.convert("RGB").getcolors(picture.width * picture.height)}
    assert (0x33, 0x22, 0x88) in colours  # the legend's first swatch


def test_an_svg_has_every_point_and_hostile_names_as_text(page, tmp_path):
    page.evaluate("explorer.pin(3)")
    root = ET.parse(saved(page, "SVG", tmp_path / "explorer.svg")).getroot()
    space = "{http://www.w3.org/2000/svg}"
    points = root.findall(f"{space}g/{space}g/*")
    assert len(points) == 2 * 400
    texts = ["".join(node.itertext()) for node in root.iter(f"{space}text")]
    assert texts.count(HOSTILE) == 2  # a panel and a class
    assert any("robust" in text for text in texts) and any("t-SNE" in text for text in texts)
    assert {node.tag.removeprefix(space) for node in root.iter()} <= {
        "svg", "g", "rect", "circle", "path", "line", "text", "clipPath", "linearGradient", "stop"
    }  # fmt: skip


def test_a_picture_leaves_out_hidden_classes(page, tmp_path):
    page.get_by_role("button", name="class 2").first.click()
    root = ET.parse(saved(page, "SVG", tmp_path / "explorer.svg")).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g/{space}g/*")) == 2 * 320
    assert "class 2" not in ["".join(node.itertext()) for node in root.iter(f"{space}text")]
