"""Clean and robust accuracy, with the outcome for each image and the checks for masked gradients."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tla_core.attacks import Attack, TransferAttack, attack_mode, is_correct, run_attack
from tla_core.chunks import forward_in_chunks
from tla_core.config import LOSSES, AttackConfig
from tla_core.layers import model_device
from tla_core.masking import (
    MaskingCheck,
    attack_checks,
    compare_attacks,
    failure_lines,
    gap_lines,
    model_checks,
    search_check,
    warn_of_masking,
)
from tla_core.runtime import full_precision
from tla_core.validation import as_labels, check_images, check_label_range, scale_images
from tla_core.wrapping import as_classifier


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
    checks : dict of str to dict of str to MaskingCheck
        The checks of each attack, and ``"model"`` -> those that need none; see `tla_core.masking`.
    """

    correct: dict[str, Tensor]
    attacks: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, dict[str, MaskingCheck]] = field(default_factory=dict)

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
        failed = len(failure_lines(self.checks))
        masked = [f"{failed} masking check(s) FAILED, see .checks"] if failed else []
        parts = [", ".join(parts), f"n={len(self.correct['clean'])}", *masked, *gap_lines(self.checks)]
        return f"Evaluation({'; '.join(parts)})"


def evaluate(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    attacks: Mapping[str, Attack] | None = None,
    *,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    fold: bool = True,
    early_stop: bool = True,
    checks: bool = True,
    search: bool = True,
    known: Mapping[str, Tensor] | None = None,
    on_outcome: Callable[[str, Tensor, dict[str, MaskingCheck]], None] | None = None,
    progress: bool | tqdm = False,
) -> Evaluation:
    """Measure the clean accuracy and the accuracy under each attack.

    Only images that are classified correctly are attacked, and of those only the ones that an earlier restart has not
    broken; since a random start depends on (seed, image index, restart) alone, that changes no outcome. For the same
    reason an attack that differs from an earlier one in more restarts only goes on from the outcome of that one.

    Clean images are forwarded twice, the second time among others. An image whose predicted class changes counts as
    wrong, and so does one of which an output is NaN or infinite; under attack as well, where clean images have changed.
    The check ``predictions`` says how many they were, where there were any.

    Parameters
    ----------
    model : nn.Module
        Any classifier of images in [0, 1]; see `wrap`. Evaluated in eval mode and left as it was found.
    images : Tensor or ndarray, (n, c, h, w)
        uint8, or float32 in [0, 1].
    labels : Tensor or ndarray, (n,)
    attacks : mapping of str to AttackConfig, TransferAttack or callable
        A callable is ``(model, x, y) -> x_adv``; it is given the correct images of each batch.
    batch_size : int
        Images forwarded at once; changes no outcome.
    generator : torch.Generator, optional
        See `pgd`.
    fold : bool
        Compute the gradients of the attacks with batch norm folded: faster, equal up to rounding. The outcome is always
        that of the model as it is.
    early_stop : bool
        Take no further steps with an image that is clearly misclassified (`tla_core.ascent.ascend`): an
        undefended model is evaluated several times as fast. Such an image counts as broken, whatever further steps
        would have made of it.
    checks : bool
        Check on a sample of the images that the accuracies are no illusion (`tla_core.masking`), and warn where a check
        fails.
    search : bool
        Let one of the checks search without gradients among the images that survived all gradient attacks.
    known : mapping of str to Tensor, (n,), bool
        Outcomes of an earlier call with the same model, images and attacks, which are not measured again; ``"clean"``
        too.
    on_outcome : callable, optional
        Called with the name, the outcome and the checks of each attack as soon as they are known, to store them.
    progress : bool or tqdm
        Show a progress bar, or advance the one that is given; its unit is the gradient or forward of an image.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or settings; an attack called ``"clean"`` or ``"model"``.
    torch.OutOfMemoryError
        With the batch size to try.

    Warns
    -----
    MaskingWarning
        Where a check of the model or of an attack's outcome failed.
    """
    images = check_images(images)
    labels = as_labels(labels, len(images))
    attacks, known = dict(attacks or {}), dict(known or {})
    for reserved in {"clean", "model"} & set(attacks):
        raise ValueError(f"an attack cannot be called {reserved!r}: that is what is measured without attack.")
    if not len(images):
        raise ValueError("images must hold at least one image. Got none.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1. Got {batch_size!r}.")
    for name, outcome in known.items():
        if outcome.shape != labels.shape or outcome.dtype != torch.bool:
            got = f"{tuple(outcome.shape)} {outcome.dtype}"
            raise ValueError(f"known[{name!r}] must be bool, ({len(labels)},), as in .correct. Got {got}.")
    model = as_classifier(model, images, labels)
    device = model_device(model)
    todo = {name: attack for name, attack in attacks.items() if name not in known}
    total = len(images) * (("clean" not in known) + sum(image_steps(attack) for attack in todo.values()))
    batches = [rows.to(device) for rows in torch.arange(len(images)).split(batch_size)]
    correct, found = {}, {}
    with (
        attack_mode(model),
        full_precision(device),
        _advancing(progress, total) as bar,
        _explained_out_of_memory(batch_size),
    ):

        def measure(outcome_of: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int) -> Tensor:
            outcomes = []
            for rows in batches:
                x, y = scale_images(images[rows.cpu()].to(device)), labels[rows.cpu()].to(device)
                outcomes.append(outcome_of(x, y, rows))
                bar.update(steps * len(rows))
            return torch.cat(outcomes).cpu()

        judge = _Judge(model, twice=True)
        if "clean" in known:
            correct["clean"] = known["clean"]
        else:
            correct["clean"] = measure(lambda x, y, _: judge(x, y), 1)
        if checks and todo:
            found["model"] = model_checks(model, images, labels, loss=_loss_to_check(attacks), batch_size=batch_size)
        found["model"] = {**found.get("model", {}), **judge.check()}
        unstable = any(check.values.get("changed_share", 0) > 0 for check in found["model"].values())
        for name, attack in attacks.items():
            if name in known:
                correct[name] = known[name]
                continue
            survivors, tried = _outcome_so_far(attack, attacks, correct)
            judge = _Judge(model, twice=unstable)
            survivors = partial(_survivors, judge, attack, survivors.to(device), tried, generator, fold, early_stop)
            correct[name] = measure(survivors, image_steps(attack))
            found[name] = {}
            if checks:
                found[name] = attack_checks(
                    model, images, labels, attack, correct[name], generator=generator, batch_size=batch_size, fold=fold,
                    known=found["model"],
                )  # fmt: skip
                beside = _gradient_attacks_beside(name, attacks)
                last = beside and name == [other for other in beside if other in todo][-1]
                if search and last:  # once for all attacks of a ball
                    survived = torch.stack([known[other] if other in known else correct[other] for other in beside])
                    found[name]["black_box"] = search_check(
                        model, images, labels, {other: attacks[other] for other in beside}, survived.all(0),
                        generator=generator, batch_size=batch_size, fold=fold, known=found["model"],
                    )  # fmt: skip
            found[name] |= judge.check()
            if on_outcome is not None:
                on_outcome(name, correct[name], found[name])
    found = {name: checked for name, checked in found.items() if checked}
    described = {name: describe_attack(attack) for name, attack in attacks.items()}
    if checks:
        for name, check in compare_attacks(correct, described).items():
            found.setdefault(name, {})[check.name] = check
    for name, checked in found.items():
        warn_of_masking("every attack" if name == "model" else name, checked, stacklevel=2)
    return Evaluation(correct, described, found)


