"""Images as people have them: arrays, lists, `ImageDataset`, and whatever gives images with labels one by one or in
batches, such as a DataLoader of PyTorch, or datasets of torchvision or Hugging Face: by behaviour, not by type."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tla_core.datasets import ImageDataset
from tla_core.image_decoding import pixels_of
from tla_core.stored_images import StoredImages
from tla_core.validation import as_labels, check_images

IMAGE_KEYS, LABEL_KEYS = ("image", "img"), ("label", "labels")


@dataclass(frozen=True)
class Given:
    """Checked images (n, c, h, w), uint8 or float32 in [0, 1]; labels (n,), int64; and the class names, if known."""

    images: Tensor | StoredImages
    labels: Tensor
    class_names: tuple[str, ...] | None = None


def given_images(images: Any, labels: Any = None, *, n_classes: int | None = None) -> Given:
    """Check images and labels in any form that people have them in.

    Parameters
    ----------
    images : Tensor, ndarray, list, ImageDataset, or a dataset
        Arrays as of `check_images`; a list of arrays, tensors or PIL images; an `ImageDataset`; a DataLoader, or a
        dataset that gives pairs (image, label), or dictionaries with "image" or "img", and "label" or "labels". Of the
        latter two the images are read once, in their order, into a temporary file.
    labels : Tensor, ndarray or list of int, (n,), optional
        By default those of the dataset.
    n_classes : int, optional
        Labels must be below it.

    Raises
    ------
    TypeError, ValueError
        For anything that is no images or no labels, or if labels are missing.
    """
    names = None
    if isinstance(images, ImageDataset):
        images, dataset_labels, names = images.images, images.labels, images.class_names
    elif isinstance(images, Tensor | np.ndarray | StoredImages) or _is_list_of_arrays(images):
        images, dataset_labels = check_images(images), None
    else:
        names = _class_names(images)
        images, dataset_labels = _read_all(images)
    labels = dataset_labels if labels is None else labels
    if labels is None:
        raise ValueError(
            f"labels are missing: there are {len(images)} images without any. Pass labels, a class number for each"
            " image, or a dataset that gives them."
        )
    return Given(images, as_labels(labels, len(images), n_classes=n_classes), names)


def as_dataset(data: Any) -> ImageDataset:
    """An `ImageDataset` of what gives images with labels; itself, if it is one.

    Raises
    ------
    TypeError, ValueError
        As `given_images`, and for images that are not bytes, or floats that are bytes divided by 255.
    """
    if isinstance(data, ImageDataset):
        return data
    dataset = given_images(data)
    images = dataset.images[:]
    if images.dtype != torch.uint8:
        raise ValueError(
            "a dataset to train on must give bytes, or bytes divided by 255. Got other floats: leave normalisation and"
            " random transforms out of it (the model normalises, tla.wrap(model, mean=..., std=...); settings augment)."
        )
    return ImageDataset(images, dataset.labels, dataset.class_names)


def _is_list_of_arrays(images: Any) -> bool:
    """Lists of pairs or dictionaries are datasets, and those of PIL images are read like them."""
    return isinstance(images, list | tuple) and not (
        len(images) and (isinstance(images[0], Mapping | tuple) or _is_pil(images[0]))
    )


def _is_pil(image: Any) -> bool:
    return hasattr(image, "mode") and hasattr(image, "getbands")


def _class_names(data: Any) -> tuple[str, ...] | None:
    """torchvision's ``classes``, or Hugging Face's ``features``; those of its dataset for a DataLoader."""
    data = getattr(data, "dataset", data) if not hasattr(data, "classes") else data
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        label = next((features[key] for key in LABEL_KEYS if key in features), None)
        names = getattr(label, "names", None)
    else:
        names = getattr(data, "classes", None)
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else None


def _read_all(data: Any) -> tuple[StoredImages, list[int] | None]:
    """The images of a dataset or an iterable of batches, in order, and their labels, unless it gives images alone."""
    stored, labels, has_no_labels = StoredImages(), [], False
    for item in _items(data):
        images, label = _image_and_label(item)
        batch = check_images(_as_batch(images, len(stored)))
        first = stored.shape[1:] or tuple(batch.shape[1:])
        if first[0] == 3 and batch.shape[1] == 1:
            batch = batch.expand(-1, 3, -1, -1)  # grey among colour
        if tuple(batch.shape[1:]) != first:
            sizes = ["x".join(map(str, size)) for size in (first, batch.shape[1:])]
            raise ValueError(
                f"images must all have one size. Got {sizes[0]} for image 0 and {sizes[1]} for image {len(stored)}:"
                " resize or crop them in the dataset's transform, or convert them to one number of channels."
            )
        stored.append(batch)
        has_no_labels = has_no_labels or label is None
        labels += [] if label is None else _numbers(label, len(stored) - 1)
    if not len(stored):
        raise ValueError("images must hold at least one image. Got a dataset that gives none.")
    return stored, None if has_no_labels else labels


def _numbers(label: Any, position: int) -> list[int]:
    """The label of one image, or those of a batch."""
    try:
        return torch.as_tensor(label).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"a dataset must give labels as class numbers. Got {label!r} for image {position}.") from error


def _items(data: Any) -> Iterator[Any]:
    if isinstance(data, Mapping):
        raise TypeError(
            f"images must be one dataset. Got a mapping of {', '.join(map(str, data))}: choose one of them, as in"
            f" data[{next(iter(data), 'test')!r}]."
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes):
        return (data[i] for i in range(len(data)))
    if hasattr(data, "__iter__") and not isinstance(data, str | bytes):
        return iter(data)
    raise TypeError(
        "images must be a tensor, an array, a list of them, an ImageDataset, a DataLoader, or a dataset that gives"
        f" (image, label). Got {type(data).__name__}; a folder of images is tla.load_dataset(PATH, 'test')."
    )


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        if image is None:
            raise ValueError(
                f"a dataset of dictionaries must give {' or '.join(map(repr, IMAGE_KEYS))}, and"
                f" {' or '.join(map(repr, LABEL_KEYS))}. Got {', '.join(map(repr, item))}: rename the columns."
            )
        return image, next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list):
        if len(item) != 2:
            raise ValueError(f"a dataset must give pairs (image, label). Got {len(item)} values.")
        return item[0], item[1]
    return item, None


def _as_batch(images: Any, position: int) -> Any:
    """One image as a batch of one, a tensor; a batch as it is."""
    if _is_pil(images):
        return torch.from_numpy(pixels_of(images).transpose(2, 0, 1).copy())[None]
    if isinstance(images, list | tuple) and len(images) and _is_pil(images[0]):
        return torch.cat([_as_batch(image, position) for image in images])
    if not isinstance(images, Tensor | np.ndarray | list):
        raise TypeError(
            f"a dataset must give images as tensors, arrays or PIL images. Got {type(images).__name__} for image"
            f" {position}."
        )
    if isinstance(images, list):
        return images
    if images.ndim == 2:
        return images[None, None]
    return images[None] if images.ndim == 3 else images
