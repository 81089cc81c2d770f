"""Directions of loss landscapes: random or given, along the gradient, or as long as the filters of a network."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.validation import check_whole


def filter_directions(model: nn.Module, random_state: int = 0) -> dict[str, np.ndarray]:
    """Two random directions in the space of the weights, in which each filter is as long as that of the model.

    Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section 4: Gaussian, then each filter scaled to the
    norm of the model's own. Networks that differ by a factor on their weights, to which batch norm is blind, have the
    same landscape then.

    Parameters
    ----------
    model : nn.Module
    random_state : int
        Models of one architecture get the same directions before scaling.

    Returns
    -------
    dict of str to ndarray, (2, ...), float32
        For each parameter both directions. A filter is a row of the first dimension; parameters of at most one
        dimension, biases and those of batch norm, get zeros.
    """
    generator = seeded_generator(random_state)
    directions = {}
    for name, parameter in model.named_parameters():
        weights = parameter.detach().cpu().double().numpy()
        if weights.ndim < 2:
            directions[name] = np.zeros((2, *weights.shape), np.float32)
            continue
        noise = generator.standard_normal((2, len(weights), weights[0].size))
        lengths = np.linalg.norm(weights.reshape(len(weights), -1), axis=1) / np.linalg.norm(noise, axis=2)
        directions[name] = (noise * lengths[..., None]).reshape(2, *weights.shape).astype(np.float32)
    return directions


def image_directions(
    directions: Any, model: nn.Module, image: Tensor, label: Tensor, generator: np.random.Generator
) -> tuple[Tensor, str]:
    """Both directions, (2, c, h, w), and the name of their kind."""
    if directions is None:
        noise = generator.standard_normal((2, *image.shape))
        noise /= np.abs(noise).max(axis=(1, 2, 3), keepdims=True)
        return torch.from_numpy(noise).to(image), "random"
    if isinstance(directions, str):
        if directions != "gradient":
            raise ValueError(f"directions must be None, 'gradient' or a pair of arrays. Got {directions!r}.")
        signs = generator.choice([-1.0, 1.0], size=tuple(image.shape))
        return torch.stack([_gradient_sign(model, image, label), torch.from_numpy(signs).to(image)]), "gradient"
    if len(directions) != 2:
        raise ValueError(f"directions must be None, 'gradient' or a pair of arrays. Got {len(directions)} of them.")
    pair = [_given_direction(each, image.shape, str(i)).to(image) for i, each in enumerate(directions)]
    return torch.stack(pair), "given"


def _gradient_sign(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    with torch.enable_grad():
        x = image[None].clone().requires_grad_()
        loss = F.cross_entropy(model(x).float(), label.expand(1))
        gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None or not gradient.isfinite().all() or not gradient.any():
        raise ValueError(
            "the loss has no gradient at x: it is zero everywhere, NaN, or cut off inside the model. Expected a"
            " direction to move in; pass directions=None for random ones."
        )
    return gradient[0].sign()


def given_filter_directions(directions: Any, model: nn.Module) -> dict[str, np.ndarray]:
    """Parameter -> both directions, of a pair of mappings; parameters that are left out do not move."""
    if len(directions) != 2 or not all(isinstance(each, Mapping) for each in directions):
        types = ", ".join(type(each).__name__ for each in directions)
        raise ValueError(f"directions must be a pair of mappings, parameter name -> array. Got {types or 'none'}.")
    parameters = dict(model.named_parameters())
    unknown = sorted({*directions[0], *directions[1]} - {*parameters})
    if unknown:
        raise ValueError(f"directions name {unknown[0]!r}, which is no parameter of the model. See named_parameters().")
    if not all(directions):
        raise ValueError("a direction is empty; expected at least one parameter that moves.")
    pairs = {name: np.zeros((2, *parameter.shape), np.float32) for name, parameter in parameters.items()}
    for i, each in enumerate(directions):
        for name, direction in each.items():
            array = _given_direction(direction, parameters[name].shape, f"{i} of {name}")
            pairs[name][i] = array.cpu().numpy()
    return pairs


def _given_direction(direction: Tensor | np.ndarray, shape: torch.Size, name: str) -> Tensor:
    """One direction as float32; `name` is how messages call it."""
    if isinstance(direction, Tensor):
        direction = direction.detach().float()
    else:
        direction = torch.from_numpy(np.array(direction, dtype=np.float32))
    if direction.shape != shape:
        raise ValueError(f"direction {name} must have the shape {tuple(shape)}. Got {tuple(direction.shape)}.")
    if not direction.isfinite().all():
        raise ValueError(f"direction {name} holds NaN or infinity; expected finite numbers.")
    if not direction.any():
        raise ValueError(f"direction {name} is zero everywhere; expected one that leads somewhere.")
    return direction


def seeded_generator(random_state: int) -> np.random.Generator:
    """numpy's generator; ValueError for a seed that is none."""
    return np.random.default_rng(check_whole("random_state", random_state, 0))
