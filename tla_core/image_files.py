"""Datasets that come as image files: which files belong to a split, and with which labels."""

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tla_core.dataset_files import DatasetError, DatasetNotFoundError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What lies beside images in datasets, and is left out; any other file is refused by name, since it may be an image.
SIDE_SUFFIXES = (
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".html", ".yaml", ".yml", ".db", ".ini", ".log", ".mat",
    ".pkl", ".npy", ".npz", ".py", ".sh",
)  # fmt: skip
# Split -> the folders that may hold it; the first one that is there.
SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
Row = tuple[str, int, int, int, int]  # path, bytes, times of the content and of the inode, inode


@dataclass(frozen=True, repr=False)
class ImageFiles:
    """The image files of one split in order: one path below `folder` and one label each.

    `source` is the provenance shown in results; `fingerprint` changes when a file is added, removed or written to;
    `others` are the files of the other split, if there are any.
    """

    folder: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str
    fingerprint: str
    others: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ImageFiles({self.folder}: {len(self.paths):,} files of {len(self.class_names)} classes)"


def list_image_folder(folder: Path, split: str, *, source: str | None = None) -> ImageFiles:
    """List ``<folder>/<split>/<class>/**``, classes and files sorted by name.

    "test" may be called "val", "valid" or "validation" where there is no folder "test". A folder of classes alone is
    both splits, with a warning. Hidden files, and text and tables beside the images, are left out.

    Raises
    ------
    DatasetNotFoundError
        If the folder or the split is missing.
    DatasetError
        If there are no classes, a class has no images, the other split has other classes, or there is a file that is
        no image or cannot be read.
    """
    expected = "expected an image folder with train/<class>/* and test/<class>/*"
    if not folder.is_dir():
        raise DatasetNotFoundError(f"There is no folder {folder}; {expected}.")
    # The folder of the split, by one of its names.
    name = source or f"{folder.resolve().name} (image folder)"
    split_folders = {
        each: next((f for f in names if (folder / f).is_dir()), None) for each, names in SPLIT_FOLDERS.items()
    }
    other = split_folders["test" if split == "train" else "train"]
    split_folder = split_folders[split]
    if split_folder is None and other is None and any(_has_images(folder / name) for name in os.listdir(folder)):
        message = f"{folder} has no train and test folders: all of its images are taken for either split."
        warnings.warn(f"{message} Never measure on them what was trained on them.", stacklevel=4)
        split_folder, name = "", f"{name}, without splits"
    if split_folder is None:
        raise DatasetNotFoundError(f"There is no folder {folder / split}; {expected}.")
    # Its classes, which the other split must have too.
    classes = _classes_below(folder, split_folder)
    if not classes:
        raise DatasetError(f"{folder / split_folder} is empty: it has no class folders; {expected}.")
    other_classes = {} if other is None else _classes_below(folder, other)
    if other is not None and list(other_classes) != list(classes):
        odd = min(set(other_classes) ^ set(classes))
        raise DatasetError(
            f"{split_folder} and {other} of {folder} have different classes: {odd!r} is in only one of them. "
            "Give both the same class folders."
        )
    for class_name, rows in classes.items():
        if not rows:
            raise DatasetError(
                f"{folder / split_folder / class_name} is empty: it has no images ({', '.join(IMAGE_SUFFIXES)}). "
                "Add some, or remove the class."
            )
    rows = [row for class_rows in classes.values() for row in class_rows]
    labels = np.repeat(np.arange(len(classes)), [len(class_rows) for class_rows in classes.values()])
    other_paths = tuple(row[0] for class_rows in other_classes.values() for row in class_rows)
    return _image_files(folder, rows, labels, classes, name, others=other_paths)


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
    return _image_files(folder, rows, labels, names, source, tables=[_status(folder, table).row for table in tables])


def _classes_below(folder: Path, split: str) -> dict[str, list[Row]]:
    """Class -> its image files, in folders of any depth; an image that lies in no class is refused."""
    classes = {}
    for name, path in _entries(folder, split):
        if _status(folder, path).is_dir:
            classes[name] = _rows_below(folder, path)
        elif split and _is_image(folder, path):
            raise DatasetError(f"{folder / path} lies in no class folder. Move it into one, or remove it.")
    return classes


def _rows_below(folder: Path, subfolder: str, parents: tuple[str, ...] = ()) -> list[Row]:
    """The image files in a folder and in the folders in it, sorted."""
    real_path = os.path.realpath(folder / subfolder)
    if real_path in parents:
        raise DatasetError(f"{folder / subfolder} is a link to a folder that it lies in, a circle. Remove it.")
    rows: list[Row] = []
    for _, path in _entries(folder, subfolder):
        status = _status(folder, path)
        if status.is_dir:
            rows += _rows_below(folder, path, (*parents, real_path))
        elif _is_image(folder, path):
            rows.append(status.row)
    return rows


def _entries(folder: Path, subfolder: str) -> list[tuple[str, str]]:
    """Name and path below the folder of all that is not hidden, sorted."""
    names = sorted(name for name in os.listdir(folder / subfolder) if not name.startswith("."))
    return [(name, f"{subfolder}/{name}" if subfolder else name) for name in names]


@dataclass(frozen=True)
class _Status:
    row: Row
    is_dir: bool


def _status(folder: Path, path: str) -> _Status:
    """What lies there; DatasetError where it is neither a file nor a folder, or cannot be reached."""
    try:
        status = os.stat(folder / path)
    except OSError as error:
        is_link = (folder / path).is_symlink()
        kind = f"a link to {os.readlink(folder / path)}, which cannot be followed" if is_link else "not to be read"
        raise DatasetError(f"{folder / path} is {kind}: {error.strerror}. Mend or remove it.") from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise DatasetError(f"{folder / path} is neither a file nor a folder, but a pipe, socket or device. Remove it.")
    # The time of the inode and its number tell apart files of equal names, sizes and times of their content.
    row = (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return _Status(row, stat.S_ISDIR(status.st_mode))


def _is_image(folder: Path, path: str) -> bool:
    """By its name; DatasetError where the name does not say that it is no image either."""
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES and suffix not in SIDE_SUFFIXES:
        raise DatasetError(
            f"{folder / path} is not named like an image ({', '.join(IMAGE_SUFFIXES)}), nor like a text or table that"
            " is left out. Convert, rename or remove it."
        )
    return suffix in IMAGE_SUFFIXES


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and bool(_image_names(folder))


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DatasetNotFoundError(f"There is no folder {folder}. Unpack the dataset again.")
    return sorted(n for n in os.listdir(folder) if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("."))


def _image_rows(root: Path, subfolder: str) -> list[Row]:
    return [_status(root, f"{subfolder}/{name}").row for name in _image_names(root / subfolder)]


def _image_files(
    folder: Path,
    rows: Sequence[Row],
    labels: Iterable[int],
    class_names: Iterable[str],
    source: str,
    tables: Sequence[Row] = (),
    others: tuple[str, ...] = (),
) -> ImageFiles:
    fingerprint = hashlib.sha256(repr(sorted([*rows, *tables])).encode()).hexdigest()
    paths = tuple(row[0] for row in rows)
    labels = np.asarray(labels, dtype=np.int64)
    return ImageFiles(folder, paths, labels, tuple(class_names), source, fingerprint, others)


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
