"""The explorer in Chromium, beside pages of the same points: plotly's own WebGL traces, and jupyter-scatter's views.

jupyter-scatter is measured where it can be imported (``pip install --no-deps --target FOLDER jupyter-scatter``, and
FOLDER on PYTHONPATH); it is no dependency.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from analysis.explore import EmbeddingExplorer
from analysis.representations import RepresentationSet
from benchmarks.inputs import Setup
from benchmarks.jscatter_page import jscatter_file
from benchmarks.timing import Line

MODELS = ("UM", "AT", "ALP", "TLA")
CLASSES = 10
# What is asked of the explorer, in seconds, for 2,000 points a panel and for 20,000.
GOALS = {"shown": 1.0, "ready": 1.0, "first hover": 0.03, "hover": 0.03, "lasso": 0.15}
MANY_GOALS = {"ready": 3.0, "lasso": 0.4}

# Seconds from an event of the mouse to the frame in which `changed()` holds.
_WATCH = """([type, changed]) => {
  const holds = new Function(`return ${changed}`);
  window.took = new Promise((done) => addEventListener(type, () => {
    const start = performance.now();
    const look = () => holds()
      ? requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000))) : setTimeout(look);
    look();
  }, { capture: true, once: true }));
}"""
# How one would link plotly's panels: what is selected in one is selected in all, clean and attacked points alike.
_LINK = """
const plot = document.getElementById('{plot_id}');
const traces = [...plot.data.keys()];
window.mark = async (rows) => {
  await Plotly.restyle(plot, { selectedpoints: traces.map(() => rows) }, traces);
  window.marked = rows.length;
};
plot.on('plotly_selected', (event) => {
  if (event?.points?.length) mark([...new Set(event.points.map((point) => point.pointIndex))]);
});
plot.on('plotly_hover', () => { window.hovered = true; });
window.plotReady = performance.now();
"""


def explorer_page(setup: Setup, *, pairs: int = 1000, many: int = 10_000, maps: int = 2) -> Iterator[Line]:
    """Opening the page until points are seen, and until all works; pointing at an image; a lasso over half of a panel.

    Parameters
    ----------
    setup : Setup
    pairs, many : int
        Images of each of four panels; each has a clean and an attacked point.
    maps : int
        Maps between which the page can switch.
    """
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        setup.say("explorer: left out, it needs playwright and chromium (CHROMIUM=)")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        common = {"browser": f"Chromium {browser.version}, headless, 1280 x 720, software rendering", "panels": 4}
        for n, goals in ((pairs, GOALS), (many, MANY_GOALS)):
            sets, coords = made_sets(n, maps)
            ours = explorer_file(sets, coords, Path(folder, f"explorer-{n}.html"), images=n == pairs)
            peers = {"plotly's WebGL traces": (plotly_file(coords, sets, Path(folder, f"plotly-{n}.html")), _on_plotly)}
            if scatter := jscatter_file(coords, sets, Path(folder, f"jscatter-{n}.html")):
                peers["jupyter-scatter's views"] = (scatter, _on_jscatter)
            elif n == pairs:
                setup.say("explorer: jupyter-scatter is not installed, and is left out")
            taken = _in_turn(browser, setup.pairs, (ours, _on_explorer), peers, tuple(goals))
            for peer, (file, _) in peers.items():
                megabytes = [round(each.stat().st_size / 1e6, 2) for each in (ours, file)]
                size = dict(zip(("megabytes", "peer_megabytes"), megabytes, strict=True))
                for action, goal in goals.items():
                    yield Line(
                        f"explorer, {action}, {2 * n:,} points a panel", peer, tuple(taken[peer, action]),
                        {**common, **size, "goal_s": goal,
                         "note": "the peer shows points alone: no images, neighbours, ratios or lists"},
                    )  # fmt: skip


def _in_turn(browser, turns: int, ours, peers, actions) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Seconds of ours and of each peer, by peer and action; every second turn the other way round."""
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {(peer, act): [] for peer in peers for act in actions}
    for turn in range(turns):
        sides = {"ours": ours, **peers}
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        found = {name: sides[name][1](browser, sides[name][0], actions) for name in order}
        for peer, action in taken:
            taken[peer, action].append((found["ours"][action], found[peer][action]))
    return taken


def made_sets(n: int, maps: int) -> tuple[dict[str, RepresentationSet], dict[str, dict[str, np.ndarray]]]:
    """Four sets of n images in clusters, a third of them fooled, and maps: two of their coordinates, and noise."""
    sets, coords = {}, {}
    for seed, name in enumerate(MODELS):
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % CLASSES
        centres = 3 * rng.normal(size=(CLASSES, 16))
        target = np.where(np.arange(n) % 3 == 0, (labels + 1) % CLASSES, labels)
        features, attacked = (centres[of] + rng.normal(size=(n, 16)) for of in (labels, target))
        sets[name] = RepresentationSet.from_arrays(
            features=features, labels=labels, logits=3 * np.eye(CLASSES)[labels], indices=np.arange(n),
            class_names=tuple(f"class {k}" for k in range(CLASSES)), adv_features=attacked,
            adv_logits=2 * np.eye(CLASSES)[target],
            adv_images=rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8) if n <= 2000 else None,
        )  # fmt: skip
        names = ("tsne", "pca", "umap")[:maps]
        coords[name] = {method: rng.normal(size=(2 * n, 2)) for method in names}
        coords[name]["tsne"] = np.concatenate([features, attacked])[:, :2]
    return sets, coords


