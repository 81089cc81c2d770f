"""Figures and images inside the page: drawn by the Displays, as data in the file itself."""

import base64
import html
import io

import numpy as np

# A font of 7 points, as figures have it, is 13 pixels at so many to the inch.
PIXELS_PER_INCH = 135
THUMBNAIL = 96


def chart(display, alt: str) -> str:
    """A figure of lines as SVG: dark pages show it in inverted lightness."""
    return _figure(display, alt, "svg", "image/svg+xml", "chart")


def maps_figure(display, alt: str) -> str:
    """A figure of maps, whose colours stand for classes, as SVG on white."""
    return _figure(display, alt, "svg", "image/svg+xml", "photo wide")


def photographs(display, alt: str) -> str:
    """A figure that holds images or a colour scale, which are shown as they are."""
    return _figure(display, alt, "png", "image/png", "photo wide")


def _figure(display, alt: str, kind: str, media: str, css: str) -> str:
    import matplotlib.pyplot as plt

    figure = display.plot().figure_
    width = round(figure.get_figwidth() * PIXELS_PER_INCH)
    buffer = io.BytesIO()
    with display.style.applied():
        metadata = {"Creator": None, "Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=250, transparent=kind == "svg", metadata=metadata)
    plt.close(figure)
    address = f"data:{media};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    style = f'style="width:{width}px"'
    return f'<div class="{css}"><img src="{address}" alt="{html.escape(alt, quote=True)}" {style}></div>'


def thumbnail(pixels: np.ndarray, alt: str) -> str:
    """One image (c, h, w), uint8 or float in [0, 1], small; pixels stay squares."""
    from PIL import Image

    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        pixels = (255 * pixels).round().astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img class="thumb" src="{address}" alt="{html.escape(alt, quote=True)}">'


def change(clean: np.ndarray, adversarial: np.ndarray, eps: float) -> np.ndarray:
    """What the attack changed, (c, h, w) uint8: grey is nothing, black and white the eps of an L-inf attack."""
    start, end = (each / np.float32(255 if each.dtype == np.uint8 else 1) for each in (clean, adversarial))
    largest = max(eps if eps <= 1 else 0, float(np.abs(end - start).max()), 1 / 255)
    return np.clip(127.5 + 127.5 * (end - start) / largest, 0, 255).astype(np.uint8)
