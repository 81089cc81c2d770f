"""The page: one JavaScript module, written in a few files, for two hosts."""

from __future__ import annotations

import base64
import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

_FOLDER = Path(__file__).parent
# In the order of reading; one module when put together, so that they share their names.
_SOURCES = (
    "element.js", "data.js", "colours.js", "images.js", "raster.js", "panel.js", "gestures.js", "maps.js", "legend.js",
    "details.js", "table.js", "lists.js", "view.js", "picture.js", "controls.js", "explorer.js", "hosts.js",
)  # fmt: skip


@cache
def module_source() -> str:
    """The JavaScript module; its default export is what anywidget expects."""
    own = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SOURCES)
    style = json.dumps((_FOLDER / "style.css").read_text(encoding="utf-8"))
    return f"const STYLE = {style};\n{own}"


def html_page(
    payload: bytes, selection: list[int], view: dict[str, Any], title: str, *, images: str | None = None
) -> str:
    """One page that is complete in itself, but for full-size images in the folder beside it that `images` names."""
    template = (_FOLDER / "template.html").read_text(encoding="utf-8")
    start = {"selection": selection, "view": view, "images": None if images is None else quote(images)}
    values = {
        "TITLE": html.escape(title),
        "BESIDE": "" if images is None else " 'self' file:",
        "START": json.dumps(start).replace("<", "\\u003c"),
        "PAYLOAD": base64.b64encode(payload).decode(),
        "MODULE": module_source().replace("</script", "<\\/script"),
    }
    return re.sub("@@([A-Z]+)@@", lambda match: values[match[1]], template)
