"""The style sheet, and one colour and marker for each class."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEXT_WIDTH = 5.5  # inches, of a NeurIPS page
CLEAN_COLOUR = "#bdbdbd"

# Nine colours of Paul Tol's scheme "muted" and black: told apart by colour-blind readers; the markers do the same work.
_COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#000000",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p")


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with the style sheet inside the block."""
    import matplotlib.style

    with matplotlib.style.context(str(Path(__file__).with_name("tla.mplstyle"))):
        yield


def class_colour(k: int) -> str:
    """Colour of class k; from the eleventh on they repeat, with another marker."""
    return _COLOURS[k % len(_COLOURS)]


def class_marker(k: int) -> str:
    """Marker of class k; shifted each time the colours repeat: colour and marker are unique up to 100 classes."""
    return _MARKERS[(k + k // len(_COLOURS)) % len(_MARKERS)]