def describe_attack(attack: Attack) -> dict[str, Any]:
    """The settings of an attack as JSON values; of a callable its name."""
    if isinstance(attack, AttackConfig):
        settings = {key: getattr(attack, key) for key in AttackConfig.__dataclass_fields__}
        # What was stored before there were targeted attacks does not name them.
        return {key: value for key, value in settings.items() if key != "targets" or value}
    if isinstance(attack, TransferAttack):
        return {"name": "transfer", "source": type(attack.source).__name__, "attack": describe_attack(attack.attack)}
    describe = getattr(attack, "describe", None)
    return describe() if describe else {"name": getattr(attack, "__qualname__", type(attack).__name__)}


def _loss_to_check(attacks: Mapping[str, Attack]) -> str:
    """The cross-entropy, which saturates, unless no attack ascends it."""
    inner = [attack.attack if isinstance(attack, TransferAttack) else attack for attack in attacks.values()]
    losses = {attack.loss for attack in inner if isinstance(attack, AttackConfig)}
    return next((loss for loss in LOSSES if loss in losses), LOSSES[0])


def _gradient_attacks_beside(name: str, attacks: Mapping[str, Attack]) -> list[str]:
    """The gradient attacks in the ball of the one of that name, itself among them; none if it is no gradient attack."""
    balls = {
        key: (each.norm, each.eps)
        for key, each in attacks.items()
        if isinstance(each, AttackConfig) and each.takes_gradients
    }
    return [key for key, ball in balls.items() if name in balls and ball == balls[name]]


