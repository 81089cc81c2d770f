"""Datasets as uint8 tensors: MNIST, CIFAR-10, Tiny-ImageNet, any image folder, and an embedded MNIST subset."""

import hashlib
import os
import warnings
from dataclasses import InitVar, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tla_core.dataset_download import FOLDERS, dataset_root, download_dataset, other_copy, remedy
from tla_core.dataset_files import (
    CIFAR10_CLASSES,
    DIGITS,
    DatasetError,
    DatasetNotFoundError,
    read_cifar10,
    read_mnist,
    read_mnist_mini,
)
from tla_core.decoded_cache import dataset_checksum, load_or_decode
from tla_core.image_decoding import DECODING, Shape, check_other_split, decode_images
from tla_core.image_files import ImageFiles, list_image_folder, list_tiny_imagenet
from tla_core.validation import as_class_names, as_labels, check_images, did_you_mean

__all__ = [
    "DATASET_NAMES",
    "SPLITS",
    "DatasetError",
    "DatasetNotFoundError",
    "ImageDataset",
    "dataset_root",
    "download_dataset",
    "load_dataset",
]

SPLITS = ("train", "test")
DATASET_NAMES = ("mnist-mini", *FOLDERS)
# Datasets that `name_dataset` has named in this process: name -> split -> images.
_NAMED: dict[str, dict[str, "ImageDataset"]] = {}


