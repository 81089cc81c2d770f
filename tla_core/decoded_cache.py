"""A folder of decoded images, so that JPEG files are decoded once and memory-mapped afterwards.

An entry is a folder ``<user cache>/decoded/<key>/`` with ``images.npy`` and the sidecar ``entry.json``. It is made in a
temporary folder beside and renamed, so that a half-written entry is never seen; it is used only if its source files
have not changed since and its arrays still have the checksum they were stored with.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

FORMAT_VERSION = 1
RENAME_ATTEMPTS = 5

logger = logging.getLogger(__name__)


def user_cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/tla``, or ``~/.cache/tla`` where that variable is not set."""
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "tla"


def dataset_checksum(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Return the sha256 that identifies a dataset's content.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, c, h, w)
    labels : ndarray of int64, shape (n,)
    class_names : sequence of str

    Returns
    -------
    str
        64 hexadecimal digits over the shape, the images, the labels and the class names.
    """
    digest = hashlib.sha256(json.dumps([list(images.shape), list(class_names)]).encode())
    digest.update(np.ascontiguousarray(images).reshape(-1).view(np.uint8).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def load_or_decode(
    key: str,
    *,
    fingerprint: str,
    labels: np.ndarray,
    class_names: Sequence[str],
    source: str,
    decode: Callable[[], np.ndarray],
) -> tuple[np.ndarray, str]:
    """Return the images stored under `key`, or decode and store them.

    Parameters
    ----------
    key : str
        Name of the entry's folder: one per source folder and split.
    fingerprint : str
        Hash of the source listing; an entry with another one is replaced.
    labels, class_names, source
        What belongs to the images: labels and class names enter the checksum, class names and source the sidecar.
    decode : callable
        Called without arguments where no valid entry exists; returns uint8 images (n, c, h, w).

    Returns
    -------
    images : ndarray of uint8, shape (n, c, h, w)
        Memory-mapped copy-on-write where the entry existed: writing to it never changes the file.
    checksum : str
        See `dataset_checksum`.

    Notes
    -----
    A damaged entry is decoded again with a logged warning, and a cache that cannot be written to is only warned
    about: neither makes loading fail. Processes that decode the same images at once do not disturb each other.
    """
    folder = user_cache_folder() / "decoded" / key

    def read(log_level: int) -> tuple[np.ndarray, str] | None:
        return _read_entry(folder, fingerprint, labels, class_names, log_level)

    entry = read(logging.WARNING)
    if entry is not None:
        return entry
    images = decode()
    checksum = dataset_checksum(images, labels, class_names)
    sidecar = {
        "format_version": FORMAT_VERSION,
        "sha256": checksum,
        "fingerprint": fingerprint,
        "shape": list(images.shape),
        "class_names": list(class_names),
        "source": source,
    }
    try:
        _write_entry(folder, images, sidecar, is_valid=lambda: read(logging.DEBUG) is not None)
    except OSError as error:
        logger.warning("Decoded images could not be stored in %s, so the next load decodes again: %s", folder, error)
    return images, checksum


def _read_entry(
    folder: Path, fingerprint: str, labels: np.ndarray, class_names: Sequence[str], log_level: int
) -> tuple[np.ndarray, str] | None:
    if not folder.is_dir():
        return None
    try:
        sidecar = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        if sidecar["format_version"] != FORMAT_VERSION or sidecar["fingerprint"] != fingerprint:
            return None
        # torch.from_numpy warns on a read-only map; a copy-on-write one is writable and leaves the file alone.
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        expected, checksum = sidecar["sha256"], dataset_checksum(images, labels, class_names)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        logger.log(log_level, "Decoded images in %s cannot be read and are decoded again: %s", folder, error)
        return None
    if checksum != expected:
        message = "Decoded images in %s are damaged and are decoded again: got checksum %s, expected %s"
        logger.log(log_level, message, folder, checksum, expected)
        return None
    return images, checksum


def _write_entry(folder: Path, images: np.ndarray, sidecar: dict, is_valid: Callable[[], bool]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Cleaning up may fail on Windows, where another process may still have the outdated arrays mapped.
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        fresh = Path(temporary, "fresh")
        fresh.mkdir()
        with open(fresh / "images.npy", "wb") as file:
            np.save(file, images, allow_pickle=False)
            _flush(file)
        with open(fresh / "entry.json", "w", encoding="utf-8") as file:
            json.dump(sidecar, file, indent=1)
            _flush(file)
        for attempt in range(RENAME_ATTEMPTS):
            try:
                os.replace(fresh, folder)
                return
            except OSError:
                # The folder is there already: another process was faster, or its content is outdated or damaged.
                if is_valid():
                    return
                if attempt == RENAME_ATTEMPTS - 1:
                    raise
            with contextlib.suppress(FileNotFoundError):  # another process may have moved it aside meanwhile
                os.replace(folder, Path(temporary, f"outdated-{attempt}"))


def _flush(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
