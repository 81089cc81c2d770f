"""Fixtures that several test files share."""

import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

import pytest

from tla_core.decoded_cache import user_cache_folder

ARCHIVES_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
# archive -> (where to unpack it below the root, what is there afterwards)
ARCHIVES = {
    "mnist-raw.tar.gz": (".", "MNIST"),
    "cifar10-images.tar.gz": ("cifar10-jpeg", "cifar10-jpeg"),
    "tiny-imagenet-200-subset.tar.gz": (".", "tiny-imagenet-200"),
}


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Folder with MNIST/raw, cifar10-jpeg and tiny-imagenet-200: TLA_DATA, or the archives unpacked once."""
    if given := os.environ.get("TLA_DATA"):
        missing = [name for _, name in ARCHIVES.values() if not Path(given, name).is_dir()]
        if missing:
            pytest.skip(f"TLA_DATA={given} has no {', '.join(missing)}")
        return Path(given)
    root = user_cache_folder()
    if all((root / name).is_dir() for _, name in ARCHIVES.values()):
        return root
    if not (ARCHIVES_FOLDER / "SHA256SUMS").is_file():
        pytest.skip(f"no real data: TLA_DATA is not set, and there is no {ARCHIVES_FOLDER}")
    lines = (ARCHIVES_FOLDER / "SHA256SUMS").read_text().splitlines()
    checksums = {name: checksum for checksum, name in (line.split() for line in lines)}
    root.mkdir(parents=True, exist_ok=True)
    for archive, (below, name) in ARCHIVES.items():
        if not (root / name).is_dir():
            _unpack(ARCHIVES_FOLDER / archive, checksums[archive], root, below, name)
    return root


def _unpack(archive: Path, checksum: str, root: Path, below: str, name: str) -> None:
    if not archive.is_file():
        pytest.skip(f"no real data: {archive} is missing")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != checksum:
        pytest.skip(f"{archive} is damaged: got sha256 {found}, expected {checksum}")
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as temporary:
        with tarfile.open(archive) as file:
            file.extractall(Path(temporary, below), filter="data")
        try:
            os.replace(Path(temporary, name), root / name)
        except OSError:
            assert (root / name).is_dir(), "another process unpacked it meanwhile, or it could not be renamed"
