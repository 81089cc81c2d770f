"""The explorer as a widget in a real JupyterLab: what a reader does reaches the kernel, and the other way round."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium, or CHROMIUM=")
CELLS = (
    f"""import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from explorer_sets import made_set, random_maps
from analysis import EmbeddingExplorer
images = np.random.default_rng(0).integers(0, 256, (100, 3, 100, 100), dtype=np.uint8)
sets = {{name: made_set(100, 8, 5, seed=seed, adv_images=images) for seed, name in enumerate(("UM", "TLA"))}}
explorer = EmbeddingExplorer(sets, images=images, projections=random_maps(sets), methods=("pca",), progress=False)
explorer.widget()""",
    "explorer.selection = explorer.indices[:7]",
    "print('selected', explorer.selection.tolist())",
    "explorer.view = explorer.view | {'map': 'pca', 'colour': 'outcome', 'zoom': {'TLA': (0, 0, 2)}}",
    "import json; print('view', json.dumps(explorer.view))",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on loopback with a notebook; its address."""
    root = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = new_notebook(cells=[new_code_cell(code) for code in CELLS], metadata={"kernelspec": kernel})
    nbformat.write(notebook, root / "explore.ipynb")
    folders = {f"JUPYTER_{name}_DIR": str(root / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = ["--ip=127.0.0.1", "--port=0", "--ServerApp.token=secret", "--ServerApp.allow_root=True"]
    with (root / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", *options, f"--ServerApp.root_dir={root}"],
            env={**os.environ, **folders}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield _address(process, root / "runtime", root / "lab.log")
        finally:
            process.terminate()
            process.wait(30)


def _address(process, runtime, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        for path in runtime.glob("jpserver-*.json"):
            try:
                address = json.loads(path.read_text())["url"]
                urllib.request.urlopen(f"{address}api?token=secret", timeout=5)
            except (OSError, ValueError):
                continue
            return address
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start within 2 minutes: {log.read_text()}")


def run_cell(page, number):
    """Run a cell to its end; the first time, the kernel may not be connected yet, and nothing happens."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    prompt = cell.locator(".jp-InputPrompt").first
    for _ in range(30):
        cell.locator(".cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        if comes_true(page, lambda: prompt.inner_text() not in ("", "[ ]:"), seconds=2):
            assert comes_true(page, lambda: re.search(r"\d", prompt.inner_text()), seconds=120), "it does not end"
            return
    raise AssertionError(f"cell {number} does not run")


def comes_true(page, condition, seconds):
    """Whether it does within so many seconds: looked at again and again, since most of the time it is a moment."""
    for _ in range(20 * seconds):
        if condition():
            return True
        page.wait_for_timeout(50)
    return False


def test_the_widget_and_the_kernel_follow_each_other(server):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server}lab/tree/explore.ipynb?token=secret")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        run_cell(page, 0)
        widget = page.locator(".tla-explorer")
        page.wait_for_selector(".tla-explorer[data-ready=true]", timeout=120_000)

        run_cell(page, 1)  # the kernel selects
        status = widget.locator(".status")
        status.filter(has_text="7 images selected").wait_for(timeout=30_000)

        widget.scroll_into_view_if_needed()
        widget.get_by_role("tab", name="Items").click()
        widget.locator(".items tbody tr").nth(3).click()  # as on the page: pins an image, and shows its neighbours
        assert widget.locator(".strip .neighbour").count() == 2 * 2 * 5

        widget.get_by_role("tab", name="Selection").click()
        widget.get_by_role("button", name="Clear").click()
        widget.locator(".plot").first.scroll_into_view_if_needed()
        box = widget.locator(".plot").first.bounding_box()
        page.mouse.move(box["x"] + 3, box["y"] + 3)
        page.mouse.down()
        for across, down in ((0.6, 0.01), (0.6, 0.99), (0.01, 0.99)):
            page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down, steps=4)
        page.mouse.up()
        status.filter(has_text=re.compile(r"\d\d images selected")).wait_for(timeout=30_000)
        shown = int(status.inner_text().split()[0])

        # JupyterLab holds a widget's message back while the kernel answers the one before; a cell would overtake it.
        page.wait_for_timeout(2000)
        run_cell(page, 2)  # the reader selected
        output = page.locator(".jp-OutputArea-output", has_text="selected [")
        output.wait_for(timeout=30_000)
        assert len(json.loads(output.inner_text().partition(" ")[2])) == shown > 10

        run_cell(page, 3)  # the kernel changes the view, and then the reader
        widget.locator(".legend").filter(has_text="withstood").wait_for(timeout=30_000)
        assert widget.get_by_label("Map", exact=True).input_value() == "pca"
        assert status.inner_text().startswith(str(shown))
        widget.get_by_label("Points", exact=True).select_option("clean")
        page.wait_for_timeout(1000)
        run_cell(page, 4)
        output = page.locator(".jp-OutputArea-output", has_text="view {")
        output.wait_for(timeout=30_000)
        view = json.loads(output.inner_text().partition(" ")[2])
        assert view.pop("tab") == "selection" and view.pop("pinned") == 16
        assert view == {"map": "pca", "colour": "outcome", "points": "clean", "zoom": {"TLA": [0, 0, 2]}}

        widget.get_by_role("tab", name="Items").click()
        widget.locator(".items tbody tr").first.click()
        widget.get_by_role("button", name="clean image, in full size").click()  # asked of the kernel
        widget.locator("dialog[open] img").nth(2).wait_for(timeout=30_000)
        assert page.evaluate("document.querySelector('dialog[open] img').naturalWidth") == 100
        assert errors == []
        browser.close()
