"""The explorer in a real Chromium, opened as a file. Its times are measured by `make bench`."""

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

from analysis import EmbeddingExplorer, ratio_r_prime

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium, or CHROMIUM=")
NAMES = (HOSTILE, *(f"class {k}" for k in range(1, 10)))


def made_sets(n):
    return {
        name: made_set(n, 16, 10, seed=seed, names=NAMES, size=28)
        for seed, name in enumerate(("UM", "AT", HOSTILE, "TLA"))
    }


@pytest.fixture(scope="module")
def sets():
    return made_sets(1000)


@pytest.fixture(scope="module")
def file(sets, tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (1000, 1, 28, 28), dtype=np.uint8)
    explorer = EmbeddingExplorer(sets, images=images, projections=random_maps(sets), methods=("pca",), progress=False)
    return explorer.to_html(tmp_path_factory.mktemp("explorer") / "explorer.html", title=HOSTILE)


@pytest.fixture
def page(browser, file):
    page, heard = open_page(browser, file)
    yield page
    assert heard == [file.as_uri()], "the page requested something, or said something on its console"
    assert page.title() == HOSTILE
    page.close()


def nearest_shown(page, x, y):
    return page.evaluate("([x, y]) => explorer.maps.nearest({ clientX: x, clientY: y })", [x, y])


# What it does ---------------------------------------------------------------------------------------------------------


def test_the_file_is_small(file):
    assert file.stat().st_size < 7e6  # of noise, which no format makes smaller


def test_hover_shows_the_images_and_what_every_model_predicts(page, sets):
    x, y = place(page, 2, 5)
    page.mouse.move(x, y)
    row = nearest_shown(page, x, y)
    card = page.locator(".card").inner_text()
    assert f"Image {row * 2 + 10}" in card
    for reps in sets.values():
        assert f"attacked {reps.class_names[reps.adv_predictions[row]]}" in card
    drawn = "[...document.querySelectorAll('.card canvas')].every((c) => !c.hidden && c.width === 28)"
    wait_until(page, drawn)
    page.mouse.move(2, 2)
    assert "Point at an image" in page.locator(".card").inner_text()


def test_the_perturbation_is_adversarial_minus_clean(page):
    wrong = page.evaluate(
        """() => {
          const canvas = document.createElement('canvas'), images = explorer.images;
          const gain = images.drawPerturbation(canvas, 2, 7);
          const shown = canvas.getContext('2d').getImageData(0, 0, 28, 28).data;
          const [clean, attacked] = [images.pixels(0, 7).data.slice(), images.pixels(2, 7).data];
          return Math.max(...clean.map((v, at) => at % 4 === 3 ? 0
            : Math.abs(shown[at] - 128 - gain * (attacked[at] - v)) > 1));
        }"""
    )
    assert wrong == 0


def test_a_click_shows_the_neighbours_of_the_representation(page, sets):
    x, y = place(page, 0, 11)
    page.mouse.move(x, y)
    row = nearest_shown(page, x, y)
    page.mouse.down()
    page.mouse.up()
    assert page.evaluate("explorer.state.pinned") == row
    from analysis import retrieve

    found = page.evaluate("[...document.querySelectorAll('.strip .neighbour')].map((node) => node.title)")
    expected = []
    for reps in sets.values():
        result = retrieve(reps, k=5, rows=[row])
        for part in (result.clean, result.adversarial):
            expected += [f"{reps.indices[j]}: {reps.class_names[reps.labels[j]]}" for j in part.indices[0]]
    assert found == expected
    right = page.evaluate("document.querySelectorAll('.strip .neighbour.right').length")
    label = next(iter(sets.values())).labels[row]
    assert right == sum(NAMES[label] == text.partition(": ")[2] for text in expected)


def test_a_selection_gives_the_ratios_and_accuracies_of_its_images(page, sets):
    page.evaluate("explorer.select(Array.from({ length: 1000 }, (_, i) => i))")
    for model, reps in enumerate(sets.values()):
        cells = page.locator(".numbers tbody tr").nth(model).locator("td").all_inner_texts()
        assert cells[0] == "100.0 %"
        assert cells[1] == f"{100 * reps.robust_accuracy:.1f} %"
        assert float(cells[2]) == pytest.approx(ratio_r_prime(reps).value, rel=0.01)


def test_the_lasso_of_one_panel_is_exact_and_shift_adds(page):
    lasso(page, 0)
    first = selected(page)
    inside = page.evaluate(
        """() => {
          const { maps, data } = explorer, xs = maps.panels[0].coords, rows = [];
          for (let i = 0; i < data.n; i++) if (xs[2 * i] < 0 || xs[2 * (i + data.n)] < 0) rows.push(data.indices[i]);
          return rows;
        }"""
    )
    assert len(set(first) ^ set(inside)) < 20  # those at the very edge
    page.keyboard.down("Shift")
    lasso(page, 1, 0.3)
    page.keyboard.up("Shift")
    wait_until(page, "(count) => explorer.state.count > count", arg=len(first))
    assert set(first) < set(page.evaluate("explorer.selection"))


