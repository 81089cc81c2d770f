"""Readers of datasets that come as arrays: raw MNIST, CIFAR-10's Python version, the embedded mnist-mini.

Each returns uint8 images (n, c, h, w) and labels (n,), and refuses a file whose checksum is not the published one.
"""

import gzip
import hashlib
import io
import math
import pickle
import zlib
from pathlib import Path

import numpy as np

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
MNIST_MINI_FILE = Path(__file__).with_name("data") / "mnist-mini.npz"
MNIST_MINI_SHA256 = "2b44d8d27054cf29aff895b66c5a0b1173565beef36a0456239cca72ea585168"


class DatasetError(ValueError):
    """A dataset is missing, incomplete, damaged or inconsistent; the message says what to do."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """A dataset, or one of its files, is not where it was looked for."""


def read_mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one split of raw MNIST.

    Parameters
    ----------
    folder : Path
        Holds the four files ``*-ubyte`` (torchvision's ``MNIST/raw``), each as it is or with ``.gz`` appended.
    split : {"train", "test"}

    Returns
    -------
    images : ndarray of uint8, shape (n, 1, 28, 28)
    labels : ndarray of uint8, shape (n,)

    Raises
    ------
    DatasetNotFoundError
        If a file is missing.
    DatasetError
        If a file is truncated or does not have its official MD5 sum.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte")
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte")
    return images[:, None], labels


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, type 8, the number of dimensions, big-endian sizes, values."""
    compressed = path.with_name(path.name + ".gz")
    if path.is_file():
        content = path.read_bytes()
    elif compressed.is_file():
        try:
            content = gzip.decompress(compressed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(f"{compressed} cannot be unpacked: {error}. {_again(path.parent)}") from error
    else:
        raise DatasetNotFoundError(f"{path} is missing, and so is {compressed.name}. {_again(path.parent)}")
    if content[:3] != b"\0\0\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise DatasetError(
            f"{path} is not an IDX file of bytes: it starts with {content[:4].hex()!r}. {_again(path.parent)}"
        )
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(content) != start + math.prod(shape):
        raise DatasetError(
            f"{path} is truncated or too long: it has {len(content):,} bytes, and its header promises "
            f"{start + math.prod(shape):,}. {_again(path.parent)}"
        )
    _check_md5(path, content, MNIST_MD5[path.name])
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_cifar10(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one split of CIFAR-10's Python version.

    Parameters
    ----------
    folder : Path
        Holds the batch files (torchvision's ``cifar-10-batches-py``).
    split : {"train", "test"}

    Returns
    -------
    images : ndarray of uint8, shape (n, 3, 32, 32)
    labels : ndarray of int64, shape (n,)

    Raises
    ------
    DatasetNotFoundError
        If a batch is missing.
    DatasetError
        If a batch does not have its official MD5 sum, or holds anything but arrays, text and containers.

    Notes
    -----
    The batches are pickles, which can run any code when they are read. So the MD5 sum is compared first, and then only
    what rebuilds a numpy array is let through.
    """
    images, labels = [], []
    for name in (name for name in CIFAR10_MD5 if name.startswith("data" if split == "train" else "test")):
        path = folder / name
        if not path.is_file():
            raise DatasetNotFoundError(f"{path} is missing. {_again(folder)}")
        content = path.read_bytes()
        _check_md5(path, content, CIFAR10_MD5[name])
        try:
            # The official batches were written by Python 2, whose strings numpy expects as latin1.
            batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
            images.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch["labels"], dtype=np.int64))
        except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
            raise DatasetError(f"{path} does not hold a CIFAR-10 batch: {error}. {_again(path.parent)}") from error
    return np.concatenate(images), np.concatenate(labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuild numpy arrays; bytes, text, lists and dictionaries need no class."""

    def find_class(self, module: str, name: str):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        # numpy 2 moved numpy.core, which files written earlier still name.
        if (module, name) in {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}:
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are expected")


def read_mnist_mini(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one split of the embedded MNIST subset (see ``data/README.md``).

    Parameters
    ----------
    split : {"train", "test"}

    Returns
    -------
    images : ndarray of uint8, shape (5000, 1, 28, 28)
    labels : ndarray of uint8, shape (5000,)

    Raises
    ------
    DatasetNotFoundError, DatasetError
        If the embedded file is missing or changed.
    """
    if not MNIST_MINI_FILE.is_file():
        raise DatasetNotFoundError(f"{MNIST_MINI_FILE} is missing from the installation. Install tla-toolkit again.")
    content = MNIST_MINI_FILE.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != MNIST_MINI_SHA256:
        raise DatasetError(
            f"{MNIST_MINI_FILE} is damaged: got sha256 {checksum}, expected {MNIST_MINI_SHA256}. "
            "Install tla-toolkit again, or check the file out again."
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _check_md5(path: Path, content: bytes, expected: str) -> None:
    checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if checksum != expected:
        difference = f"got MD5 {checksum}, expected {expected}"
        raise DatasetError(f"{path} has a wrong checksum: {difference}. {_again(path.parent)}")


def _again(folder: Path) -> str:
    return f"Delete the folder {folder} and get the dataset again (download=True, or by hand)."
