"""Where datasets lie, which copy is taken in place of a missing one, and the downloads of three of them."""

import os
import tempfile
from http.client import HTTPException
from pathlib import Path

from tla_core.dataset_files import DatasetError
from tla_core.decoded_cache import user_cache_folder
from tla_core.validation import did_you_mean

FOLDERS = {
    "mnist": "MNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar10-jpeg": "cifar10-jpeg",
    "tiny-imagenet": "tiny-imagenet-200",
}
# Dataset -> another copy of the same photographs, from other files: pixels and order differ.
OTHER_COPIES = {"cifar10-jpeg": "cifar10"}
ARCHIVES = {
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "tiny-imagenet": ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
}
BY_HAND = {
    "mnist": "get the four files train-/t10k-images-idx3-ubyte.gz and -labels-idx1-ubyte.gz",
    "cifar10": f"unpack {ARCHIVES['cifar10'][0]}",
    "tiny-imagenet": f"unpack {ARCHIVES['tiny-imagenet'][0]}",
}


def dataset_root(root: str | os.PathLike | None = None) -> Path:
    """Return the folder where datasets lie: `root`, else ``$TLA_DATA``, else the user's cache ``~/.cache/tla``."""
    root = root or os.environ.get("TLA_DATA")
    return Path(root).expanduser() if root else user_cache_folder()


def other_copy(name: str, root: str | os.PathLike | None = None) -> str | None:
    """The dataset that `load_dataset` takes in place of one that is not there: ``cifar10`` for ``cifar10-jpeg``.

    Parameters
    ----------
    name : str
    root : path, optional
        See `dataset_root`.

    Returns
    -------
    str or None
        None if the dataset is there, if it has no other copy, or if that is not there either.
    """
    other = OTHER_COPIES.get(name)
    folder = dataset_root(root)
    if other is None or (folder / FOLDERS[name]).is_dir() or not (folder / FOLDERS[other]).is_dir():
        return None
    return other


def download_dataset(name: str, root: str | os.PathLike | None = None) -> Path:
    """Download a dataset, unless its folder is there already.

    Parameters
    ----------
    name : {"mnist", "cifar10", "tiny-imagenet"}
        The first two as torchvision gets them, the third from its official archive; checksums are verified.
    root : path, optional
        See `dataset_root`.

    Returns
    -------
    Path
        The dataset's folder. It appears only once it is complete.

    Raises
    ------
    DatasetError
        If this dataset cannot be downloaded, or the download failed; the message says what to put where by hand.
    """
    folder = dataset_root(root) / FOLDERS.get(name, "")
    if name not in BY_HAND:
        near = "" if name in FOLDERS else did_you_mean(name, BY_HAND)
        raise DatasetError(f"{name} cannot be downloaded; only {', '.join(BY_HAND)} can.{near} {remedy(name)}")
    if folder.is_dir():
        return folder
    from torchvision.datasets import MNIST  # torchvision takes seconds to import
    from torchvision.datasets.utils import download_and_extract_archive

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as temporary:
        try:
            if name == "mnist":
                MNIST(temporary, download=True)
            else:
                url, md5 = ARCHIVES[name]
                download_and_extract_archive(url, temporary, md5=md5)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split())  # torchvision's spans several lines
            raise DatasetError(
                f"Downloading {name} failed: {reason}. Without a network, {BY_HAND[name]} by hand, so that "
                f"the files lie in {folder}."
            ) from error
        try:
            os.replace(Path(temporary, FOLDERS[name]), folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def remedy(name: str) -> str:
    """Say in a sentence how to get a dataset that is missing."""
    if name not in FOLDERS:
        return "An image folder needs only its path; mnist-mini comes with the package."
    elsewhere = f"where it lies elsewhere, set TLA_DATA (or root=...) to the folder that holds {FOLDERS[name]}/"
    if name in BY_HAND:
        return f"`tla data get {name}` (or download=True) downloads it; {elsewhere}."
    return (
        "`tla data get cifar10` downloads the official files, cifar10, which are taken in its place; an image folder"
        f" cifar10-jpeg/{{train,test}}/<class>/* is taken too; {elsewhere}."
    )
