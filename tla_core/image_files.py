"""Datasets that come as image files: which files belong to a split, with which labels, and how they are decoded."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tla_core.dataset_files import DatasetError, DatasetNotFoundError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FILES_PER_TASK = 256
FILES_WORTH_A_PROGRESS_BAR = 5000


@dataclass(frozen=True, repr=False)
class ImageFiles:
    """The image files of one split in order: one path below `folder` and one label each.

    `source` is the provenance shown in results; `fingerprint` changes when a file is added, removed or written to.
    """

    folder: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    fingerprint: str

    def __repr__(self) -> str:
        return f"ImageFiles({self.folder}: {len(self.paths):,} files of {len(self.class_names)} classes)"


def list_image_folder(folder: Path, split: str, *, source: str | None = None) -> ImageFiles:
    """List ``<folder>/<split>/<class>/*``, classes and files sorted by name.

    Hidden files and files that are not named like images are left out.

    Raises
    ------
    DatasetNotFoundError
        If the folder or the split is missing.
    DatasetError
        If there are no classes, a class has no images, or the other split has other classes.
    """
    wanted = "expected an image folder with train/<class>/* and test/<class>/*"
    class_names = _folder_names(folder / split, wanted)
    if not class_names:
        raise DatasetError(f"{folder / split} is empty: it has no class folders; {wanted}.")
    other = folder / {"train": "test", "test": "train"}[split]
    if other.is_dir() and (other_names := _folder_names(other, wanted)) != class_names:
        name = min(set(class_names) ^ set(other_names))
        raise DatasetError(
            f"train and test of {folder} have different classes: {name!r} is in only one of them. "
            "Give both the same class folders."
        )
    rows, labels = [], []
    for label, name in enumerate(class_names):
        images = _image_rows(folder, f"{split}/{name}")
        if not images:
            raise DatasetError(
                f"{folder / split / name} is empty: it has no images ({', '.join(IMAGE_SUFFIXES)}). "
                "Add some, or remove the class."
            )
        rows += images
        labels += [label] * len(images)
    return _image_files(folder, rows, labels, class_names, source or f"{folder.resolve().name} (image folder)")


def list_tiny_imagenet(folder: Path, split: str) -> ImageFiles:
    """List one split of Tiny-ImageNet in its official layout.

    Parameters
    ----------
    folder : Path
        ``tiny-imagenet-200`` with ``train/<wnid>/images/``, ``val/images/``, ``val/val_annotations.txt``,
        ``wnids.txt`` and ``words.txt``.
    split : {"train", "test"}
        "test" are the official validation images: the labels of the official test images are not public.

    Returns
    -------
    ImageFiles
        Classes are ordered as in ``wnids.txt`` and named by their first synonym in ``words.txt``.

    Raises
    ------
    DatasetNotFoundError, DatasetError
        If a folder or file is missing, a class has no images, or annotations and images disagree.
    """
    wnids = _lines(folder / "wnids.txt")
    if not wnids:
        raise DatasetError(f"{folder}/wnids.txt is empty; expected one WordNet id per line. Unpack the archive again.")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    images_per_class = [len(_image_names(folder / "train" / wnid / "images")) for wnid in wnids]
    tables = ["wnids.txt", "words.txt"]
    if split == "train":
        rows = [row for wnid in wnids for row in _image_rows(folder, f"train/{wnid}/images")]
        labels = np.repeat(np.arange(len(wnids)), images_per_class)
        if 0 in images_per_class:
            empty = folder / "train" / wnids[images_per_class.index(0)] / "images"
            raise DatasetError(f"{empty} is empty: it has no images. Unpack the archive again.")
    else:
        tables.append("val/val_annotations.txt")
        annotations = [line.split("\t")[:2] for line in _lines(folder / tables[-1])]
        unknown = [wnid for _, wnid in annotations if wnid not in label_of]
        if unknown:
            raise DatasetError(f"{folder / tables[-1]} names {unknown[0]!r}, which wnids.txt does not have.")
        by_path = {row[0]: row for row in _image_rows(folder, "val/images")}
        paths = [f"val/images/{name}" for name, _ in annotations]
        if not paths or sorted(paths) != sorted(by_path):
            differing = min(set(paths) ^ set(by_path), default="an image")
            raise DatasetError(
                f"{folder / tables[-1]} and the files in val/images disagree: {differing} is in only one of them, or "
                "twice. Unpack the archive again."
            )
        rows, labels = [by_path[path] for path in paths], [label_of[wnid] for _, wnid in annotations]
    source = _tiny_imagenet_source(images_per_class)
    names = _tiny_imagenet_names(_lines(folder / "words.txt"), wnids)
    return _image_files(folder, rows, labels, names, source, tables=[_row(folder, table) for table in tables])


def decode_images(files: ImageFiles) -> np.ndarray:
    """Decode all files with a pool of threads.

    Parameters
    ----------
    files : ImageFiles

    Returns
    -------
    ndarray of uint8, shape (n, c, h, w)
        c is 1 if every image is greyscale; otherwise 3, and greyscale images have three equal channels.

    Raises
    ------
    DatasetError
        If a file cannot be decoded, has more than 8 bits per channel, or has another size than the first.
    """
    height, width = _decode(files.folder / files.paths[0])[0].shape[:2]
    n = len(files.paths)
    images = np.empty((n, 3, height, width), dtype=np.uint8)
    is_grey = np.empty(n, dtype=bool)

    def decode_some(start: int) -> int:
        for i, path in enumerate(files.paths[start : start + FILES_PER_TASK], start=start):
            image, is_grey[i] = _decode(files.folder / path)
            if image.shape[:2] != (height, width):
                raise DatasetError(
                    f"Images have different sizes: {files.paths[0]} has {width}x{height} pixels and {path} has "
                    f"{image.shape[1]}x{image.shape[0]}, in {files.folder}. Resize all images to one size first."
                )
            images[i] = image.transpose(2, 0, 1)
        return min(FILES_PER_TASK, n - start)

    with (
        ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool,
        tqdm(total=n, desc=f"Decoding {files.source}", unit=" images", disable=n < FILES_WORTH_A_PROGRESS_BAR) as bar,
    ):
        for count in pool.map(decode_some, range(0, n, FILES_PER_TASK)):
            bar.update(count)
    return images[:, :1].copy() if is_grey.all() else images


def _decode(path: Path) -> tuple[np.ndarray, bool]:
    """Return uint8 (h, w, 3) and whether the file is greyscale."""
    # Pillow comes with torchvision and imports 5 s faster; it also reads palettes, CMYK and transparency.
    from PIL import Image

    try:
        # Pillow reads a file in many small steps: from memory it takes two thirds of the time.
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            deep = image.mode.startswith(("I", "F"))
            is_grey = image.mode in ("1", "L", "LA")
            pixels = None if deep else np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise many types for a damaged file
        reason = str(error).partition(" <_io")[0]
        raise DatasetError(f"{path} cannot be decoded: {reason}. Replace or remove this file.") from error
    if pixels is None:
        raise DatasetError(f"{path} has more than 8 bits per channel. Convert it to 8 bits first.")
    return pixels, is_grey


def _folder_names(folder: Path, wanted: str) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DatasetNotFoundError(f"There is no folder {folder}; {wanted}.")
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DatasetNotFoundError(f"There is no folder {folder}. Unpack the dataset again.")
    return sorted(n for n in os.listdir(folder) if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("."))


def _image_rows(root: Path, below: str) -> list[tuple[str, int, int]]:
    return [_row(root, f"{below}/{name}") for name in _image_names(root / below)]


def _row(root: Path, path: str) -> tuple[str, int, int]:
    stat = os.stat(f"{root}/{path}")
    return path, stat.st_size, stat.st_mtime_ns


def _image_files(
    folder: Path,
    rows: Sequence[tuple[str, int, int]],
    labels: Iterable[int],
    class_names: Iterable[str],
    source: str,
    tables: Sequence[tuple[str, int, int]] = (),
) -> ImageFiles:
    fingerprint = hashlib.sha256(repr(sorted([*rows, *tables])).encode()).hexdigest()
    paths = tuple(path for path, _, _ in rows)
    return ImageFiles(folder, paths, np.asarray(labels, dtype=np.int64), tuple(class_names), source, fingerprint)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DatasetNotFoundError(f"{path} is missing. Unpack the archive again.")
    return path.read_text(encoding="utf-8").splitlines()


def _tiny_imagenet_source(images_per_class: Sequence[int]) -> str:
    smallest, largest = min(images_per_class), max(images_per_class)
    if len(images_per_class) == 200 and smallest == largest == 500:
        return "Tiny-ImageNet"
    parts = [] if len(images_per_class) == 200 else [f"{len(images_per_class)} classes"]
    parts.append(f"{smallest if smallest == largest else f'{smallest} to {largest}'} images per class")
    return f"Tiny-ImageNet ({', '.join(parts)})"


def _tiny_imagenet_names(words: Sequence[str], wnids: Sequence[str]) -> list[str]:
    synonyms = dict(line.split("\t", 1) for line in words if "\t" in line)
    names = [synonyms.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    counts = Counter(names)
    return [f"{name} ({wnid})" if counts[name] > 1 else name for name, wnid in zip(names, wnids, strict=True)]
