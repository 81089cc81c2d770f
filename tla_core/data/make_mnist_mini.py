"""Make mnist-mini.npz from the complete MNIST: ``python tla_core/data/make_mnist_mini.py ROOT [OUTPUT]``.

ROOT holds ``MNIST/raw``. Of each digit, 500 training and 500 test images at evenly spaced positions among that digit's
images are kept, in the official order. There is no randomness, and the same bytes come out each time.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from tla_core.dataset_files import MNIST_MINI_FILE
from tla_core.datasets import load_dataset

IMAGES_PER_DIGIT = 500


def evenly_spaced(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the sorted indices of `count` images of each label, evenly spaced among the images of that label."""
    rows = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        rows.append(positions[np.arange(count) * len(positions) // count])
    return np.sort(np.concatenate(rows))


def make_mnist_mini(root: Path, output: Path) -> str:
    """Write the subset of the MNIST under `root` to `output`, and return the file's sha256."""
    arrays = {}
    for split in ("train", "test"):
        dataset = load_dataset("mnist", split, root=root)
        labels = dataset.labels.numpy().astype(np.uint8)
        chosen = evenly_spaced(labels, IMAGES_PER_DIGIT)
        arrays[f"{split}_images"] = dataset.images.numpy()[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez_compressed(output, **arrays)
    return hashlib.sha256(output.read_bytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("output", type=Path, nargs="?", default=MNIST_MINI_FILE)
    arguments = parser.parse_args()
    print("sha256", make_mnist_mini(arguments.root, arguments.output))