def explorer_file(sets, coords, path: Path, *, images: bool) -> Path:
    """Ours; with images as at `mini`, without them for many points."""
    n = len(next(iter(sets.values())))
    shown = np.random.default_rng(0).integers(0, 256, (n, 1, 28, 28), dtype=np.uint8) if images else None
    explorer = EmbeddingExplorer(
        sets, images=shown, projections=coords, methods=tuple(coords[MODELS[0]]), max_points=2 * n, progress=False
    )
    return explorer.to_html(path)


def plotly_file(coords, sets, path: Path) -> Path:
    """The peer's page: two traces in each panel, clean and attacked."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, subplot_titles=MODELS)
    for at, (name, reps) in enumerate(sets.items()):
        n = len(reps)
        for kind, symbol in enumerate(("circle", "triangle-up")):
            xy = coords[name]["tsne"][kind * n : (kind + 1) * n]
            marker = {"color": reps.labels, "colorscale": "Viridis", "symbol": symbol, "size": 6}
            figure.add_trace(
                go.Scattergl(x=xy[:, 0], y=xy[:, 1], mode="markers", marker=marker), row=at // 2 + 1, col=at % 2 + 1
            )
    figure.update_layout(dragmode="lasso", showlegend=False, width=1260, height=700)
    figure.write_html(path, include_plotlyjs=True, post_script=_LINK)
    return path


def _on_explorer(browser, file: Path, actions) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto(file.as_uri())
    page.wait_for_selector("[data-ready=true]", timeout=60_000)
    mark = "performance.getEntriesByName('explorer ready')[0]"
    taken = {
        "shown": page.evaluate("performance.getEntriesByName('explorer shown')[0].startTime / 1000"),
        "ready": page.evaluate(f"({mark}.startTime + {mark}.duration) / 1000"),
    }
    box = page.locator(".plot").nth(3).bounding_box()
    if "hover" in actions:
        point = page.evaluate(
            """() => {
              const panel = explorer.maps.panels[1], f = panel.frame();
              const { left, top } = panel.plot.getBoundingClientRect();
              return [left + f.left + panel.coords[0] * f.scale, top + f.bottom - panel.coords[1] * f.scale];
            }"""
        )
        taken |= _hovers(page, point, "explorer.state.current !== null")
    box = (box["x"], box["y"], box["width"], box["height"])
    taken["lasso"] = _lasso(page, box, "explorer.state.count > 0")
    page.close()
    return taken


def _on_plotly(browser, file: Path, actions) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto(file.as_uri())
    page.wait_for_function("window.plotReady && document.querySelector('.gl-canvas')", timeout=60_000)
    taken = dict.fromkeys(("shown", "ready"), page.evaluate("plotReady / 1000"))
    frame = """(at) => {
      const plot = document.querySelector('.js-plotly-plot'), { left, top } = plot.getBoundingClientRect();
      const x = plot._fullLayout[`xaxis${at}`], y = plot._fullLayout[`yaxis${at}`];
      return { box: [left + x._offset, top + y._offset, x._length, y._length],
        point: [left + x._offset + x.d2p(plot._fullData[2].x[0]), top + y._offset + y.d2p(plot._fullData[2].y[0])] };
    }"""
    if "hover" in actions:
        taken |= _hovers(page, page.evaluate(frame, 2)["point"], "window.hovered === true")
    taken["lasso"] = _lasso(page, page.evaluate(frame, 4)["box"], "window.marked > 0")
    page.close()
    return taken


def _on_jscatter(browser, file: Path, actions) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto(file.as_uri())
    page.wait_for_function("window.viewsReady", timeout=60_000)
    taken = dict.fromkeys(("shown", "ready"), page.evaluate("viewsReady / 1000"))
    boxes = [canvas.bounding_box() for canvas in page.locator("canvas").all()]
    first, *_, last = [(box["x"], box["y"], box["width"], box["height"]) for box in boxes if box["width"] > 300]
    if "hover" in actions:
        x, y, width, height = first
        taken |= _hovers(page, (x + width / 2, y + height / 2), "window.hovered === true")
    taken["lasso"] = _lasso(page, last, "window.marked > 0")
    page.close()
    return taken


def _hovers(page, point, changed: str) -> dict[str, float]:
    """A point that is pointed at for the first time, which warms up a browser's code, and for the second."""
    seconds = {}
    for name in ("first hover", "hover"):
        page.evaluate("window.hovered = false")
        page.evaluate(_WATCH, ["pointermove", changed])
        page.mouse.move(*point)
        seconds[name] = page.evaluate("took")
        page.mouse.move(2, 2)
        page.wait_for_timeout(300)
    return seconds


def _lasso(page, box, changed: str) -> float:
    """Around the left half of a panel."""
    x, y, width, height = box
    page.mouse.move(x + 2, y + 2)
    page.mouse.down()
    for across, down in ((0.5, 0.005), (0.5, 0.5), (0.5, 0.995), (0.005, 0.995)):
        page.mouse.move(x + width * across, y + height * down, steps=3)
    page.evaluate(_WATCH, ["pointerup", changed])
    page.mouse.up()
    return page.evaluate("took")
