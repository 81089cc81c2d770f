"""Runs a model over images, clean and attacked, and keeps the output of one layer."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from analysis.representations import RepresentationSet
from tla_core.attacks import Attack, attack_mode, run_attack
from tla_core.evaluation import describe_attack
from tla_core.layers import forward_with_layer, model_device, resolve_layer
from tla_core.runtime import full_precision
from tla_core.validation import as_labels, check_images, check_label_range, check_whole, scale_images


def extract(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    layer: str = "penultimate",
    attack: Attack | None = None,
    batch_size: int = 256,
    indices: Tensor | np.ndarray | None = None,
    class_names: tuple[str, ...] | None = None,
    meta: dict[str, Any] | None = None,
    generator: torch.Generator | None = None,
    fold: bool = True,
    progress: bool = False,
) -> RepresentationSet:
    """Extract the representations of images, and of adversarial examples made from them.

    Parameters
    ----------
    model : nn.Module
        Any model from images in [0, 1] to logits. Run in eval mode and left as it was found.
    images : Tensor or ndarray, (n, c, h, w)
        uint8, or float32 in [0, 1].
    labels : Tensor or ndarray, (n,)
        True classes.
    layer : str
        ``"penultimate"`` (the input of the last ``nn.Linear`` executed), ``"logits"``, or any module path as in
        ``model.named_modules()``. Spatial output is flattened.
    attack : AttackConfig or callable, optional
        Makes the adversarial examples; a callable is ``(model, x, y) -> x_adv``.
    batch_size : int
        Images forwarded at once; changes nothing but speed and memory.
    indices : Tensor or ndarray, (n,), optional
        The images' positions in their dataset; by default 0..n-1.
    class_names : tuple of str, optional
    meta : dict, optional
        JSON values to keep with the set; layer and attack are added.
    generator : torch.Generator, optional
        Its initial seed gives the random starts; None means seed 0. See `tla_core.pgd`.
    fold : bool
        Compute the attack's gradients with batch norm folded: faster, equal up to rounding.
    progress : bool
        Show a progress bar.

    Returns
    -------
    RepresentationSet
        The adversarial images in it are float32.

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or batch size, a layer that does not exist (the nearest names are listed), or NaN in the
        features.

    Examples
    --------
    >>> reps = extract(model, images, labels, attack=tla.AttackConfig(eps=8/255))  # doctest: +SKIP
    """
    images = check_images(images)
    labels = as_labels(labels, len(images), n_classes=None if class_names is None else len(class_names))
    rows = torch.arange(len(images)) if indices is None else as_labels(indices, len(images), name="indices")
    if not len(images):
        raise ValueError("images must hold at least one image. Got none.")
    batch_size = check_whole("batch_size", batch_size, 1)
    resolve_layer(model, layer)
    if model.training:
        _warn_training()
    parts: dict[str, list[np.ndarray]] = {}
    device = model_device(model)
    with (
        attack_mode(model),
        full_precision(device),
        tqdm(total=len(images), unit="image", disable=not progress, desc="extract") as bar,
    ):
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            x, y = scale_images(images[batch].to(device)), labels[batch].to(device)
            _collect(parts, "", *_forward(model, x, y, layer))
            if attack is not None:
                x_adv = run_attack(attack, model, x, y, generator=generator, indices=rows[batch], fold=fold)
                _collect(parts, "adv_", *_forward(model, x_adv, y, layer))
                parts.setdefault("adv_images", []).append(x_adv.cpu().numpy())
            bar.update(len(x))
    made_with = {"layer": layer, "attack": None if attack is None else describe_attack(attack)}
    arrays = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    return RepresentationSet.from_arrays(
        labels=labels.cpu().numpy(),
        indices=rows.cpu().numpy(),
        class_names=class_names,
        meta={**made_with, **(meta or {})},
        **arrays,
    )


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    logits, features = forward_with_layer(model, x, layer)
    check_label_range(y, logits)
    return features, logits


def _collect(parts: dict[str, list[np.ndarray]], kind: str, features: Tensor, logits: Tensor) -> None:
    parts.setdefault(f"{kind}features", []).append(features.float().cpu().numpy())
    parts.setdefault(f"{kind}logits", []).append(logits.float().cpu().numpy())


def _warn_training() -> None:
    warnings.warn(
        "the model is in training mode: its representations are taken in eval mode, and it is put back afterwards."
        " Call model.eval() first to say that this is meant.",
        stacklevel=3,
    )
