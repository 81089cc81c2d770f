"""Example images as files, in place of a user's own: photographs if CIFAR-10 is there, otherwise digits."""

import shutil
from pathlib import Path

import torch

from tla_core.datasets import SPLITS, DatasetError, ImageDataset, load_dataset

_SOURCES = ("cifar10-jpeg", "mnist-mini")


def example_image_folder(folder: Path | str, *, n_train: int = 1000, n_test: int = 400) -> Path:
    """Write colour images as PNG files, ``train/<class>/*`` and ``test/<class>/*``, unless the folder is there already.

    Parameters
    ----------
    folder : Path or str
    n_train, n_test : int
        Images of each part at the most, evenly spread over the dataset's classes.

    Returns
    -------
    Path
        The folder. Its images are those of CIFAR-10 where that is found, and otherwise digits of the embedded subset.
    """
    from tla_core.datasets import dataset_root

    folder = Path(folder)
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{folder.name}.unfinished")
    if temporary.exists():  # of an interrupted call, perhaps with other images
        shutil.rmtree(temporary)
    for data, n in zip(_first_found(dataset_root()), (n_train, n_test), strict=True):
        n = min(n, len(data))
        rows_by_class = data.labels.argsort(stable=True)
        for name in data.class_names:
            (temporary / data.split / name).mkdir(parents=True)
        for row in rows_by_class[torch.arange(n) * len(data) // n].tolist():
            _write(data, row, temporary / data.split / data.class_names[data.labels[row]] / f"{row:06d}.png")
    temporary.rename(folder)
    return folder


def _first_found(root: Path) -> list[ImageDataset]:
    """Both splits of the first dataset that has both."""
    for name in _SOURCES[:-1]:
        try:
            return [load_dataset(name, split, root=root) for split in SPLITS]
        except DatasetError:
            continue
    return [load_dataset(_SOURCES[-1], split) for split in SPLITS]


def _write(data: ImageDataset, row: int, path: Path) -> None:
    from PIL import Image  # torchvision's own writer goes away

    image = data.images[row]
    Image.fromarray(image.expand(3, *image.shape[1:]).permute(1, 2, 0).numpy()).save(path)