def test_a_lasso_over_20_000_points_a_panel_selects_half_of_them(browser, tmp_path):
    slim = {name: made_set(10_000, 4, 10, names=NAMES, adv_images=None, size=1) for name in ("UM", "AT")}
    explorer = EmbeddingExplorer(
        slim, projections=random_maps(slim), methods=("pca",), max_points=20_000, progress=False
    )
    page, heard = open_page(browser, explorer.to_html(tmp_path / "large.html"))
    lasso(page, 1)
    assert 5_000 < len(selected(page)) < 9_000  # half of the points: of most items one of the two
    page.close()
    assert len(heard) == 1


def test_exports_hold_the_selected_items_and_hostile_names_as_text(page, tmp_path):
    page.evaluate("explorer.select([0, 2])")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV").click()
    waiting.value.save_as(tmp_path / "selection.csv")
    lines = (tmp_path / "selection.csv").read_text().splitlines()
    assert lines[1].startswith(f'10,"{HOSTILE}"') and lines[2].startswith('14,"class 2"')
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Index list").click()
    waiting.value.save_as(tmp_path / "selection.txt")
    assert (tmp_path / "selection.txt").read_text().split() == ["10", "14"]


def test_changing_the_map_keeps_the_selection(page):
    page.evaluate("explorer.select([3, 4])")
    page.get_by_label("Map", exact=True).select_option(
        "tsne" if page.evaluate("explorer.state.method") == "pca" else "pca"
    )
    page.wait_for_timeout(1200)
    method = page.evaluate("explorer.state.method")
    assert page.evaluate("(m) => explorer.maps.panels[1].coords === explorer.data.models[1].maps[m]", method)
    assert page.evaluate("explorer.selection") == [16, 18]


def test_filters_leave_the_items_that_they_name(page, sets):
    page.get_by_label("Outcome", exact=True).select_option("fooled")
    page.get_by_label("False class", exact=True).select_option("class 4")
    reps = sets["UM"]
    expected = np.flatnonzero((reps.adv_predictions == 4) & (reps.labels != 4) & (reps.predictions == reps.labels))
    visible = page.evaluate("[...explorer.state.visible.keys()].filter((i) => explorer.state.visible[i])")
    assert visible == expected.tolist() and len(expected) > 10
    page.get_by_label("Outcome", exact=True).select_option("any")
    page.get_by_label("False class", exact=True).select_option("any")
    page.get_by_label("Classes", exact=True).select_option("class 2")
    page.get_by_label("Second class").select_option("class 7")
    assert page.evaluate("explorer.state.visible.reduce((a, b) => a + b, 0)") == 200


def test_the_items_that_differ_most_come_first(page):
    page.get_by_role("tab", name="Differences").click()
    values = [float(text) for text in page.locator(".pane:visible tbody tr td:nth-child(4)").all_inner_texts()]
    assert values == sorted(values) and len(values) > 10
    page.locator(".pane:visible tbody tr").nth(2).click()
    assert page.evaluate("explorer.state.pinned") is not None


def test_the_keyboard_alone_finds_pins_and_selects(page):
    page.get_by_label("Find", exact=True).focus()
    page.keyboard.type("class 3")
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.tagName") != "TR":
        page.keyboard.press("Tab")
    assert page.evaluate("explorer.state.current") == 3
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.evaluate("explorer.selection") == [36]
    assert "class 3" in page.locator(".status").inner_text() or "1 images" in page.locator(".status").inner_text()
    page.keyboard.press("Enter")
    assert page.evaluate("explorer.state.pinned") == 13
    page.keyboard.press("Escape")
    assert page.evaluate("explorer.state.pinned") is None


def test_names_are_shown_as_text(page):
    page.evaluate("explorer.pin(0)")
    page.evaluate("explorer.select([0, 1])")
    page.get_by_role("tab", name="Items").click()
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE in page.locator(".panel-title").all_inner_texts()
    assert HOSTILE in page.locator(".items:visible").inner_text()


@pytest.mark.parametrize("colour", ["prediction", "outcome", "confidence", "distance"])
def test_every_colouring_draws_other_pixels(page, colour):
    picture = "explorer.maps.panels[1].points.toDataURL()"
    before = page.evaluate(picture)
    page.get_by_label("Colour", exact=True).select_option(colour)
    assert page.evaluate(picture) != before


def test_clean_sets_without_images_work_in_dark_too(browser, tmp_path):
    sets = {"one": made_set(30, adversarial=False)}
    explorer = EmbeddingExplorer(sets, methods=("pca",), progress=False)
    explorer.selection = [10, 12]
    file = explorer.to_html(tmp_path / "clean.html")
    page, heard = open_page(browser, file, color_scheme="dark")
    page.evaluate("explorer.pin(4)")
    assert page.evaluate("explorer.selection") == [10, 12]
    assert page.locator(".tla-explorer").get_attribute("data-theme") == "dark"
    assert heard == [file.as_uri()]
    page.close()
