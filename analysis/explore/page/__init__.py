"""The page: one JavaScript module, written in a few files, for two hosts."""

from __future__ import annotations

import base64
import html
import json
import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
# In the order of reading; one module when put together, so that they share their names.
_SOURCES = ("data.js", "images.js", "maps.js", "details.js", "lists.js", "explorer.js")


@cache
def module_source() -> str:
    """The JavaScript module with plotly.js in it; its default export is what anywidget expects.

    plotly.js is compiled when `loadPlotly` is called: that takes seconds, in which the points can be seen already.
    """
    from plotly.offline import get_plotlyjs

    # plotly.js leaves its own object in `module.exports` where there is one, and else in the page's globals.
    library = f"const module = {{ exports: {{}} }};\n{get_plotlyjs()}\nreturn module.exports;"
    own = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SOURCES)
    style = json.dumps((_FOLDER / "style.css").read_text(encoding="utf-8"))
    return f"let Plotly;\nconst loadPlotly = () => {{\n{library}\n}};\nconst STYLE = {style};\n{own}"


def html_page(payload: bytes, selection: list[int], title: str) -> str:
    """One self-contained page."""
    template = (_FOLDER / "template.html").read_text(encoding="utf-8")
    values = {
        "TITLE": html.escape(title),
        "SELECTION": json.dumps(selection),
        "PAYLOAD": base64.b64encode(payload).decode(),
        "MODULE": module_source().replace("</script", "<\\/script"),
    }
    return re.sub("@@([A-Z]+)@@", lambda match: values[match[1]], template)
