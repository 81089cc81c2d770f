"""The explorer as a widget of JupyterLab."""

from __future__ import annotations

from functools import cache


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

    return ExplorerWidget


def make_widget(payload: bytes, selection: list[int]):
    """A widget that shows the payload; its ``selection`` is a list of indices, in both directions."""
    return _widget_class()(payload=payload, selection=selection)
