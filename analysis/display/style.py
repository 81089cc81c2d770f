"""How figures look: the style sheet, what of it a caller may choose, and one colour and marker for each class."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tla_core.validation import check_number

TEXT_WIDTH = 5.5  # inches, of a NeurIPS page
CLEAN_COLOUR = "#bdbdbd"

# Nine colours of Paul Tol's scheme "muted" and black: told apart by colour-blind readers; the markers do the same work.
_COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#000000",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p")
_SHEET = Path(__file__).with_name("tla.mplstyle")
_FONT, _POINTS = "DejaVu Sans", 7.0  # those of the sheet
# Settings of matplotlib's that are of the program and not of a figure.
_OF_THE_PROGRAM = ("backend", "date.epoch", "docstring", "figure.max_open", "figure.raise", "interactive", "keymap",
                   "savefig.directory", "timezone", "tk.", "toolbar", "webagg")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FigureStyle:
    """How a Display is drawn; what is left out is as in the paper's figures.

    Parameters
    ----------
    palette : sequence of colours or str, optional
        For classes, curves and kinds of points, in their order; or the name of a colour map of matplotlib's, such as
        ``"tab10"``. After the last one they repeat, with another marker or line style.
    width : float, optional
        Of a new figure, in inches; by default 5.5 of a grid, and what suits a single panel.
    font : str
        A family, such as ``"serif"`` or ``"Palatino"``.
    font_size : float
        In points, above 0; ticks and legends are a little smaller.
    marker_size : float
        Above 0; 2 draws markers twice as wide.
    colour_map : str
        Of loss landscapes: a name of matplotlib's.
    settings : mapping of str to value
        Further settings of matplotlib's, such as ``{"savefig.dpi": 600}``.

    Raises
    ------
    ValueError
        For what matplotlib does not take for a colour, a colour map or a setting, and for sizes that are not above 0.

    Examples
    --------
    >>> style = FigureStyle(font="serif", width=6.3, palette=("#004488", "#ddaa33", "#bb5566"))
    >>> display.plot(style=style)                                       # doctest: +SKIP
    """

    palette: Sequence[str] | str = ()
    width: float | None = None
    font: str = _FONT
    font_size: float = _POINTS
    marker_size: float = 1.0
    colour_map: str = "viridis"
    settings: Mapping[str, Any] = field(default_factory=dict)
    _is_rc: bool = field(default=False, repr=False)  # the settings are all: no sheet lies under them

    def __post_init__(self) -> None:
        for name in ("font_size", "marker_size", *(["width"] if self.width is not None else [])):
            check_number(name, getattr(self, name), 0, open_low=True)
        palette = _colours_of_map(self.palette) if isinstance(self.palette, str) else tuple(self.palette)
        object.__setattr__(self, "palette", _checked_colours(palette))
        if self.colour_map != "viridis":
            _colour_map(self.colour_map)
        if self.settings:
            from matplotlib import rcParams

            if unknown := sorted(set(self.settings) - set(rcParams)):
                raise ValueError(f"settings must be matplotlib's. Got {', '.join(map(repr, unknown))}.")

    @classmethod
    def from_rc(cls) -> "FigureStyle":
        """What matplotlib is set to now, by ``rcParams`` or a style sheet: nothing of ours is laid over it."""
        from matplotlib import rcParams, rcParamsDefault

        changed = {
            key: rcParams[key] for key in rcParams
            if not key.startswith(_OF_THE_PROGRAM) and rcParams[key] != rcParamsDefault[key]
        }  # fmt: skip
        colours = rcParams["axes.prop_cycle"].by_key().get("color", ())
        changed = {key: repr(value) if key == "axes.prop_cycle" else value for key, value in changed.items()}
        changed.setdefault("svg.hashsalt", "tla-toolkit")  # otherwise an SVG has other bytes each time
        return cls(
            palette=colours, width=rcParams["figure.figsize"][0], font_size=rcParams["font.size"],
            marker_size=rcParams["font.size"] / _POINTS, colour_map=rcParams["image.cmap"], settings=changed,
            _is_rc=True,
        )  # fmt: skip

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Draw so inside the block, whatever matplotlib is set to otherwise."""
        import matplotlib
        import matplotlib.style

        if self._is_rc:
            with matplotlib.rc_context(dict(self.settings)):
                yield
            return
        sizes = {"font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "legend.fontsize": 6.5, "xtick.labelsize": 6}
        sizes = {key: self.points(size) for key, size in sizes.items()}
        chosen = {"font.family": self.font, **sizes, "ytick.labelsize": self.points(6), **self.settings}
        with matplotlib.style.context([str(_SHEET), chosen], after_reset=True):
            yield

    def points(self, size: float) -> float:
        """A size of text that is `size` points in our own style."""
        return size * self.font_size / _POINTS

    def markers(self, size: float) -> float:
        """The width of a marker, in points, that is `size` in our own style."""
        return size * self.marker_size

    def area(self, size: float) -> float:
        """The same as an area, in points squared, as scatter plots want it."""
        return size * self.marker_size**2

    def colours(self, own: Sequence[str] = _COLOURS) -> tuple[str, ...]:
        """The palette, or where none was chosen a figure's own."""
        return tuple(self.palette or own)

    def class_colour(self, k: int) -> str:
        """Colour of class k; behind the last one they repeat, with another marker."""
        return self.colours()[k % len(self.colours())]

    def class_marker(self, k: int) -> str:
        """Marker of class k, shifted each time that the colours repeat; unique together up to ten times as many."""
        return _MARKERS[(k + k // len(self.colours())) % len(_MARKERS)]

    def figure_size(self, width: float, height: float) -> tuple[float, float]:
        """Inches of a new figure with one panel, which keeps its shape when it gets another width."""
        factor = 1 if self.width is None else self.width / width
        return width * factor, height * factor

    def grid_width(self, n_columns: int) -> float:
        """Inches of a new figure with so many panels beside each other; one alone takes half of a page's width."""
        return self.width or (TEXT_WIDTH if n_columns > 1 else TEXT_WIDTH / 2)

    def to_dict(self) -> dict[str, Any]:
        """What differs from the default, as JSON values: arguments that make an equal style."""
        values = {each.name: (getattr(self, each.name), getattr(DEFAULT_STYLE, each.name)) for each in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for key, (value, default) in values.items() if value != default
        }  # fmt: skip


def as_style(style: FigureStyle | str) -> FigureStyle:
    """A style; ``"rc"`` is what matplotlib is set to now.

    Raises
    ------
    TypeError
    """
    if isinstance(style, FigureStyle):
        return style
    if style == "rc":
        return FigureStyle.from_rc()
    raise TypeError(f'style must be a FigureStyle, or "rc" for matplotlib\'s own settings. Got {style!r}.')


def _colour_map(name: str):
    from matplotlib import colormaps

    if name not in colormaps:
        raise ValueError(f"there is no colour map {name!r}; expected one of matplotlib's, such as tab10 or viridis.")
    return colormaps[name]


def _colours_of_map(name: str) -> tuple[str, ...]:
    """Those of a list; of a continuous map ten of them."""
    import numpy as np
    from matplotlib.colors import to_hex

    colour_map = _colour_map(name)
    listed = getattr(colour_map, "colors", ())
    return tuple(map(to_hex, listed if 0 < len(listed) <= 20 else colour_map(np.linspace(0.05, 0.95, 10))))


def _checked_colours(palette: tuple) -> tuple[str, ...]:
    if not palette:
        return ()
    from matplotlib.colors import is_color_like, to_hex

    if wrong := [colour for colour in palette if not is_color_like(colour)]:
        raise ValueError(f"palette must hold colours, such as '#004488' or 'crimson'. Got {wrong[0]!r}.")
    return tuple(to_hex(colour) for colour in palette)


DEFAULT_STYLE = FigureStyle()


class Styled:
    """What every Display has: a style, ours until ``plot(style=...)`` sets another; `save_figure` keeps to it."""

    style = DEFAULT_STYLE

    @contextmanager
    def _drawing(self, style: FigureStyle | str | None) -> Iterator[FigureStyle]:
        _warn_if_hidden()
        if style is not None:
            self.style = as_style(style)
        with self.style.applied():
            yield self.style


def _warn_if_hidden() -> None:
    """In a notebook ``MPLBACKEND=agg`` of the shell that started it draws figures which nobody sees."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return
    import matplotlib

    if matplotlib.get_backend().lower() == "agg":
        warnings.warn(
            "matplotlib draws with the backend agg, which shows nothing in a notebook: MPLBACKEND is set to it where"
            " Jupyter was started. Run `%matplotlib inline` in a cell, or start Jupyter without MPLBACKEND.",
            stacklevel=5,
        )


def class_colour(k: int) -> str:
    """Colour of class k in our own style."""
    return DEFAULT_STYLE.class_colour(k)


def class_marker(k: int) -> str:
    """Marker of class k in our own style."""
    return DEFAULT_STYLE.class_marker(k)


# Of lines, one for each model. Dark blue, rose, green, olive, wine and black of the class colours; with the line styles
# they are told apart in grey as well.
LINE_COLOURS = tuple(class_colour(k) for k in (0, 6, 3, 4, 7, 9))
LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
