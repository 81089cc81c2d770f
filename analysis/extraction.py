"""Runs a model over images, clean and attacked, and keeps the output of one layer, or of several."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from analysis.representations import RepresentationSet
from tla_core.attacks import Attack, run_attack
from tla_core.evaluation import describe_attack
from tla_core.given import given_images
from tla_core.layers import Reading, find_layer, forward_with_layers, model_device, resolve_layer
from tla_core.masking.suite import saturation_check, warn_of_masking
from tla_core.modes import attack_mode
from tla_core.runtime import full_precision
from tla_core.stored_images import StoredImages
from tla_core.taps import Tap
from tla_core.validation import as_class_names, as_labels, check_one_of, check_whole, scale_images
from tla_core.wrapping import as_classifier


def extract(
    model: nn.Module,
    images: Any,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    layer: str | Sequence[str] = "penultimate",
    attack: Attack | None = None,
    batch_size: int = 256,
    indices: Tensor | np.ndarray | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    meta: dict[str, Any] | None = None,
    generator: torch.Generator | None = None,
    fold: bool = True,
    keep_images: str | None = "float",
    progress: bool = False,
) -> RepresentationSet | dict[str, RepresentationSet]:
    """Extract the representations of images, and of adversarial examples made from them.

    Parameters
    ----------
    model : nn.Module
        Any classifier of images in [0, 1]; see `tla_core.wrap`. Run in eval mode and left as it was found.
    images : Tensor, ndarray, list, ImageDataset or a dataset, (n, c, h, w)
        uint8, or floats in [0, 1]; a DataLoader or dataset of images with labels too: see `tla_core.evaluate`.
    labels : Tensor, ndarray or list of int, (n,), optional
        True classes; by default those of the dataset.
    layer : str or sequence of str
        ``"penultimate"``, which is what enters the classification head; ``"logits"``; or any module path as in
        ``model.named_modules()``, with ``"#2"`` behind it for the second of several calls, and ``":cls"``, ``":mean"``,
        ``":max"`` or ``":flatten"`` for how tokens or a spatial map become one vector: see
        `tla_core.forward_with_layer`, and `tla_core.list_layers` for what there is. Several layers take one pass.
    attack : AttackConfig or callable, optional
        Makes the adversarial examples; a callable is ``(model, x, y) -> x_adv``.
    batch_size : int
        Images forwarded at once; changes nothing but speed and memory.
    indices : Tensor or ndarray, (n,), optional
        The images' positions in their dataset; by default 0..n-1.
    class_names : tuple of str, or dict of int to str, optional
        By default those of the dataset, where they are as many as the model has outputs.
    meta : dict, optional
        JSON values to keep with the set; layer and attack are added.
    generator : torch.Generator, optional
        Its initial seed gives the random starts; None means seed 0. See `tla_core.pgd`.
    fold : bool
        Compute the attack's gradients with batch norm folded: faster, equal up to rounding.
    keep_images : {"float", "uint8"} or None
        How the adversarial images are kept: in memory; rounded to bytes in a temporary file, which the array maps; or
        not at all. Representations are always those of the images that the attack made.
    progress : bool
        Show a progress bar.

    Returns
    -------
    RepresentationSet, or dict of str to RepresentationSet
        Its adversarial images are float32 or uint8, as `keep_images` says; ``meta["read_from"]`` says what was
        read. Of several layers a set for each, which share their logits and images.

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or batch size; a layer that does not exist (the message lists the nearest names) or a
        head that cannot be told (it lists the candidates); more outputs than class names; NaN in the features.

    Warns
    -----
    MaskingWarning
        If the outputs make a gradient attack weaker than it seems.

    Examples
    --------
    >>> reps = extract(model, images, labels, attack=tla.AttackConfig(eps=8/255))  # doctest: +SKIP
    """
    # Checks.
    class_names = None if class_names is None else as_class_names(class_names)
    dataset = given_images(images, labels, n_classes=None if class_names is None else len(class_names))
    images, labels = dataset.images, dataset.labels
    rows = torch.arange(len(images)) if indices is None else as_labels(indices, len(images), name="indices")
    if not len(images):
        raise ValueError("images must hold at least one image. Got none.")
    batch_size = check_whole("batch_size", batch_size, 1)
    check_one_of("keep_images", keep_images, ("float", "uint8", None))
    layers = [layer] if isinstance(layer, str) else list(dict.fromkeys(layer))
    if not layers:
        raise ValueError("layer must name at least one layer. Got none.")
    names = {name: resolve_layer(model, name) for name in layers}
    model = as_classifier(model, images, labels, n_classes=None if class_names is None else len(class_names))
    if model.training:
        _warn_training()
    # Batch by batch: forward, attack, forward again.
    device = model_device(model)
    parts: dict[str, list[np.ndarray]] = {}
    place = None if attack is None else _place_for(keep_images, tuple(images.shape))
    with (
        attack_mode(model),
        full_precision(device),
        tqdm(total=len(images), unit="image", disable=not progress, desc="extract") as bar,
    ):
        taps = {name: find_layer(model, names[name], scale_images(images[:1].to(device))) for name in layers}
        if attack is not None:
            warn_of_masking("the attack", saturation_check(model, images, labels, attack), stacklevel=2)
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            x, y = scale_images(images[batch].to(device)), labels[batch].to(device)
            readings = _collect(parts, "", model, x, taps)
            if not start:
                _warn_of_layers(taps, readings)
                read_from = {name: reading.description for name, reading in readings.items()}
            if attack is not None:
                x_adv = run_attack(attack, model, x, y, generator=generator, indices=rows[batch], fold=fold)
                _collect(parts, "adv_", model, x_adv, taps)
                _keep(place, batch, x_adv)
            bar.update(len(x))
    # One set for each layer.
    description = {"attack": None if attack is None else describe_attack(attack), **(meta or {})}
    if class_names is None and parts["logits"][0].shape[1] == len(dataset.class_names or ()):
        class_names = dataset.class_names
    sets = _sets(parts, place, read_from, description, labels=labels.cpu().numpy(), indices=rows.cpu().numpy(),
                 class_names=class_names)  # fmt: skip
    return sets[layer] if isinstance(layer, str) else sets


def _place_for(keep_images: str | None, shape: tuple[int, ...]) -> np.ndarray | StoredImages | None:
    """Where adversarial images are kept; memory is only taken as it is written to."""
    if keep_images == "uint8":
        return StoredImages()
    return None if keep_images is None else np.empty(shape, np.float32)


def _keep(place: np.ndarray | StoredImages | None, batch: slice, x_adv: Tensor) -> None:
    if isinstance(place, StoredImages):
        place.append(x_adv, exact=False)
    elif place is not None:
        place[batch] = x_adv.cpu().numpy()


def _sets(
    parts: dict[str, list[np.ndarray]], adv_images: np.ndarray | StoredImages | None, read_from: dict[str, str],
    meta: dict[str, Any], **known: Any,
) -> dict[str, RepresentationSet]:  # fmt: skip
    """A set for each layer; they share logits and images."""
    arrays = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
    shared = {name: array for name, array in arrays.items() if "/" not in name}
    return {
        name: RepresentationSet.from_arrays(
            features=arrays[f"features/{name}"],
            adv_features=arrays.get(f"adv_features/{name}"),
            adv_images=adv_images.as_array() if isinstance(adv_images, StoredImages) else adv_images,
            meta={"layer": name, "read_from": layer, **meta},
            **known,
            **shared,
        )
        for name, layer in read_from.items()
    }


@torch.no_grad()
def _collect(
    parts: dict[str, list[np.ndarray]], kind: str, model: nn.Module, x: Tensor, taps: dict[str, Tap]
) -> dict[str, Reading]:
    """Forward a batch, and keep the logits and each layer's features of it."""
    logits, readings = forward_with_layers(model, x, list(taps.values()))
    parts.setdefault(f"{kind}logits", []).append(logits.float().cpu().numpy())
    for name, reading in zip(taps, readings, strict=True):
        parts.setdefault(f"{kind}features/{name}", []).append(reading.features.float().cpu().numpy())
    return dict(zip(taps, readings, strict=True))


def _warn_of_layers(taps: dict[str, Tap], readings: dict[str, Reading]) -> None:
    """Warn of a name that leaves open which of several calls is read, or how tokens become one vector."""
    for name, reading in readings.items():
        tap = taps[name]
        if tap.side != "output" or name == "penultimate":
            continue
        if reading.calls > 1 and not tap.call:
            text = f"runs {reading.calls} times in a forward, and its last output is taken"
            calls = f"{tap.path}#1 to {tap.path}#{reading.calls}"
            warnings.warn(f"the layer {name!r} {text}: the names of its calls are {calls}.", stacklevel=3)
        if reading.tokens and not tap.reduction:
            text = f"gives {reading.tokens} tokens for each image, flattened to {reading.features.shape[1]} numbers"
            warnings.warn(f"the layer {name!r} {text}: {name}:cls or {name}:mean is one of them.", stacklevel=3)


def _warn_training() -> None:
    warnings.warn(
        "the model is in training mode: its representations are taken in eval mode, and it is put back afterwards."
        " Call model.eval() first to say that this is meant.",
        stacklevel=3,
    )
