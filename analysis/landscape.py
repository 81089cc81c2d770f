"""Loss landscapes: the cross-entropy over a plane through an image, or through the weights of a model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from analysis.landscape_directions import (
    filter_directions,
    given_filter_directions,
    image_directions,
    seeded_generator,
)
from analysis.loss_grid import LossGrid
from analysis.stored import load_groups, save_groups
from tla_core.chunks import forward_in_chunks, images_at_once
from tla_core.folding import folded_if_equal
from tla_core.given import given_images
from tla_core.layers import model_device
from tla_core.modes import attack_mode, copy_of
from tla_core.runtime import full_precision
from tla_core.validation import as_images, as_labels, check_number, check_whole, scale_images
from tla_core.wrapping import as_classifier

# On a GPU points of so many pixels are made and forwarded at once, 1024 of 32 x 32: the 160 channels of the published
# wide residual network take 0.7 GB then. On a CPU `images_at_once` says what stays in the cache.
GPU_BLOCK_PIXELS = 1024 * 32 * 32


@dataclass(frozen=True, eq=False, repr=False)
class Landscape(LossGrid):
    """The loss over a plane: that of the point ``centre + axis[i] * directions[0] + axis[j] * directions[1]``.

    Attributes
    ----------
    loss : ndarray, (resolution, resolution), float32
        ``loss[i, j]``, a cross-entropy of 0 or more; NaN or infinity where the model's output is.
    axis : ndarray, (resolution,), float64
        From -radius to radius, symmetric; exactly 0 in the middle of an odd resolution.
    directions : ndarray, (2, c, h, w), float32, or dict of str to ndarray, (2, ...)
        Of an image; or of each parameter of a model, by its name.
    centre_loss : float
        At the image, or the weights, itself; computed for an even resolution too.
    space : {"input", "weights"}
        The axis is in pixel units, or in norms of the filters.
    params : dict
        What it was made with: JSON values.
    """

    loss: np.ndarray
    axis: np.ndarray
    directions: np.ndarray | dict[str, np.ndarray]
    centre_loss: float
    space: str
    params: dict[str, Any]

    def __repr__(self) -> str:
        low, high = self.range
        n_broken = int((~np.isfinite(self.loss)).sum())
        broken_words = f", NaN or infinity at {n_broken} of {self.loss.size} points" if n_broken else ""
        return (
            f"Landscape({self.space}, {len(self.axis)} x {len(self.axis)} points, radius {self.axis[-1]:.4g}, loss"
            f" {self.centre_loss:.4g} at the centre, {low:.4g} to {high:.4g} over the grid{broken_words})"
        )


def input_landscape(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: int | Tensor | np.ndarray,
    *,
    radius: float,
    resolution: int,
    directions: Sequence[Tensor | np.ndarray] | np.ndarray | Tensor | str | None = None,
    random_state: int = 0,
    progress: bool = False,
) -> Landscape:
    """The loss around one image: ``loss[i, j]`` at ``x + axis[i] * directions[0] + axis[j] * directions[1]``.

    Parameters
    ----------
    model : nn.Module
        Any classifier of images in [0, 1]; see `tla_core.wrap`. Run in eval mode and left as it was found.
    x : Tensor or ndarray, (c, h, w)
        uint8, or float32 in [0, 1]. The points around it are not clipped to [0, 1].
    y : int
        Its true class.
    radius : float
        Above 0, in pixel units: black to white is 1. The paper's figure does not state its own.
    resolution : int
        Points along each axis, 2 or more; an odd one has the image itself in its middle.
    directions : pair of arrays (c, h, w), or "gradient", optional
        None: two random ones, Gaussian and scaled so that the largest absolute value is 1. They depend on the shape of
        `x` and `random_state` alone, so that models can be compared in one plane. "gradient": direction 0 is the sign
        of the loss gradient at `x` under this model, the step of FGSM; direction 1 has random signs, the same for every
        model. A pair is used as it is given.
    random_state : int
    progress : bool
        Show a progress bar.

    Returns
    -------
    Landscape

    Raises
    ------
    TypeError, ValueError
        For a bad image, class, radius, resolution or direction, or a model that does not return logits.

    Notes
    -----
    The grid is never held as a whole: on a CPU points of about 96 images of 32 x 32 at once, on a GPU of 1024. Batch
    norm is folded into the convolutions where this leaves the output equal up to rounding.

    Examples
    --------
    >>> input_landscape(model, images[0], labels[0], radius=2 * 8 / 255, resolution=201)  # doctest: +SKIP
    """
    # Checks.
    axis = _axis(radius, resolution)
    device = model_device(model)
    image, label = _one_image(x, device), _one_label(y, device)
    model = as_classifier(model, image[None], label)
    _warn_if_training(model)
    with attack_mode(model), full_precision(device), torch.no_grad():
        # The plane, and the loss at its points, block by block.
        plane, kind = image_directions(directions, model, image, label, seeded_generator(random_state))
        ticks = torch.tensor(axis, dtype=torch.float32, device=device)
        coefficients = torch.cartesian_prod(ticks, ticks)

        def points_at(block: Tensor) -> Tensor:
            return torch.addmm(image.flatten(), block, plane.flatten(1)).view(-1, *image.shape)

        network = folded_if_equal(model, points_at(coefficients[:: max(len(coefficients) // 32, 1)]))
        losses = []
        with tqdm(total=len(coefficients), unit="point", disable=not progress, desc="landscape") as bar:
            for block in coefficients.split(_points_at_once(image, len(coefficients))):
                losses.append(_losses(network, points_at(block), label))
                bar.update(len(block))
        centre_loss = _losses(network, image[None], label).item()
    loss = torch.cat(losses).view(resolution, resolution).cpu().numpy()
    params = {
        "directions": kind, "random_state": random_state, "radius": float(radius), "resolution": resolution,
        "label": int(label),
    }  # fmt: skip
    return Landscape(loss, axis, plane.cpu().numpy(), centre_loss, "input", params)


def weight_landscape(
    model: nn.Module,
    images: Any,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    radius: float = 1.0,
    resolution: int,
    directions: Sequence[Mapping[str, Tensor | np.ndarray]] | None = None,
    random_state: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Landscape:
    """The mean loss over images, around a model's weights: at ``weights + axis[i] * d[0] + axis[j] * d[1]``.

    Parameters
    ----------
    model : nn.Module
        Any classifier of images in [0, 1]; see `tla_core.wrap`. A copy is moved, in eval mode: batch norm keeps its
        running statistics. Parameters move, also those that weights are computed from, as with weight norm.
    images : Tensor, ndarray, list, ImageDataset or a dataset, (n, c, h, w)
        uint8, or floats in [0, 1]; a DataLoader or dataset of images with labels too: see `tla_core.evaluate`.
    labels : Tensor, ndarray or list of int, (n,), optional
        True classes; by default those of the dataset.
    radius : float
        Above 0, in norms of the filters: at 1 a filter has moved by its own length.
    resolution : int
        Points along each axis, 2 or more; an odd one has the weights themselves in its middle.
    directions : pair of mappings of str to array, optional
        Parameter name, as in ``model.named_parameters()``, -> array of its shape; a parameter that is left out does not
        move. None: `filter_directions` of the model.
    random_state : int
        Of `filter_directions`.
    batch_size : int
        Images forwarded at once; changes nothing but speed and memory.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Landscape

    Raises
    ------
    TypeError, ValueError
        For bad images, labels, radius, resolution, batch size or directions, or a model that does not return logits.

    Notes
    -----
    Each of the resolution x resolution points costs one pass over the images.
    """
    # Checks.
    axis = _axis(radius, resolution)
    data = given_images(images, labels)
    images, labels = data.images[:], data.labels
    if not len(images):
        raise ValueError("images must hold at least one image. Got none.")
    batch_size = check_whole("batch_size", batch_size, 1)
    model = as_classifier(model, images, labels)
    _warn_if_training(model)
    has_directions = directions is not None
    steps = given_filter_directions(directions, model) if has_directions else filter_directions(model, random_state)
    device = model_device(model)
    batches = list(zip(images.to(device).split(batch_size), labels.to(device).split(batch_size), strict=True))
    # The parameters that move, each with its start and its two directions; then the loss point by point.
    moving_model = copy_of(model)
    with attack_mode(moving_model), full_precision(device), torch.no_grad():
        centre_loss = _mean_loss(moving_model, batches).item()
        moving_parameters = [
            (parameter, parameter.clone(), *torch.from_numpy(steps[name]).to(parameter))
            for name, parameter in moving_model.named_parameters()
            if steps[name].any()
        ]
        loss = torch.empty(resolution, resolution, device=device)
        with tqdm(total=loss.numel(), unit="point", disable=not progress, desc="landscape") as bar:
            for i, a in enumerate(axis.tolist()):
                row = [torch.add(weights, first, alpha=a) for _, weights, first, _ in moving_parameters]
                for j, b in enumerate(axis.tolist()):
                    for (parameter, _, _, second), weights in zip(moving_parameters, row, strict=True):
                        torch.add(weights, second, alpha=b, out=parameter)
                    loss[i, j] = _mean_loss(moving_model, batches)
                    bar.update()
    params = {
        "directions": "given" if has_directions else "filter-normalised", "random_state": random_state,
        "radius": float(radius), "resolution": resolution, "images": len(images),
    }  # fmt: skip
    return Landscape(loss.cpu().numpy(), axis, steps, centre_loss, "weights", params)


def save_landscapes(path: Path | str, landscapes: Mapping[str, Landscape], metadata: dict[str, Any]) -> None:
    """Write landscapes by their names into one file, atomically and with a checksum; directions of weights included."""
    groups, entries = {}, []
    for index, (name, landscape) in enumerate(landscapes.items()):
        has_weights = isinstance(landscape.directions, dict)
        directions = landscape.directions if has_weights else {"": landscape.directions}
        groups[str(index)] = {
            **{f"directions/{parameter}": array for parameter, array in directions.items()},
            "loss": landscape.loss, "axis": landscape.axis, "centre_loss": np.array(landscape.centre_loss),
        }  # fmt: skip
        entries.append({"name": name, "space": landscape.space, "params": landscape.params})
    save_groups(path, "landscapes", groups, {**metadata, "landscapes": entries})


def load_landscapes(path: Path | str) -> dict[str, Landscape]:
    """Read what `save_landscapes` wrote, and verify it; in the order in which they were saved.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If there is no such file, or it cannot be trusted.
    """
    groups, metadata = load_groups(path, "landscapes")
    landscapes = {}
    for index, entry in enumerate(metadata["landscapes"]):
        group = groups[str(index)]
        directions = {
            name.removeprefix("directions/"): array for name, array in group.items() if name.startswith("directions/")
        }
        landscapes[entry["name"]] = Landscape(
            group["loss"], group["axis"], directions[""] if entry["space"] == "input" else directions,
            group["centre_loss"].item(), entry["space"], entry["params"],
        )  # fmt: skip
    return landscapes


# Losses ---------------------------------------------------------------------------------------------------------------


def _losses(network: nn.Module, points: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(network(points).float(), label.expand(len(points)), reduction="none")


def _mean_loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    network = folded_if_equal(model, scale_images(batches[0][0]), trusted=True)
    sums = [
        F.cross_entropy(forward_in_chunks(network, scale_images(x)), y, reduction="sum").double() for x, y in batches
    ]
    return torch.stack(sums).sum() / sum(len(y) for _, y in batches)


def _points_at_once(image: Tensor, n_points: int) -> int:
    if image.device.type == "cpu":
        return images_at_once(image.expand(n_points, *image.shape))
    return max(GPU_BLOCK_PIXELS // image.shape[1:].numel(), 1)


# Checks ---------------------------------------------------------------------------------------------------------------


def _axis(radius: float, resolution: int) -> np.ndarray:
    check_whole("resolution, the number of points along an axis,", resolution, 2)
    check_number("radius", radius, 0.0, open_low=True)
    # linspace misses 0, and with it the centre, by a rounding error.
    return float(radius) * ((2 * np.arange(resolution) - (resolution - 1)) / (resolution - 1))


def _one_image(x: Tensor | np.ndarray | list, device: torch.device) -> Tensor:
    if not isinstance(x, Tensor | np.ndarray | list):
        raise TypeError(f"x must be a torch tensor, a numpy array or a list (c, h, w). Got {type(x).__name__}.")
    shape = np.shape(x)
    if len(shape) != 3:
        raise ValueError(f"x must be one image (c, h, w). Got the shape {tuple(shape)}; of a batch take x[0].")
    return as_images([x] if isinstance(x, list) else x[None], device=device)[0].detach()


def _one_label(y: int | Tensor | np.ndarray, device: torch.device) -> Tensor:
    y = y if isinstance(y, Tensor) else np.asarray(y)
    if y.ndim:
        raise ValueError(f"y must be one class, a whole number. Got the shape {tuple(y.shape)}; of a batch take y[0].")
    return as_labels(y[None], 1, name="y", device=device)


def _warn_if_training(model: nn.Module) -> None:
    if model.training:
        warnings.warn(
            "the model is in training mode: its losses are taken in eval mode, and it is left as it is. Call"
            " model.eval() first to say that this is meant.",
            stacklevel=3,
        )
