"""The explorer as a widget of JupyterLab."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def _widget_class():
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise ImportError(
            "The widget needs anywidget, which is not installed. Run pip install anywidget, or write a file with"
            " to_html and open that."
        ) from error
    from analysis.explore.page import module_source

    class ExplorerWidget(anywidget.AnyWidget):
        _esm = module_source()
        payload = traitlets.Bytes().tag(sync=True)
        selection = traitlets.List(traitlets.Int()).tag(sync=True)
        view = traitlets.Dict().tag(sync=True)

    return ExplorerWidget


def make_widget(
    payload: bytes, selection: list[int], view: dict[str, Any], full_image: Callable[[int, int], bytes | None]
):
    """A widget that shows the payload; ``selection``, a list of indices, and ``view`` go in both directions.

    It asks for an image in full size by a message with its sheet and row, and gets it as the buffer of the answer.
    """
    widget = _widget_class()(payload=payload, selection=selection, view=view)

    def answer(widget, content: Any, _buffers: Any) -> None:
        if isinstance(content, dict) and isinstance(content.get("image"), list):
            image = full_image(*content["image"])
            widget.send({"image": content["image"]}, [] if image is None else [image])

    widget.on_msg(answer)
    return widget
