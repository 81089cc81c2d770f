"""Representations that look trained, made in a moment, and a browser, for the tests of the explorer."""

import os
import shutil
from contextlib import contextmanager

import numpy as np

from analysis import RepresentationSet

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
HOSTILE = "<img src=x onerror=document.title='owned'>"


def made_set(n=60, d=6, classes=3, *, seed=0, adversarial=True, names=None, size=8, **changes):
    """n items in clusters; the attacked ones of every third item lie in the next class's cluster."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d)) * 3
    features = centres[labels] + rng.normal(size=(n, d))
    fooled = np.arange(n) % 3 == 0
    target = np.where(fooled, (labels + 1) % classes, labels)
    adv_features = centres[target] + rng.normal(size=(n, d))
    logits = np.eye(classes)[labels] * 3
    arrays = {
        "features": features, "labels": labels, "logits": logits, "indices": np.arange(n) * 2 + 10,
        "class_names": names or tuple(f"class {k}" for k in range(classes)),
    }  # fmt: skip
    if adversarial:
        arrays |= {
            "adv_features": adv_features, "adv_logits": np.eye(classes)[target] * 2,
            "adv_images": rng.integers(0, 256, (n, 1, size, size), dtype=np.uint8),
        }  # fmt: skip
    return RepresentationSet.from_arrays(**(arrays | changes))


def random_maps(sets, methods=("tsne", "pca"), seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: {method: rng.normal(size=(len(reps) * (1 if reps.adv_features is None else 2), 2)) for method in methods}
        for name, reps in sets.items()
    }


@contextmanager
def launched():
    """A Chromium, which is closed behind the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser, file, **options):
    """A page, and what it must not have done: messages on its console, errors, requests."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 720}} | options)
    heard = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("[data-ready=true]", timeout=60_000)
    return page, heard


def place(page, panel, row, kind=0):
    """Where a point lies on the screen."""
    return page.evaluate(
        """([at, row, kind]) => {
          const { maps, data } = explorer, panel = maps.panels[at], f = panel.frame(), i = 2 * (row + kind * data.n);
          const { left, top } = panel.plot.getBoundingClientRect();
          return [left + f.left + panel.coords[i] * f.scale, top + f.bottom - panel.coords[i + 1] * f.scale];
        }""",
        [panel, row, kind],
    )


def frame(page, panel):
    box = page.locator(".plot").nth(panel).bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


def lasso(page, panel, share=0.5):
    """Draw around the left part of a panel."""
    x, y, width, height = frame(page, panel)
    page.mouse.move(x + 2, y + 2)
    page.mouse.down()
    for across, down in ((share, 0.005), (share, 0.5), (share, 0.995), (0.005, 0.995)):
        page.mouse.move(x + width * across, y + height * down, steps=3)
    page.mouse.up()


def wait_until(page, expression, arg=None, seconds=20):
    """Until JavaScript holds. Playwright's own would be evaluated by the page, whose policy forbids that."""
    for _ in range(50 * seconds):
        if page.evaluate(expression, arg):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"within {seconds} s this did not come true: {expression}")


def selected(page):
    wait_until(page, "explorer.state.count > 0")
    return page.evaluate("explorer.selection")
