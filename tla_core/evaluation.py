"""Clean and robust accuracy, with the outcome for each image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tla_core.attacks import Attack, attack_mode, run_attack
from tla_core.config import AttackConfig
from tla_core.layers import model_device
from tla_core.validation import as_labels, check_images, check_label_range, scale_images


@dataclass(frozen=True)
class Evaluation:
    """Accuracies as fractions, and per image whether it was classified correctly.

    Attributes
    ----------
    accuracy : dict of str to float
        ``"clean"`` and the name of each attack -> fraction in [0, 1].
    correct : dict of str to Tensor, (n,), bool
        On the CPU. Correct under an attack means: correct on the clean image and under the attack.
    standard_error : dict of str to float
        Binomial standard error of each accuracy.
    attacks : dict of str to dict
        The settings of each attack.
    """

    correct: dict[str, Tensor]
    attacks: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> dict[str, float]:
        return {name: outcome.double().mean().item() for name, outcome in self.correct.items()}

    @property
    def standard_error(self) -> dict[str, float]:
        n = len(self.correct["clean"])
        return {name: (value * (1 - value) / n) ** 0.5 for name, value in self.accuracy.items()}

    def __repr__(self) -> str:
        errors = self.standard_error
        parts = [f"{name} {value:.4f} +- {errors[name]:.4f}" for name, value in self.accuracy.items()]
        return f"Evaluation({', '.join(parts)}; n={len(self.correct['clean'])})"


def evaluate(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    attacks: Mapping[str, Attack] | None = None,
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    fold: bool = True,
    progress: bool = False,
) -> Evaluation:
    """Measure the clean accuracy and the accuracy under each attack.

    Only images that are classified correctly are attacked, and of those only the ones that an earlier restart has not
    broken; since a random start depends on (seed, image index, restart) alone, that changes no outcome.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] -> logits. Evaluated in eval mode and left as it was found.
    images : Tensor or ndarray, (n, c, h, w)
        uint8, or float32 in [0, 1].
    labels : Tensor or ndarray, (n,)
    attacks : mapping of str to AttackConfig or callable
        A callable is ``(model, x, y) -> x_adv``; it is given the correct images of each batch.
    batch_size : int
        Images forwarded at once; changes no outcome.
    generator : torch.Generator, optional
        See `pgd`.
    fold : bool
        Compute the gradients of the attacks with batch norm folded: faster, equal up to rounding. The outcome is always
        that of the model as it is.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or settings; an attack called ``"clean"``.
    """
    images = check_images(images)
    labels = as_labels(labels, len(images))
    attacks = dict(attacks or {})
    if "clean" in attacks:
        raise ValueError("an attack cannot be called 'clean': that is the accuracy without attack.")
    if not len(images):
        raise ValueError("images must hold at least one image. Got none.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1. Got {batch_size!r}.")
    device = model_device(model)
    correct = {name: torch.zeros(len(images), dtype=torch.bool) for name in ("clean", *attacks)}
    with (
        attack_mode(model),
        tqdm(total=len(images) * (1 + len(attacks)), unit="image", disable=not progress, desc="evaluate") as bar,
    ):
        for start in range(0, len(images), batch_size):
            rows = torch.arange(start, min(start + batch_size, len(images)))
            x, y = scale_images(images[rows].to(device)), labels[rows].to(device)
            right = _is_correct(model, x, y)
            correct["clean"][rows] = right.cpu()
            bar.update(len(rows))
            for name, attack in attacks.items():
                correct[name][rows] = _survivors(model, attack, x, y, right, rows, generator, fold).cpu()
                bar.update(len(rows))
    return Evaluation(correct, {name: describe_attack(attack) for name, attack in attacks.items()})


def describe_attack(attack: Attack) -> dict[str, Any]:
    """The settings of an attack as JSON values; of a callable its name."""
    if isinstance(attack, AttackConfig):
        return {key: getattr(attack, key) for key in AttackConfig.__dataclass_fields__}
    return {"name": getattr(attack, "__qualname__", type(attack).__name__)}


def _survivors(
    model: nn.Module, attack: Attack, x: Tensor, y: Tensor, right: Tensor, rows: Tensor, generator, fold: bool
) -> Tensor:
    alive = right.clone()
    for restart in range(attack.restarts if isinstance(attack, AttackConfig) else 1):
        left = alive.nonzero()[:, 0]
        if not len(left):
            break
        x_adv = run_attack(
            attack, model, x[left], y[left], generator=generator, indices=rows.to(left.device)[left], restart=restart,
            fold=fold,
        )  # fmt: skip
        alive[left] = _is_correct(model, x_adv, y[left])
    return alive


@torch.no_grad()
def _is_correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    check_label_range(y, logits)
    return logits.argmax(1) == y
