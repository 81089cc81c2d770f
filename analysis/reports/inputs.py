"""What a report is of: models and images, checked before anything takes time, and what identifies them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import state_digest
from tla_core.chunks import forward_in_chunks
from tla_core.config import canonical_json
from tla_core.datasets import ImageDataset
from tla_core.decoded_cache import dataset_checksum
from tla_core.fitting import check_classes
from tla_core.given import given_images
from tla_core.layers import model_device
from tla_core.modes import attack_mode
from tla_core.probe import function_identity, probe
from tla_core.runtime import full_precision
from tla_core.training import load_model
from tla_core.validation import as_class_names, check_whole, scale_images
from tla_core.wrapping import as_classifier

MOST_MODELS = 6
_SEED = 0


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a report, (n, c, h, w), in a shuffled order in which every class is spread evenly.

    Attributes
    ----------
    images, labels : Tensor, (n, c, h, w) and (n,)
    rows : Tensor, (n,)
        Their positions among those that were given.
    n_given : int
    class_names : tuple of str
    name, source : str
    checksum : str
        Of images, labels and class names.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    n_given: int
    class_names: tuple[str, ...]
    name: str
    source: str
    checksum: str

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, k: int) -> Tensor:
        """Positions of k images, as `tla_core.masking.compare_attacks` expects them."""
        return torch.arange(k) * len(self) // k


@dataclass(frozen=True, eq=False)
class Subject:
    """A model of a report.

    Attributes
    ----------
    name : str
    model : nn.Module
        Images in [0, 1] -> logits.
    weights : str
        sha256 of its state.
    identity : str
        Of its state, its modules and what it says of the first images: what is stored of another one is made again.
    folder : Path
        Where its parts are stored.
    """

    name: str
    model: nn.Module
    weights: str
    identity: str
    folder: Path


def chosen_images(
    images: Any, labels: Any, *, n_images: int, class_names: Sequence[str] | Mapping[int, str] | None
) -> Images:
    """At most n of the images, of each class as large a share as of the others; ValueError where that is no sample."""
    check_whole("n_images", n_images, 4)
    names = None if class_names is None else as_class_names(class_names)
    full_set = given_images(images, labels, n_classes=None if names is None else len(names))
    rows = _sample(full_set.labels.cpu().numpy(), n_images)
    counts = np.bincount(full_set.labels[rows].numpy()) if len(rows) else np.zeros(1, int)
    if (counts > 1).sum() < 2:
        raise ValueError(
            f"a report needs images of two classes or more, and two images or more of these. Got {len(full_set.labels)}"
            f" images of {(counts > 0).sum()} classes."
        )
    names = names or full_set.class_names
    sample = full_set.images[rows]
    names = names or tuple(str(k) for k in range(int(full_set.labels.max()) + 1))
    is_dataset = isinstance(images, ImageDataset)
    return Images(
        sample, full_set.labels[rows].cpu(), rows, len(full_set.labels), names,
        name=images.name if is_dataset else "images of the caller",
        source=images.source if is_dataset else "images of the caller",
        checksum=dataset_checksum(sample.numpy(), full_set.labels[rows].cpu().numpy(), names),
    )  # fmt: skip


def _sample(labels: np.ndarray, limit: int) -> Tensor:
    rng = np.random.default_rng(_SEED)
    shuffled = rng.permutation(len(labels))
    position = np.empty(len(labels))
    for k in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == k)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(shuffled[np.argsort(position, kind="stable")[:limit]].copy())


def named_models(models: Any) -> dict[str, Any]:
    """Models by their names, one to six."""
    if isinstance(models, Mapping):
        pairs = list(models.items())
    elif isinstance(models, list | tuple) and models and all(_is_pair(each) for each in models):
        pairs = list(models)
    else:
        several = list(models) if isinstance(models, list | tuple) else [models]
        kinds = [type(model).__name__ for model in several]
        pairs = [
            (kind if kinds.count(kind) == 1 else f"{kind} {place + 1}", model)
            for place, (kind, model) in enumerate(zip(kinds, several, strict=True))
        ]
    names = [name for name, _ in pairs]
    if not 1 <= len(names) <= MOST_MODELS:
        raise ValueError(f"a report is of one to {MOST_MODELS} models. Got {len(names)}.")
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise ValueError(f"models must have names, text. Got {wrong[0]!r}.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"models must have different names. Got {twice[0]!r} {names.count(twice[0])} times.")
    return dict(pairs)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def checked_subjects(
    models: Mapping[str, Any], data: Images, folder: Path, *, has_names: bool
) -> tuple[list[Subject], int]:
    """The models and their number of outputs; each has forwarded all images, so that what does not fit is said first.

    Raises
    ------
    TypeError, ValueError
        For what is no model; and as `tla_core.fitting.check_classes`.
    """
    subjects, outputs = [], {}
    for name, source in models.items():
        model = load_model(source) if isinstance(source, str | Path) else source
        try:
            model = as_classifier(
                model, data.images, data.labels, n_classes=len(data.class_names) if has_names else None
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        device = model_device(model)
        with attack_mode(model), full_precision(device), torch.no_grad():
            logits = torch.cat(
                [forward_in_chunks(model, scale_images(data.images[part].to(device))).float().cpu()
                 for part in torch.arange(len(data)).split(256)]
            )  # fmt: skip
        outputs[name] = logits.shape[1]
        check_classes(
            name, model, logits, data.class_names, has_names=has_names,
            choose=lambda names: f"tla.wrap(model, classes={names!r})",
        )  # fmt: skip
        slug = re.sub(r"[^\w.-]+", "-", name)[:40] + "-" + hashlib.sha256(name.encode()).hexdigest()[:6]
        weights = state_digest(model)
        where = folder / "parts" / slug
        parts = [weights, repr(model), data.checksum]
        identity = function_identity(where / "identity.safetensors", parts, probe(model, data.images))
        subjects.append(Subject(name, model, weights, identity, where))
    if len(set(outputs.values())) > 1:
        raise ValueError(f"the models must have the same classes. Got outputs: {outputs}.")
    return subjects, next(iter(outputs.values()))


def digest_of(subject: Subject, attack: AttackConfig | None, **settings: Any) -> str:
    """What identifies a stored part: the model, the images (within its identity), the attack, and the settings."""
    attacked = None if attack is None else attack.to_dict()
    return hashlib.sha256(canonical_json([1, subject.identity, attacked, settings]).encode()).hexdigest()
