"""Runs a model over images, clean and attacked, and keeps the output of one layer, or of several."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from analysis.representations import RepresentationSet
from analysis.shards import Batch, Shards
from tla_core.attack_config import AttackConfig
from tla_core.attacks import Attack, run_attack
from tla_core.checkpoint import tensors_digest
from tla_core.config import canonical_json
from tla_core.distributed import rank_and_size
from tla_core.evaluation import describe_attack
from tla_core.given import given_images
from tla_core.layers import Reading, find_layer, forward_with_layers, model_device, resolve_layer
from tla_core.masking.suite import saturation_check, warn_of_masking
from tla_core.modes import attack_mode
from tla_core.probe import PROBED, probe
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
    shards: Path | str | None = None,
    progress: bool = False,
) -> RepresentationSet | dict[str, RepresentationSet] | None:
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
    shards : Path or str, optional
        Folder where each batch is stored when it is finished: the next call takes up what an interrupted one left
        there. In the process group of `torchrun` each process makes its share of the batches. Remove it when the result
        is stored. What belongs to other images, weights or settings, or another `meta`, is made again.
    progress : bool
        Show a progress bar.

    Returns
    -------
    RepresentationSet, or dict of str to RepresentationSet
        None with `shards` in all processes but the first.
        Its adversarial images are float32 or uint8, as `keep_images` says; ``meta["read_from"]`` says what was
        read. Of several layers a set for each, which share their logits and images.

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or batch size; a layer that does not exist (the message lists the nearest names) or a
        head that cannot be told (it lists the candidates); more outputs than class names; NaN in the features; with
        `shards` an attack that is no AttackConfig, since a function does not tell when it was changed.
    RankError, OSError
        With `shards`, if another process stopped, or a batch cannot be stored.

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
    description = {"attack": None if attack is None else describe_attack(attack), **(meta or {})}
    whole = _Whole(len(images), StoredImages() if keep_images == "uint8" else None)
    with (
        attack_mode(model),
        full_precision(device),
        tqdm(total=len(images), unit="image", disable=not progress, desc="extract") as bar,
    ):
        taps = {name: find_layer(model, names[name], scale_images(images[:1].to(device))) for name in layers}
        work = _Work(model, images, labels, rows, taps, batch_size, attack, generator, fold, keep_images)
        if attack is not None and (shards is None or rank_and_size()[0] == 0):
            warn_of_masking("the attack", saturation_check(model, images, labels, attack), stacklevel=2)
        starts = range(0, len(images), batch_size)
        if shards is None:
            for start in starts:
                whole.add(work.batch(start))
                bar.update(work.length(start))
        else:
            store = Shards(shards, work.identity(description), work.function())
            for batch in store.batches(starts, work.batch, lambda start: bar.update(work.length(start))):
                whole.add(batch)
    if not whole.arrays:
        return None
    # One set for each layer.
    if class_names is None and whole.arrays["logits"].shape[1] == len(dataset.class_names or ()):
        class_names = dataset.class_names
    known = {"labels": labels.cpu().numpy(), "indices": rows.cpu().numpy(), "class_names": class_names}
    sets = whole.sets(description, known)
    return sets[layer] if isinstance(layer, str) else sets


@dataclass
class _Work:
    """What is done with each batch of images: row by row the same, whichever process does it."""

    model: nn.Module
    images: Any
    labels: Tensor
    rows: Tensor
    taps: dict[str, Tap]
    batch_size: int
    attack: Attack | None
    generator: torch.Generator | None
    fold: bool
    keep_images: str | None
    warned: bool = False

    def length(self, start: int) -> int:
        return min(self.batch_size, len(self.images) - start)

    def batch(self, start: int) -> Batch:
        """The arrays of the images from that row on, and where each layer was read from."""
        part = slice(start, start + self.batch_size)
        device = model_device(self.model)
        x, y = scale_images(self.images[part].to(device)), self.labels[part].to(device)
        arrays, readings = self._forward("", x)
        if not self.warned:
            _warn_of_layers(self.taps, readings)
            self.warned = True
        if self.attack is not None:
            options = {"generator": self.generator, "indices": self.rows[part], "fold": self.fold}
            x_adv = run_attack(self.attack, self.model, x, y, **options)
            arrays |= self._forward("adv_", x_adv)[0]
            if self.keep_images == "float":
                arrays["adv_images"] = x_adv.cpu().numpy()
            elif self.keep_images == "uint8":
                arrays["adv_images"] = (x_adv.cpu() * 255).round().to(torch.uint8).numpy()
        return arrays, {name: reading.description for name, reading in readings.items()}

    @torch.no_grad()
    def _forward(self, kind: str, x: Tensor) -> tuple[dict[str, np.ndarray], dict[str, Reading]]:
        logits, readings = forward_with_layers(self.model, x, list(self.taps.values()))
        by_name = dict(zip(self.taps, readings, strict=True))
        features = {f"{kind}features/{name}": reading.features for name, reading in by_name.items()}
        arrays = {f"{kind}logits": logits, **features}
        return {name: tensor.float().cpu().numpy() for name, tensor in arrays.items()}, by_name

    def function(self) -> dict[str, Tensor]:
        """What tells the model from another function of the same weights, whatever the images are."""
        noise = torch.rand((PROBED, *self.images.shape[1:]), generator=torch.Generator().manual_seed(0))
        return probe(self.model, noise)

    def identity(self, description: dict[str, Any]):
        """A function (first row of a batch) -> digest of all that its arrays depend on.

        Raises
        ------
        ValueError
            If the attack does not tell what it depends on.
        """
        if self.attack is not None and not isinstance(self.attack, AttackConfig):
            raise ValueError(f"with shards, attack must be an AttackConfig. Got {self.attack!r}.")
        state = {name: value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}
        settings = {
            "weights": tensors_digest({name: _plain(value) for name, value in state.items()}, ""),
            "seed": 0 if self.generator is None else self.generator.initial_seed(),
            "layers": list(self.taps), "rows": len(self.images), "batch_size": self.batch_size, "fold": self.fold,
            "keep_images": self.keep_images, "meta": description,
        }  # fmt: skip
        text = canonical_json(settings)

        def of_batch(start: int) -> str:
            part = slice(start, start + self.batch_size)
            inputs = {"images": self.images[part], "labels": self.labels[part], "indices": self.rows[part]}
            return tensors_digest({name: _plain(value) for name, value in inputs.items()}, text)

        return of_batch


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.dequantize() if tensor.is_quantized else tensor).detach().cpu().contiguous()


@dataclass
class _Whole:
    """All rows of the result, filled batch by batch; memory that is not written to yet is not taken either."""

    n: int
    adv_images: StoredImages | None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    read_from: dict[str, str] = field(default_factory=dict)
    filled: int = 0

    def add(self, batch: Batch) -> None:
        arrays, read_from = batch
        rows = slice(self.filled, self.filled + len(arrays["logits"]))
        for name, array in arrays.items():
            if name == "adv_images" and self.adv_images is not None:
                self.adv_images.append(torch.from_numpy(array))
                continue
            if name not in self.arrays:
                self.arrays[name] = np.empty((self.n, *array.shape[1:]), array.dtype)
            self.arrays[name][rows] = array
        self.filled = rows.stop
        self.read_from = self.read_from or read_from

    def sets(self, meta: dict[str, Any], known: dict[str, Any]) -> dict[str, RepresentationSet]:
        """A set for each layer; they share logits and images."""
        shared = {name: array for name, array in self.arrays.items() if "/" not in name}
        if self.adv_images is not None and len(self.adv_images):
            shared["adv_images"] = self.adv_images.as_array()
        return {
            name: RepresentationSet.from_arrays(
                features=self.arrays[f"features/{name}"],
                adv_features=self.arrays.get(f"adv_features/{name}"),
                meta={"layer": name, "read_from": source, **meta},
                **known,
                **shared,
            )
            for name, source in self.read_from.items()
        }


def _warn_of_layers(taps: dict[str, Tap], readings: dict[str, Reading]) -> None:
    """Warn of a name that leaves open which of several calls is read, or how tokens become one vector."""
    for name, reading in readings.items():
        tap = taps[name]
        if tap.side != "output" or name == "penultimate":
            continue
        if reading.calls > 1 and not tap.call:
            text = f"runs {reading.calls} times in a forward, and its last output is taken"
            calls = f"{tap.path}#1 to {tap.path}#{reading.calls}"
            warnings.warn(f"the layer {name!r} {text}: the names of its calls are {calls}.", stacklevel=4)
        if reading.tokens and not tap.reduction:
            text = f"gives {reading.tokens} tokens for each image, flattened to {reading.features.shape[1]} numbers"
            warnings.warn(f"the layer {name!r} {text}: {name}:cls or {name}:mean is one of them.", stacklevel=4)


def _warn_training() -> None:
    warnings.warn(
        "the model is in training mode: its representations are taken in eval mode, and it is put back afterwards."
        " Call model.eval() first to say that this is meant.",
        stacklevel=3,
    )
