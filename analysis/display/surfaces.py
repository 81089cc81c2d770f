"""Loss landscapes as surfaces to turn by hand, with plotly."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.display.style import FigureStyle
from analysis.display.texts import show_names_as_text

if TYPE_CHECKING:  # take a second to import
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

# For `show` and `write_html` of what `surface` returns: plotly 7 offers to upload a chart unless it is told not to.
SURFACE_CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
_MOST_SCENES = 16  # WebGL contexts that a browser gives to one page


def surfaces(
    rows: Mapping[str, Sequence], column_titles: Sequence[str], scales: Sequence[tuple[float, float]],
    style: FigureStyle,
) -> go.Figure:  # fmt: skip
    """See `LandscapesDisplay.surface`, whose panels, titles and scales these are."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    n_rows, n_columns = len(rows), len(column_titles)
    if n_rows * n_columns > _MOST_SCENES:
        raise ValueError(
            f"a browser draws at most {_MOST_SCENES} surfaces on a page. Got {n_rows * n_columns}; take fewer images."
        )
    titles = [
        f"{html.escape(f'{name}, {column}', quote=False)}<br>{panel.rise_text}"
        for name, row in rows.items()
        for column, panel in zip(column_titles, row, strict=True)
    ]
    colours = _plotly_scale(style.colour_map)
    figure = make_subplots(
        n_rows, n_columns, specs=[[{"type": "surface"}] * n_columns] * n_rows, subplot_titles=titles,
        horizontal_spacing=0.01, vertical_spacing=0.06,
    )  # fmt: skip
    for i, row in enumerate(rows.values()):
        for j, (panel, (low, high)) in enumerate(zip(row, scales, strict=True)):
            loss = np.where(np.isfinite(panel.loss), panel.values, np.nan).T.astype(np.float32)
            axis = np.asarray(panel.axis, dtype=np.float32)
            surface = go.Surface(
                x=axis, y=axis, z=loss, cmin=low, cmax=high, colorscale=colours, showscale=False,
                hovertemplate="%{x:.3g}, %{y:.3g}<br>loss %{z:.4g}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(surface, row=i + 1, col=j + 1)
            figure.update_scenes(
                xaxis={"title": f"1st ({panel.unit})", "nticks": 5},
                yaxis={"title": f"2nd ({panel.unit})", "nticks": 5},
                zaxis={"title": "loss", "range": [low, high], "nticks": 4},
                camera_eye={"x": 2.1, "y": 2.1, "z": 1.5},  # far enough for the titles of the axes to be seen
                aspectmode="cube", row=i + 1, col=j + 1,
            )  # fmt: skip
    figure.update_layout(height=340 * n_rows, margin={"l": 0, "r": 0, "t": 50, "b": 0}, font_size=10)
    figure.update_annotations(font_size=12)
    return figure


def surface_bundle(
    figure: go.Figure, rows: Mapping[str, Sequence], column_titles: Sequence[str],
    scales: Sequence[tuple[float, float]], style: FigureStyle,
) -> dict[str, Any]:  # fmt: skip
    """One output of a notebook in three forms: surfaces to turn, a picture of them (PNG in base64), and words.

    A page that is made of the notebook later (nbconvert, a forge) shows the picture where it cannot draw the surfaces.
    """
    import matplotlib.pyplot as plt

    with style.applied():
        picture = _picture(rows, column_titles, scales, style)
        content = io.BytesIO()
        picture.savefig(content, format="png", dpi=110)
        plt.close(picture)
    return {
        "application/vnd.plotly.v1+json": {**json.loads(figure.to_json()), "config": SURFACE_CONFIG},
        "image/png": base64.b64encode(content.getvalue()).decode(),
        "text/plain": f"surfaces: {', '.join(rows)} x {len(column_titles)} images",
    }


def _picture(
    rows: Mapping[str, Sequence], column_titles: Sequence[str], scales: Sequence[tuple[float, float]],
    style: FigureStyle,
) -> Figure:  # fmt: skip
    """The same surfaces from where plotly shows them first."""
    import matplotlib.pyplot as plt

    n_rows, n_columns = len(rows), len(column_titles)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(2.6 * n_columns, 2.5 * n_rows), squeeze=False, subplot_kw={"projection": "3d"}
    )
    for (name, row), row_axes in zip(rows.items(), axes, strict=True):
        for panel, title, (low, high), ax in zip(row, column_titles, scales, row_axes, strict=True):
            first, second = np.meshgrid(panel.axis, panel.axis, indexing="ij")
            loss = np.where(np.isfinite(panel.loss), panel.values, np.nan)
            ax.plot_surface(first, second, loss, cmap=style.colour_map, vmin=low, vmax=high, linewidth=0)
            ax.set(zlim=(low, high), xlabel=f"1st ({panel.unit})", ylabel=f"2nd ({panel.unit})")
            ax.set_title(f"{name}, {title.splitlines()[0]}\n{panel.rise_text}")
            ax.view_init(elev=27, azim=45)
            show_names_as_text(ax)
    return figure


def _plotly_scale(name: str) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps[name](np.linspace(0, 1, 16))]