def image_steps(attack: Attack) -> int:
    """Steps of all restarts, the unit of the progress bar; of a callable its `image_steps`, or 1."""
    attack = attack.attack if isinstance(attack, TransferAttack) else attack
    if not isinstance(attack, AttackConfig):
        return getattr(attack, "image_steps", 1)
    return attack.steps * attack.restarts * max(attack.targets, 1)


def _outcome_so_far(attack: Attack, attacks: Mapping[str, Attack], correct: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Who survived the restarts that were tried already, by the same attack with fewer of them, and their number."""
    if isinstance(attack, AttackConfig):
        same = {
            name: other.restarts
            for name, other in attacks.items()
            if name in correct and isinstance(other, AttackConfig) and other.restarts <= attack.restarts
            and replace(attack, restarts=other.restarts) == other
        }  # fmt: skip
        if same:
            name = max(same, key=same.__getitem__)
            return correct[name], same[name]
    return correct["clean"], 0


def _survivors(
    judge: "_Judge", attack: Attack, survived: Tensor, tried: int, generator, fold: bool, early_stop: bool,
    x: Tensor, y: Tensor, rows: Tensor,
) -> Tensor:  # fmt: skip
    """Which of the images that survived so many restarts survive all; bool."""
    alive = survived[rows].clone()
    with torch.no_grad():
        n_classes = judge.model(x[:1]).shape[1]
    starts = range(1)
    inner = attack.attack if isinstance(attack, TransferAttack) else attack
    if isinstance(inner, AttackConfig):
        starts = range(tried * max(inner.n_targets(n_classes), 1), inner.n_starts(n_classes))
    for start in starts:
        left = alive.nonzero()[:, 0]
        if not len(left):
            break
        x_adv = run_attack(
            attack, judge.model, x[left], y[left], generator=generator, indices=rows[left], restart=start, fold=fold,
            stop_when_broken=early_stop,
        )  # fmt: skip
        alive[left] = judge(x_adv, y[left])
    return alive


class _Judge:
    """Says which images are classified correctly, and counts those whose outputs cannot be relied on."""

    def __init__(self, model: nn.Module, *, twice: bool) -> None:
        self.model, self.twice = model, twice
        self.images = self.not_finite = self.changed = 0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Bool, (n,). Forwarded twice, an image has to be right both times, among different images."""
        logits = forward_in_chunks(self.model, x)
        check_label_range(y, logits)
        correct = is_correct(logits, y)
        self.images += len(x)
        self.not_finite += (~logits.isfinite().all(1)).sum()
        if self.twice:
            again = torch.empty_like(logits)
            for part in (slice(0, None, 2), slice(1, None, 2)):
                if len(x[part]):
                    again[part] = forward_in_chunks(self.model, x[part])
            changed = (again.argmax(1) != logits.argmax(1)) & logits.isfinite().all(1)
            self.changed += changed.sum()
            correct &= ~changed
        return correct

    def check(self) -> dict[str, MaskingCheck]:
        """``predictions``, where something was counted as wrong that may have been predicted right."""
        counts = {"not_finite": int(self.not_finite), "changed_share": int(self.changed)}
        words = {"not_finite": "have outputs that are NaN or infinite", "changed_share": "change their predicted class"}
        parts = [f"{count} {words[name]}" for name, count in counts.items() if count]
        if not parts:
            return {}
        message = (
            f"of {self.images} images that were forwarded {' and '.join(parts)}, when forwarded again among others:"
            if counts["changed_share"]
            else f"of {self.images} images that were forwarded {parts[0]}:"
        )
        values = {name: count / self.images for name, count in counts.items()}
        message += " they count as wrong. See the checks of the model."
        return {"predictions": MaskingCheck("predictions", False, message, values)}


@contextmanager
def _advancing(progress: bool | tqdm, total: int) -> Iterator[tqdm]:
    if isinstance(progress, tqdm):
        yield progress
        return
    with tqdm(total=total, unit="image step", unit_scale=True, disable=not progress, desc="evaluate") as bar:
        yield bar


@contextmanager
def _explained_out_of_memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"out of memory while {batch_size} images were evaluated at once. Try batch_size={max(1, batch_size // 2)};"
            " it changes no outcome."
        ) from error
