"""Opens the images that a user names on the command line."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from analysis.command.arguments import DataOptions
from analysis.command.opening import OpenedModel
from analysis.command.user_code import call_named
from analysis.scales.run_results import run_images
from tla_core.checkpoint import CheckpointError
from tla_core.datasets import DATASET_NAMES, ImageDataset
from tla_core.given import as_dataset
from tla_core.validation import check_images, did_you_mean


def open_data(options: DataOptions, opened: OpenedModel | None = None, *, split: str = "test") -> ImageDataset:
    """Open the images that a user names.

    Parameters
    ----------
    options : DataOptions
        ``data`` is a name that `tla_core.load_dataset` knows; an image folder, to which ``resize`` and ``crop`` apply;
        an ``.npz`` or ``.safetensors`` file of arrays ``images`` and ``labels`` (pickles are refused); or
        ``file.py:function`` or ``package.module:function``, which returns a dataset or (images, labels). None stands
        for those that the run was trained for.
    opened : OpenedModel, optional
        Whose own dataset is the default, if it is a run.
    split : {"test", "train", "holdout"}
        Of what has splits; the third of a run's own dataset only.

    Returns
    -------
    ImageDataset

    Raises
    ------
    ValueError
        If None is given for a model that is no run; if what was named gives no images.
    DatasetError
        If the dataset is missing or damaged.
    """
    from tla_core.datasets import load_dataset

    text = options.data
    if text is None:
        if opened is None or opened.run is None:
            name = "this model" if opened is None else opened.spec
            raise ValueError(f"{name} has no images of its own: name some, --data NAME, FOLDER or FILE.")
        return run_images(opened.run, split)
    if split == "holdout":
        raise ValueError("--split holdout is of a run's own dataset: leave --data out.")
    shape = {"resize": _size("resize", options.resize), "crop": _size("crop", options.crop)}
    path = Path(text).expanduser()
    if text in DATASET_NAMES or path.is_dir():
        return load_dataset(text, split, **shape)
    if shape["resize"] or shape["crop"]:
        raise ValueError(f"--resize and --crop are for image files. Got them for {text}.")
    if path.suffix in (".npz", ".safetensors"):
        return _dataset(_arrays(path), path.name)
    if ":" in text:
        return _dataset(call_named(text), text)
    load = f"{did_you_mean(text, DATASET_NAMES)} Expected {', '.join(DATASET_NAMES)}, an image folder, an .npz or"
    raise ValueError(f"there are no images {text!r}.{load} .safetensors file, or file.py:function.")


def _size(name: str, lengths: tuple[int, ...]) -> int | tuple[int, int] | None:
    if len(lengths) > 2:
        raise ValueError(f"--{name} must be one length or two. Got {len(lengths)}.")
    return lengths[0] if len(lengths) == 1 else (lengths or None)


def _arrays(path: Path) -> tuple[Any, Any]:
    """The images and labels in a file of arrays."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        else:
            arrays = load_file(path)
    except (ValueError, zipfile.BadZipFile, SafetensorError) as error:  # pickled objects are among the first
        raise CheckpointError(
            f"{path} cannot be read: {error}. Expected arrays of numbers, as numpy.savez or safetensors write them."
        ) from error
    if lacking := {"images", "labels"} - set(arrays):
        raise ValueError(
            f"{path} must hold arrays called images and labels. It lacks {', '.join(sorted(lacking))}; it has:"
            f" {', '.join(arrays) or 'nothing'}."
        )
    return arrays["images"], arrays["labels"]


def _dataset(value: Any, name: str) -> ImageDataset:
    """Images and labels, or a dataset of the user's, by the name that it was asked for with."""
    if value is None:
        raise ValueError(f"{name} gives nothing. Expected a dataset, or (images, labels).")
    if isinstance(value, tuple | list) and len(value) == 2 and not isinstance(value[0], tuple | dict):
        images, labels = value
        value = ImageDataset(_as_bytes(images), labels)
    data = as_dataset(value)
    if data.name != "custom":
        return data
    return ImageDataset(data.images, data.labels, data.class_names, name, "", name)


def _as_bytes(images: Any) -> Any:
    """Floats that are bytes divided by 255 as bytes."""
    images = check_images(images)
    if images.dtype == torch.uint8:
        return images
    as_bytes = (images * 255).round().to(torch.uint8)
    if not torch.equal(as_bytes.float() / 255, images):
        raise ValueError(
            "images on the command line must be bytes, or bytes divided by 255. Got other floats: convert them with"
            " (images * 255).round().astype('uint8')."
        )
    return as_bytes
