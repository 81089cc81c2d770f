"""A page of jupyter-scatter's views without Jupyter: its own module, and models with what its kernel would send."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

import numpy as np

_PAGE = """<!doctype html><meta charset="utf-8"><style>%(style)s
body { margin: 0; display: grid; grid-template-columns: 1fr 1fr; }</style>
<div></div><div></div><div></div><div></div>
<script type="module">
const url = URL.createObjectURL(new Blob([%(module)s], { type: "text/javascript" }));
const { default: widget } = await import(url);
const read = (value) => {
  if (value?.base64 === undefined) return value;
  const bytes = Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0));
  return { view: new DataView(bytes.buffer), dtype: value.dtype, shape: value.shape };
};
class Model {
  constructor(state) {
    this.state = Object.fromEntries(Object.entries(state).map(([key, value]) => [key, read(value)]));
    this.heard = {};
  }
  get(key) { return this.state[key]; }
  set(key, value) {
    this.state[key] = value;
    (this.heard[`change:${key}`] ?? []).forEach((call) => call());
  }
  on(events, call) { events.split(" ").forEach((name) => (this.heard[name] ??= []).push(call)); }
  off() {}
  send() {}
  save_changes() {}
}
const models = %(states)s.map((state) => new Model(state));
const api = typeof widget === "function" ? await widget() : widget;
const places = [...document.querySelectorAll("body > div")];
for (const [at, model] of models.entries()) {
  await api.initialize?.({ model });
  await api.render({ model, el: places[at] });
  // How views are linked: what is selected in one is selected in all.
  model.on("change:selection", () => {
    const selection = model.get("selection");
    if (window.linking) return;
    window.linking = true;
    models.filter((other) => other !== model).forEach((other) => other.set("selection", selection));
    window.linking = false;
    window.marked = selection?.shape?.[0] ?? selection?.length ?? 0;
  });
  model.on("change:hovering", () => (window.hovered = true));
}
requestAnimationFrame(() => setTimeout(() => (window.viewsReady = performance.now())));
</script>
"""


def jscatter_file(coords, sets, path: Path) -> Path | None:
    """Write the page; None where jupyter-scatter is not installed."""
    if importlib.util.find_spec("jscatter") is None:
        return None
    import jscatter
    import pandas as pd

    states = []
    for name, reps in sets.items():
        xy = coords[name]["tsne"]
        labels = pd.Categorical(np.tile(reps.labels, 2).astype(str))
        frame = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "class": labels})
        scatter = jscatter.Scatter(data=frame, x="x", y="y", color_by="class", size=4, width=620, height=330)
        scatter.mouse("lasso")
        states.append({key: _plain(value) for key, value in scatter.widget.get_state().items() if key[0] != "_"})
    folder = Path(jscatter.__file__).parent
    text = _PAGE % {
        "style": (folder / "bundle.css").read_text(encoding="utf-8"),
        "module": json.dumps((folder / "bundle.js").read_text(encoding="utf-8")).replace("</", "<\\/"),
        "states": json.dumps(states).replace("</", "<\\/"),
    }
    path.write_text(text, encoding="utf-8")
    return path


def _plain(value):
    """As JSON; arrays keep their bytes."""
    if isinstance(value, dict) and "view" in value:
        content = base64.b64encode(bytes(value["view"])).decode()
        return {"base64": content, "dtype": value["dtype"], "shape": list(value["shape"])}
    try:
        json.dumps(value)
    except TypeError:
        return None
    return value