@dataclass(frozen=True, repr=False, eq=False)
class ImageDataset:
    """Images and labels of one split, on the CPU.

    Parameters
    ----------
    images : Tensor, ndarray or list of uint8, shape (n, c, h, w)
        Values 0..255. Not copied where that can be avoided, and not meant to be written to. An array (n, h, w, c) is
        taken for what it is, see `check_images`.
    labels : Tensor, ndarray or list of integers, shape (n,)
        0..k-1 for k classes.
    class_names : sequence of str, or dict of int to str, optional
        One name per class; by default the digits of 0..max(labels).
    name, split : str
        Where the images come from, as `load_dataset` calls it.
    source : str
        Provenance shown in results, such as "CIFAR-10 (JPEG)"; by default `name`.
    known_checksum : str, optional
        `checksum`, where the caller has computed it already.

    Raises
    ------
    TypeError
        If images are not uint8, or labels are not integers.
    DatasetError
        If a shape is wrong, there are no images, or a label is out of range.

    Examples
    --------
    >>> ImageDataset(np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 1, 0, 1]), ("cat", "dog"), name="pets")
    ImageDataset(pets: 4 images 3x8x8, 2 classes)
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...] | None = None
    name: str = "custom"
    split: str = ""
    source: str = ""
    known_checksum: InitVar[str | None] = None

    def __post_init__(self, known_checksum: str | None) -> None:
        try:
            images = check_images(self.images)
            names = None if self.class_names is None else as_class_names(self.class_names)
            labels = as_labels(self.labels, len(images), n_classes=None if names is None else len(names))
        except ValueError as error:
            raise DatasetError(f"{self.name} {self.split}".strip() + f": {error}") from error
        if images.dtype != torch.uint8:
            raise TypeError(
                f"images of an ImageDataset must be uint8. Got {images.dtype}; convert values in [0, 1] with "
                "(images * 255).round().astype('uint8'), or .to(torch.uint8) for a tensor."
            )
        if 0 in images.shape:
            raise DatasetError(f"{self.name}: there must be at least one image. Got the shape {tuple(images.shape)}.")
        values = {
            "images": images.cpu().contiguous(),
            "labels": labels.cpu().contiguous(),
            "class_names": names or tuple(str(label) for label in range(int(labels.max()) + 1)),
            "source": self.source or self.name,
            "_checksum": known_checksum,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        origin = "" if self.source == self.name else f", from {self.source}"
        title = f"{self.name} {self.split}".strip()
        return f"ImageDataset({title}: {len(self):,} images {shape}, {len(self.class_names)} classes{origin})"

    @property
    def checksum(self) -> str:
        """sha256 over images, labels and class names: 64 hexadecimal digits, computed when first asked for."""
        if self._checksum is None:
            checksum = dataset_checksum(self.images.numpy(), self.labels.numpy(), self.class_names)
            object.__setattr__(self, "_checksum", checksum)
        return self._checksum

    def subset(self, indices) -> "ImageDataset":
        """Return a copy of some of the images.

        Parameters
        ----------
        indices : sequence, ndarray or Tensor of int, shape (m,); or of bool, shape (n,)
            Positions in 0..n-1, in the wanted order, or a mask.

        Returns
        -------
        ImageDataset
            With the same classes; its `source` says how many images of how many it has.

        Raises
        ------
        IndexError
            If an index is outside 0..n-1, or a mask has another length.
        DatasetError
            If no image is left.
        """
        rows = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"A mask must have the shape ({len(self)},). Got {rows.shape}.")
            rows = rows.nonzero()[0]
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise IndexError(f"indices must be a list of integers or a mask. Got {rows.dtype} {rows.shape}.")
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"indices must be in 0..{len(self) - 1}. Got indices from {rows.min()} to {rows.max()}.")
        rows = torch.from_numpy(rows.astype(np.int64))
        source = f"{self.source}, {len(rows):,} of {len(self):,} images"
        images, labels = self.images[rows], self.labels[rows]
        return ImageDataset(images, labels, self.class_names, self.name, self.split, source)


def name_dataset(name: str, train: ImageDataset, test: ImageDataset) -> str:
    """Let `load_dataset` know images in memory by a name, in this process.

    Parameters
    ----------
    name : str
    train, test : ImageDataset
        Of the same classes, images of one size.

    Returns
    -------
    str
        The name with a digest of the images behind it: other images are another dataset, for runs and their results.

    Raises
    ------
    DatasetError
        If the two do not belong together, or are the same images.
    """
    shapes = [(tuple(part.images.shape[1:]), part.class_names) for part in (train, test)]
    if shapes[0] != shapes[1] or train.checksum == test.checksum:
        raise DatasetError(
            f"{name}: train and test must be other images of one size, of the same classes. Got {train} and {test}."
        )
    digest = hashlib.sha256(f"{train.checksum}{test.checksum}".encode()).hexdigest()[:8]
    full_name = f"{name}-{digest}"
    _NAMED[full_name] = {
        split: ImageDataset(part.images, part.labels, part.class_names, full_name, split, name, part.checksum)
        for split, part in zip(SPLITS, (train, test), strict=True)
    }
    return full_name


def is_named(name: str) -> bool:
    """Whether images are known by this name, which `name_dataset` returned."""
    return name in _NAMED


def load_dataset(
    name: str | os.PathLike, split: str, *, root: str | os.PathLike | None = None, download: bool = False,
    resize: int | tuple[int, int] | None = None, crop: int | tuple[int, int] | None = None,
) -> ImageDataset:  # fmt: skip
    """Load one split of a dataset.

    Parameters
    ----------
    name : str or path
        "mnist-mini" (embedded: 5,000 + 5,000 images), "mnist", "cifar10" (the official Python version),
        "cifar10-jpeg" (an image folder of that name under the root; where it is not there and "cifar10" is, that, with
        a warning), "tiny-imagenet", or the path of an image folder ``train/<class>/*``, ``test/<class>/*``. "test" may
        be called "val" or "validation"; a folder of classes alone is both splits, with a warning.
    split : {"train", "test"}
        For "tiny-imagenet", "test" are the 10,000 official validation images, since the labels of the official test
        images are not public.
    root : path, optional
        Where datasets lie; see `dataset_root`. The embedded subset and paths do not use it.
    download : bool
        Whether to download a missing dataset; see `download_dataset`. Nothing is downloaded otherwise.
    resize, crop : int or (height, width), optional
        Of image files: first the length of the shorter side, or both, then what is cut out of the middle.

    Returns
    -------
    ImageDataset
        uint8 images (n, c, h, w) and int64 labels (n,) on the CPU. Its `name` and `source` are those of the images that
        were loaded.

    Raises
    ------
    ValueError
        For an unknown name or split.
    DatasetNotFoundError
        If files are missing.
    DatasetError
        If files are truncated, damaged or inconsistent.

    Notes
    -----
    Image files are decoded once: the arrays are kept under the user's cache folder, checked against their checksum
    at each load, and decoded again when a source file has changed. They are turned as their Exif orientation says, what
    is transparent shows white, and of 16 bits the upper eight are kept. Greyscale images are converted to RGB, unless
    all images of the split are greyscale (c = 1). Folders in a class folder belong to the class; a file that is not
    named like an image, a text or a table is refused.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Expected one of {', '.join(SPLITS)}.")
    name = os.fspath(name)
    shape = Shape(resize, crop)
    if shape and name in DATASET_NAMES and name not in ("cifar10-jpeg", "tiny-imagenet"):
        raise ValueError(f"resize and crop are for image files. Got them for {name}, whose images have one size.")
    # What needs no dataset on disk, and folders of images.
    if is_named(name):
        return _NAMED[name][split]
    if name == "mnist-mini":
        images, labels = read_mnist_mini(split)
        return ImageDataset(images, labels, DIGITS, name, split, "MNIST (5,000 + 5,000 subset)")
    if name not in DATASET_NAMES:
        return _from_files(list_image_folder(_named_folder(name), split), name, split, shape)

    # Another copy of the images, or a download, where the dataset is not there.
    folder = dataset_root(root) / FOLDERS[name]
    if other := other_copy(name, root):
        data = load_dataset(other, split, root=root, resize=resize, crop=crop)
        message = f"{name} is not at {folder}: {data.source} ({other}), another copy of it, is taken in its place."
        warnings.warn(message, stacklevel=2)
        return data
    if not folder.is_dir():
        if not download:
            raise DatasetNotFoundError(f"{name} is not at {folder}. {remedy(name)}")
        download_dataset(name, root)
    # The reader of each dataset.
    if name == "mnist":
        return ImageDataset(*read_mnist(folder, split), DIGITS, name, split, "MNIST")
    if name == "cifar10":
        return ImageDataset(*read_cifar10(folder, split), CIFAR10_CLASSES, name, split, "CIFAR-10")
    if name == "cifar10-jpeg":
        return _from_files(list_image_folder(folder, split, source="CIFAR-10 (JPEG)"), name, split, shape)
    return _from_files(list_tiny_imagenet(folder, split), name, split, shape)


def _from_files(files: ImageFiles, name: str, split: str, shape: Shape) -> ImageDataset:
    location = hashlib.sha256(str(files.folder.resolve()).encode()).hexdigest()[:12]
    shaped = f"-{hashlib.sha256(repr(shape).encode()).hexdigest()[:6]}" if shape else ""

    def decode() -> np.ndarray:
        images = decode_images(files.folder, files.paths, shape=shape, source=files.source)
        check_other_split(images, files.folder, files.paths[0], files.others, shape)
        return images

    images, checksum = load_or_decode(
        f"{files.folder.resolve().name}-{split}-{location}{shaped}",
        fingerprint=f"{files.fingerprint}, decoding {DECODING}",
        labels=files.labels,
        class_names=files.class_names,
        source=files.source,
        decode=decode,
    )
    # As a tensor: of an array 4 pixels wide it would have to be asked where its channels are.
    images = torch.from_numpy(images)
    return ImageDataset(images, files.labels, files.class_names, name, split, files.source, checksum)


def _named_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or len(folder.parts) > 1:
        raise DatasetNotFoundError(
            f"There is no folder {folder}; expected an image folder with train/<class>/* and "
            "test/<class>/*, which cannot be downloaded."
        )
    near = did_you_mean(name, DATASET_NAMES)
    raise ValueError(
        f"Unknown dataset {name!r}.{near} Expected one of {', '.join(DATASET_NAMES)}, or the path of an image folder."
    )
