"""The explorer as a widget of JupyterLab."""

from __future__ import annotations

import base64
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
        picture: Callable[[], bytes]  # PNG, for pages that have no kernel
        payload = traitlets.Bytes().tag(sync=True)
        selection = traitlets.List(traitlets.Int()).tag(sync=True)
        view = traitlets.Dict().tag(sync=True)

        def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
            bundle = super()._repr_mimebundle_(**options)
            if bundle is None:  # anywidget is told by an option of its own to show nothing
                return None
            forms, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
            return {**forms, "image/png": base64.b64encode(self.picture()).decode()}, metadata

    return ExplorerWidget


def make_widget(
    payload: bytes, selection: list[int], view: dict[str, Any], full_image: Callable[[int, int], bytes | None],
    picture: Callable[[], bytes],
):  # fmt: skip
    """A widget that shows the payload; ``selection``, a list of indices, and ``view`` go in both directions.

    `picture` gives what stands in its place where a page has no kernel.

    It asks for an image in full size by a message with its sheet and row, and gets it as the buffer of the answer.
    """
    widget = _widget_class()(payload=payload, selection=selection, view=view)
    widget.picture = picture

    def answer(widget, content: Any, _buffers: Any) -> None:
        if isinstance(content, dict) and isinstance(content.get("image"), list):
            image = full_image(*content["image"])
            widget.send({"image": content["image"]}, [] if image is None else [image])

    widget.on_msg(answer)
    return widget
