"""The explorer at the sizes that people have, by touch and by keyboard, and with more classes than colours."""

import numpy as np
import pytest
from explorer_sets import CHROMIUM, HOSTILE, made_set, open_page, place, random_maps, wait_until

from analysis import EmbeddingExplorer

pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium, or CHROMIUM=")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def made_file(path, models=4, classes=10, n=200, **options):
    names = tuple(f"{CIFAR[k % 10]}{f' {k}' if k >= 10 else ''}" for k in range(classes))
    every = ("UM", "AT", "ALP", "TLA", HOSTILE, "the last of six models")
    sets = {name: made_set(n, 8, classes, seed=seed, names=names) for seed, name in enumerate(every[:models])}
    defaults = {"projections": random_maps(sets), "methods": ("pca",), "progress": False}
    return EmbeddingExplorer(sets, **defaults | options).to_html(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout")
    return {
        "four": made_file(folder / "four.html"),
        "six": made_file(folder / "six.html", models=6, classes=43),
        "one": made_file(folder / "one.html", models=1),
        "many": made_file(folder / "many.html", models=2, classes=200, n=400),
    }


# Sizes ----------------------------------------------------------------------------------------------------------------

SIZES = {"1920": (1920, 1080), "1280": (1280, 720), "768": (768, 1024), "390": (390, 844), "200 %": (640, 360)}


@pytest.mark.parametrize("file", ["four", "six", "one"])
@pytest.mark.parametrize("size", SIZES)
def test_every_panel_and_table_is_within_the_page(browser, files, size, file):
    width, height = SIZES[size]
    page, heard = open_page(browser, files[file], viewport={"width": width, "height": height})
    page.evaluate("explorer.pin(0)")
    for tab in ("Items", "Differences", "Neighbours"):
        page.get_by_role("tab", name=tab).click()
        inside = page.evaluate(
            """() => [...document.querySelectorAll(".plot, .card, .pane, header, .foot, .scroll, select")]
              .filter((node) => node.offsetParent).map((node) => node.getBoundingClientRect())
              .every((box) => box.left >= -1 && box.right <= innerWidth + 1)"""
        )
        assert inside and page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("explorer.root.scrollWidth <= explorer.root.clientWidth")
    boxes = [box.bounding_box() for box in page.locator(".plot").all()]
    assert min(box["width"] for box in boxes) > 110 and min(box["height"] for box in boxes) > 75
    assert sum(box["width"] * box["height"] for box in boxes) > 0.2 * width * height
    numbers = page.evaluate(
        """[...document.querySelectorAll('.panel-numbers span')]
          .every((node) => node.scrollWidth <= node.parentNode.clientWidth)"""
    )
    assert numbers, "accuracies are cut off"
    assert len(heard) == 1
    page.close()


def test_in_a_frame_the_maps_have_its_whole_width(browser, files, tmp_path):
    site = tmp_path / "site.html"
    site.write_text(f'<iframe id="frame" src="{files["four"].as_uri()}" width="700" height="600"></iframe>')
    page = browser.new_page()
    page.goto(site.as_uri())
    frame = page.frame_locator("#frame")
    frame.locator("[data-ready=true]").wait_for()
    boxes = [box.bounding_box() for box in frame.locator(".plot").all()]
    assert len(boxes) == 4 and min(box["width"] for box in boxes) > 320
    frame.get_by_role("button", name="show TLA alone").click()
    assert frame.locator(".plot:visible").bounding_box()["width"] > 660
    page.close()


def test_a_panel_can_be_alone_and_all_come_back(browser, files):
    page, _ = open_page(browser, files["four"])
    whole = page.locator(".plot").nth(2).bounding_box()["width"]
    page.get_by_role("button", name="show ALP alone").click()
    assert page.locator(".panel:visible").count() == 1
    assert page.locator(".plot").nth(2).bounding_box()["width"] > 1.8 * whole
    page.get_by_role("button", name="show all panels").click()
    assert page.locator(".plot").nth(2).bounding_box()["width"] == whole
    page.close()


# Pointers and keys ----------------------------------------------------------------------------------------------------


def zoom(page, panel=0):
    return page.evaluate("(at) => explorer.maps.panels[at].zoom", panel)


def test_the_wheel_zooms_where_the_pointer_is_and_lets_the_page_scroll_farther_out(browser, files):
    page, _ = open_page(browser, files["four"])
    x, y = place(page, 0, 5)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    wait_until(page, "explorer.maps.panels[0].zoom.factor > 1.3")
    np.testing.assert_allclose(place(page, 0, 5), (x, y), atol=0.6)
    page.mouse.wheel(0, 2000)
    page.mouse.wheel(0, 2000)
    page.mouse.wheel(0, 2000)
    wait_until(page, "explorer.maps.panels[0].zoom.factor === 1")
    prevented = page.evaluate(
        """() => {
          const event = new WheelEvent("wheel", { deltaY: 100, cancelable: true });
          explorer.maps.panels[0].plot.dispatchEvent(event);
          return event.defaultPrevented;
        }"""
    )
    assert not prevented
    page.close()


def test_pan_box_double_click_and_the_middle_button(browser, files):
    page, _ = open_page(browser, files["four"])
    page.get_by_role("button", name="zoom in").click()
    page.get_by_role("button", name="Pan").click()
    before = place(page, 1, 7)
    box = page.locator(".plot").nth(1).bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(dx, dy, **button):
        page.mouse.move(*middle)
        page.mouse.down(**button)
        page.mouse.move(middle[0] + dx, middle[1] + dy, steps=4)
        page.mouse.up(**button)

    drag(30, 12)
    np.testing.assert_allclose(place(page, 1, 7), np.add(before, (30, 12)), atol=0.6)
    page.get_by_role("button", name="Box").click()
    drag(-20, 5, button="middle")
    np.testing.assert_allclose(place(page, 1, 7), np.add(before, (10, 17)), atol=0.6)
    page.mouse.dblclick(box["x"] + 3, box["y"] + 3)
    assert zoom(page, 1) == {"x": 0, "y": 0, "factor": 1}
    drag(60, 50)
    wait_until(page, "explorer.state.count > 0")
    rows = page.evaluate("explorer.selection.map((index) => explorer.data.rowOf.get(index))")
    for row in range(200):
        inside = [
            middle[0] <= px <= middle[0] + 60 and middle[1] <= py <= middle[1] + 50
            for px, py in (place(page, 1, row, kind) for kind in (0, 1))
        ]
        assert any(inside) == (row in rows)
    page.close()


def test_fingers_pinch_drag_and_tap(browser, files):
    page, heard = open_page(browser, files["four"], has_touch=True, viewport={"width": 390, "height": 844})
    client = page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [{"x": x, "y": y, "id": at} for at, (x, y) in enumerate(places)]
        client.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    x, y = place(page, 0, 5)
    touch("Start", (x, y))
    touch("End")
    wait_until(page, "explorer.state.pinned !== null")
    page.evaluate("explorer.pin(null)")
    page.get_by_role("tab", name="Items").click()
    box = page.locator(".plot").nth(0).bounding_box()
    cx, cy = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch("Start", (cx - 20, cy), (cx + 20, cy))
    for apart in (25, 30, 40):
        touch("Move", (cx - apart, cy), (cx + apart, cy))
    touch("End")
    wait_until(page, "Math.abs(explorer.maps.panels[0].zoom.factor - 2) < 0.1")
    assert page.evaluate("explorer.state.count") == 0, "a pinch drew a lasso"
    touch("Start", (box["x"] + 4, box["y"] + 4))
    for across, down in ((0.9, 0.1), (0.9, 0.9), (0.1, 0.9)):
        touch("Move", (box["x"] + across * box["width"], box["y"] + down * box["height"]))
    touch("End")
    wait_until(page, "explorer.state.count > 10")
    assert len(heard) == 1
    page.close()


def test_the_keyboard_moves_zooms_and_selects_what_is_in_view(browser, files):
    page, _ = open_page(browser, files["four"])
    page.locator(".plot").nth(0).focus()
    for key in ("+", "+", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    shown = zoom(page)
    assert shown["factor"] == pytest.approx(1.96) and shown["x"] > 0 and shown["y"] > 0
    page.keyboard.press("s")
    wait_until(page, "explorer.state.count > 0")
    rows = page.evaluate("explorer.maps.panels[0].rowsInView().reduce((a, b) => a + b, 0)")
    assert 0 < rows < 200 and page.evaluate("explorer.state.count") == rows
    page.locator(".plot").nth(0).focus()
    page.keyboard.press("0")
    assert zoom(page) == {"x": 0, "y": 0, "factor": 1}
    page.close()


# Colours --------------------------------------------------------------------------------------------------------------


def test_the_legend_hides_isolates_and_keeps_hidden_points_out_of_a_lasso(browser, files):
    page, _ = open_page(browser, files["four"])
    shown = "(() => { let n = 0; explorer.maps.panels[0].eachPoint(() => n++); return n; })()"
    chip = page.locator(".chip").filter(has_text="bird")
    assert page.evaluate(shown) == 400
    chip.click()
    assert page.evaluate(shown) == 360 and chip.get_attribute("aria-pressed") == "false"
    chip.click()
    assert page.evaluate(shown) == 400
    chip.dblclick()
    assert page.evaluate(shown) == 40
    page.locator(".plot").nth(0).focus()
    page.keyboard.press("s")
    wait_until(page, "explorer.state.count === 20")
    page.get_by_role("button", name="Show all", exact=True).click()
    assert page.evaluate(shown) == 400
    chip.focus()
    page.keyboard.press("Shift+Enter")
    assert page.evaluate(shown) == 40 and page.evaluate("document.activeElement.textContent") == "bird"
    page.close()


def test_a_search_dims_what_it_does_not_find(browser, files):
    page, _ = open_page(browser, files["four"])
    page.get_by_label("Find", exact=True).fill("ship")
    strong = page.evaluate("[...explorer.state.strength].flatMap((s, i) => (s === 2 ? [i] : []))")
    assert strong == [i for i in range(200) if i % 10 == 8]
    assert page.evaluate("[...explorer.state.strength].filter((s) => s === 1).length") == 180
    page.get_by_label("Find", exact=True).fill("")
    assert page.evaluate("explorer.state.someAreFaint") is False
    page.close()


def palette(page):
    return page.evaluate("[explorer.state.colouring.palette, explorer.state.colouring.labels]")


def test_with_200_classes_colours_are_of_the_selection_or_of_groups_and_it_says_so(browser, files):
    page, _ = open_page(browser, files["many"])
    legend = page.locator(".legend")
    assert "200 names: many colours look alike" in legend.inner_text()
    page.evaluate("explorer.select([0, 1, 2, 200, 201])")
    colours, labels = palette(page)
    assert labels[-1] == "all others" and "airplane" in labels and "cat" not in labels
    assert len(set(colours)) == len(colours) <= 21
    bins = page.evaluate("[...explorer.state.colouring.bins[0][0]]")
    assert bins[0] == bins[200] != bins[1] and bins[50] == len(labels) - 1
    page.evaluate("explorer.select([...Array(60).keys()])")
    assert "20 most frequent of 60 in the selection" in legend.inner_text()
    assert len(set(palette(page)[0])) == 21
    page.evaluate("explorer.select([])")
    page.get_by_role("button", name="Groups…").click()
    dialog = page.get_by_role("dialog", name="groups of classes")
    dialog.get_by_label("find classes").fill("automobile")
    dialog.get_by_role("button", name="Tick all that are found").click()
    dialog.get_by_label("name of the group").fill(HOSTILE)
    dialog.get_by_role("button", name="Make a group").click()
    dialog.get_by_role("button", name="Close").click()
    assert palette(page)[1] == [HOSTILE, "all others"]
    bins = page.evaluate("[...explorer.state.colouring.bins[0][0]]")
    assert bins == [0 if i % 10 == 1 else 1 for i in range(200)] * 2
    assert page.evaluate("explorer.view.groups[0][1].length") == 20
    page.close()


def test_up_to_20_classes_have_a_colour_each(browser, tmp_path):
    page, _ = open_page(browser, made_file(tmp_path / "page.html", models=1, classes=20))
    colours, labels = palette(page)
    assert len(set(colours)) == len(labels) == 20
    page.close()


# Own columns, steps, differences, images ------------------------------------------------------------------------------


def test_own_columns_colour_filter_and_sort(browser, tmp_path):
    values = np.random.default_rng(0).normal(size=200)
    values[3] = np.nan
    columns = {"brightness": values, "split": [HOSTILE if i % 4 else "test" for i in range(200)]}
    page, heard = open_page(browser, made_file(tmp_path / "page.html", columns=columns))
    page.get_by_label("Colour", exact=True).select_option("brightness")
    steps = page.evaluate("[...explorer.state.colouring.bins[0][0]]")
    span = np.nanmax(values) - np.nanmin(values)
    expected = np.where(np.isnan(values), -1, np.floor((values - np.nanmin(values)) / span * 23 + 0.5))
    assert steps == expected.tolist()
    page.get_by_label("Colour", exact=True).select_option("split")
    assert palette(page)[1] == sorted([HOSTILE, "test"])
    page.get_by_label("split", exact=True).select_option("test")
    page.get_by_label("lowest brightness").fill("0.5")
    page.get_by_label("lowest brightness").blur()
    visible = page.evaluate("[...explorer.state.visible.keys()].filter((i) => explorer.state.visible[i])")
    assert visible == [i for i in range(0, 200, 4) if values[i] >= 0.5]
    page.get_by_role("button", name="No filters").click()
    assert page.get_by_label("lowest brightness").input_value() == ""
    page.get_by_role("button", name="brightness").click()
    first = page.locator(".items:visible tbody tr td:first-child").all_inner_texts()
    assert [int(text) for text in first] == (10 + 2 * np.argsort(-np.nan_to_num(values, nan=-99))[:60]).tolist()
    page.evaluate("explorer.pin(0)")
    assert f"brightness: {values[0]:.4g}"[:15] in page.locator(".card").inner_text()
    assert len(heard) == 1
    page.close()


def test_a_slider_moves_the_points_of_one_panel_from_step_to_step(browser, tmp_path):
    still = made_set(100, 8, 5)
    attacked = [made_set(100, 8, 5, seed=k).adv_features for k in range(4)]
    sets = {
        f"eps {k}": made_set(100, 8, 5, adv_features=adv, meta={"attack": f"level {k}"})
        for k, adv in enumerate(attacked)
    }
    assert (sets["eps 1"].features == still.features).all()
    explorer = EmbeddingExplorer(sets, methods=("pca",), steps=True, progress=False)
    page, heard = open_page(browser, explorer.to_html(tmp_path / "steps.html"))
    assert page.locator(".panel:visible").count() == 1
    before = page.evaluate("[...explorer.maps.panels[0].coords]")
    slider = page.get_by_label("step", exact=True)
    slider.focus()
    page.keyboard.press("ArrowRight")
    wait_until(page, "explorer.maps.panels[0].coords === explorer.data.models[1].maps.pca")
    after = page.evaluate("[...explorer.maps.panels[0].coords]")
    assert before[:200] == after[:200] and before[200:] != after[200:]
    assert page.locator(".panel-title").inner_text() == "eps 1" and "level 1" in page.locator(".about").inner_text()
    assert page.evaluate("explorer.view") == {"step": "eps 1"}
    page.get_by_role("button", name="play").click()
    wait_until(page, "explorer.state.step === 3")
    wait_until(page, "explorer.state.playing === false")
    assert len(heard) == 1
    page.close()


def test_between_two_steps_points_are_on_their_way(browser, tmp_path):
    sets = {f"eps {k}": made_set(20, 4, adv_features=made_set(20, 4, seed=k).adv_features) for k in range(2)}
    explorer = EmbeddingExplorer(sets, methods=("pca",), steps=True, progress=False)
    page, _ = open_page(browser, explorer.to_html(tmp_path / "steps.html"))
    seen = page.evaluate(
        """async () => {
          const panel = explorer.maps.panels[0], seen = new Set();
          explorer.moveTo({ step: 1 });
          const end = explorer.data.models[1].maps.pca;
          while (panel.coords !== end) {
            seen.add(panel.coords[50]);
            await new Promise(requestAnimationFrame);
          }
          return seen.size;
        }"""
    )
    assert seen > 3
    page.close()


def test_differences_name_their_measure_and_colour_the_maps(browser, files):
    page, _ = open_page(browser, files["four"])
    page.get_by_role("tab", name="Differences").click()
    pane = page.locator(".pane:visible")
    assert "nearest clean images that both models find" in pane.inner_text()
    page.get_by_role("button", name="Colour the maps by it").click()
    page.get_by_label("second model").select_option("TLA")
    assert "share of 10 neighbours in common, UM and TLA: 0" in page.locator(".legend").inner_text()
    from analysis import nearest_neighbours

    found = [
        nearest_neighbours(reps.adv_features, reps.features, 10, exclude=np.arange(200)).indices
        for reps in (made_set(200, 8, 10, seed=seed) for seed in (0, 3))
    ]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(*found, strict=True)]
    steps = page.evaluate("[...explorer.state.colouring.bins[2][1]]")
    assert steps == [int(np.floor(share * 23 + 0.5)) for share in shares]
    rows = page.locator(".pane:visible tbody tr").first.locator("td").all_inner_texts()
    assert float(rows[3]) == min(shares)
    page.close()


@pytest.mark.parametrize("kept", ["none", "page", "beside"])
def test_a_click_on_an_image_shows_it_in_full_size_where_that_is_kept(browser, tmp_path, kept):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 130, 140), dtype=np.uint8)
    sets = {"UM": made_set(6, names=(HOSTILE, "b", "c"), adv_images=images[::-1].copy())}
    explorer = EmbeddingExplorer(sets, images=images, methods=("pca",), full_images=kept, progress=False)
    page, heard = open_page(browser, explorer.to_html(tmp_path / "a page.html"))
    page.evaluate("explorer.pin(2)")
    page.get_by_role("button", name="clean image, in full size").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("figure").nth(1).wait_for()
    if kept == "none":
        assert dialog.locator("canvas").count() == 2 and "a thumbnail of 140 × 130 px" in dialog.inner_text()
        assert page.evaluate("document.querySelector('dialog[open] canvas').width") == 96
    else:
        images = "[...document.querySelectorAll('dialog[open] img')]"
        sizes = f"{images}.map((image) => [image.naturalWidth, image.naturalHeight])"
        wait_until(page, f"{sizes}.every(([width]) => width)")
        assert page.evaluate(sizes) == [[140, 130], [140, 130]]
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and page.evaluate("explorer.state.pinned") == 2
    asked = [address for address in heard if not address.startswith("blob:")]
    assert len(asked) == (3 if kept == "beside" else 1)
    page.close()
