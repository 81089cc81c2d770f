"""Turns image files into arrays: orientation, transparency, bit depth, grey among colour, sizes."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from tla_core.dataset_files import DatasetError
from tla_core.validation import check_whole

if TYPE_CHECKING:
    from PIL import Image

# Only these readers of Pillow are tried, whatever a file is called: a .png that is PostScript starts no interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 64_000_000
FILES_PER_TASK = 256
FILES_WORTH_A_PROGRESS_BAR = 5000
# Raised when the decoder changes the pixels of a file, so that cached pixels are decoded again.
DECODING = 2
_ORIENTATION = 0x0112  # of Exif


@dataclass(frozen=True)
class Shape:
    """How images come to one size: resized first, then cropped around the middle; neither by default.

    Parameters
    ----------
    resize : int or (height, width), optional
        The length of the shorter side, or both; bilinear, with antialiasing.
    crop : int or (height, width), optional
        Both sides, or each.

    Raises
    ------
    ValueError
        Unless they are whole numbers of at least 1.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) == 2:
                object.__setattr__(self, name, tuple(check_whole(name, side, 1) for side in value))
            elif value is not None:
                object.__setattr__(self, name, check_whole(name, value, 1))

    def __bool__(self) -> bool:
        return self != Shape()

    def __call__(self, image: "Image.Image") -> "Image.Image":
        """The image in its new size; ValueError where it is smaller than the crop."""
        if self.resize is not None:
            from PIL import Image

            image = image.resize(self._size_after(*image.size), Image.Resampling.BILINEAR)
        if self.crop is not None:
            height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            if left < 0 or top < 0:
                raise ValueError(
                    f"it has {image.width}x{image.height} pixels, fewer than the crop of {width}x{height}; resize first"
                )
            image = image.crop((left, top, left + width, top + height))
        return image

    def _size_after(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        shorter = min(width, height)
        return max(round(width * self.resize / shorter), 1), max(round(height * self.resize / shorter), 1)


def pixels_of(image: "Image.Image", shape: Shape | None = None) -> np.ndarray:
    """The pixels of a PIL image, uint8 (h, w, 1) if it is greyscale, otherwise (h, w, 3).

    Turned as its Exif orientation says. What is transparent shows white. Of 16 bits per channel the upper eight are
    kept, so that white stays white.

    Raises
    ------
    ValueError
        If it has floating-point or 32-bit values, whose range is not known, or is smaller than a crop.
    """
    from PIL import Image, ImageOps

    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and getattr(image, "format", None) in ("PPM", "PNG")):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"it has 32-bit values (mode {image.mode}), whose range is not known; convert it to 8 bits")
    kind = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == kind else image.convert(kind)
    pixels = np.asarray(shape(image) if shape else image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decode_images(folder: Path, paths: Sequence[str], *, shape: Shape | None = None, source: str = "") -> np.ndarray:
    """Decode files with a pool of threads.

    Parameters
    ----------
    folder : Path
    paths : sequence of str
        Below the folder.
    shape : Shape, optional
    source : str
        Named by the progress bar.

    Returns
    -------
    ndarray of uint8, shape (n, c, h, w)
        c is 1 if every image is greyscale; otherwise 3, and greyscale images have three equal channels.

    Raises
    ------
    DatasetError
        If a file cannot be decoded, or has another size than the first.
    """
    height, width = _decode(folder / paths[0], shape).shape[:2]
    n = len(paths)
    images = np.empty((n, 3, height, width), dtype=np.uint8)
    is_grey = np.empty(n, dtype=bool)

    def decode_some(start: int) -> int:
        for i, path in enumerate(paths[start : start + FILES_PER_TASK], start=start):
            image = _decode(folder / path, shape)
            if image.shape[:2] != (height, width):
                raise DatasetError(
                    f"Images have different sizes: {paths[0]} has {width}x{height} pixels and {path} has "
                    f"{image.shape[1]}x{image.shape[0]}, in {folder}. Resize all images to one size first, or pass "
                    f"resize=({height}, {width}) to load_dataset, or resize={min(height, width)} and "
                    f"crop={min(height, width)}."
                )
            images[i], is_grey[i] = image.transpose(2, 0, 1), image.shape[2] == 1
        return min(FILES_PER_TASK, n - start)

    with (
        ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool,
        tqdm(total=n, desc=f"Decoding {source}", unit=" images", disable=n < FILES_WORTH_A_PROGRESS_BAR) as bar,
    ):
        for count in pool.map(decode_some, range(0, n, FILES_PER_TASK)):
            bar.update(count)
    return images[:, :1].copy() if is_grey.all() else images


def check_other_split(
    images: np.ndarray, folder: Path, own_path: str, other_paths: Sequence[str], shape: Shape
) -> None:
    """Raise DatasetError where the files of the other split would not become images like these.

    Parameters
    ----------
    images : ndarray, shape (n, c, h, w)
        Of a split.
    folder : Path
    own_path : str
        One of its files.
    other_paths : sequence of str
        The files of the other split. One is decoded, and as few more as show whether there is colour.
    shape : Shape
    """
    if not other_paths:
        return
    channels, height, width = images.shape[1:]
    is_grey = True
    for number, path in enumerate(other_paths):
        pixels = _decode(folder / path, shape)
        is_grey = is_grey and pixels.shape[2] == 1
        if not number and pixels.shape[:2] != (height, width):
            raise DatasetError(
                f"The splits have different sizes: {own_path} has {width}x{height} pixels and {path} has "
                f"{pixels.shape[1]}x{pixels.shape[0]}, in {folder}. Resize them to one size, or pass resize= and crop=."
            )
        if not is_grey or (channels == 1 and number >= FILES_PER_TASK):
            break
    if is_grey != (channels == 1):
        grey, colour = ("this split", path) if channels == 1 else ("the other split", own_path)
        raise DatasetError(
            f"One split is grey and the other has colour, so that no model takes both: {colour} of {folder} has colour,"
            f" and {grey}, such as {own_path if channels == 1 else other_paths[0]}, has none. Convert one of them."
        )


def _decode(path: Path, shape: Shape | None) -> np.ndarray:
    """Return uint8 (h, w, 1 or 3)."""
    # Pillow comes with torchvision and imports 5 s faster; it also reads palettes, CMYK and transparency.
    from PIL import Image

    try:
        # Pillow reads a file in many small steps: from memory it takes two thirds of the time.
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:  # the header says so; nothing is decoded yet
                raise ValueError(f"it has {image.width}x{image.height} pixels, and at most {MOST_PIXELS:,} are read")
            return pixels_of(image, shape)
    except Exception as error:  # Pillow's plugins raise many types for a damaged file
        reason = str(error).partition(" <_io")[0]
        raise DatasetError(f"{path} cannot be decoded: {reason}. Replace or remove this file.") from error
