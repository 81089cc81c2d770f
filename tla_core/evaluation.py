"""Clean and robust accuracy, with the outcome for each image and the checks for masked gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tla_core.attack_config import AttackConfig
from tla_core.attacks import Attack, TransferAttack, attack_mode
from tla_core.evaluation_run import EvaluationRun
from tla_core.given import given_images
from tla_core.masking import (
    MaskingCheck,
    compare_attacks,
    failure_lines,
    gap_lines,
    warn_of_masking,
)
from tla_core.runtime import full_precision
from tla_core.validation import check_whole
from tla_core.wrapping import as_classifier


@dataclass(frozen=True, repr=False)
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
    failed_checks, gaps : list of str
        One line for each masking check that failed; for each attack that leaves clearly less than weaker ones, without
        a failed check.
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
        return {name: (p * (1 - p) / len(self.correct[name])) ** 0.5 for name, p in self.accuracy.items()}

    @property
    def failed_checks(self) -> list[str]:
        return failure_lines(self.checks)

    @property
    def gaps(self) -> list[str]:
        return gap_lines(self.checks)

    def to_dataframe(self):
        """One row for each attack, ``"clean"`` first: ``attack``, ``accuracy``, ``standard_error``, ``images``.

        Needs pandas, which the toolkit's own requirements bring.
        """
        import pandas as pd

        errors = self.standard_error
        rows = [
            {"attack": name, "accuracy": value, "standard_error": errors[name], "images": len(self.correct[name])}
            for name, value in self.accuracy.items()
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        errors = self.standard_error
        parts = [f"{name} {value:.4f} +- {errors[name]:.4f}" for name, value in self.accuracy.items()]
        failed = len(self.failed_checks)
        masked = [f"{failed} masking check(s) FAILED, see .checks"] if failed else []
        parts = [", ".join(parts), f"n={len(self.correct['clean'])}", *masked, *self.gaps]
        return f"{type(self).__name__}({'; '.join(parts)})"


def evaluate(
    model: nn.Module,
    images: Any,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
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

    Only images that are classified correctly are attacked, and a restart attacks only those that no earlier one has
    broken. That changes no outcome, since a random start depends on (seed, image index, restart) alone. An attack that
    is an earlier one with more restarts goes on from the outcome of that one.

    Clean images are forwarded twice, the second time among others. An image counts as wrong if its predicted class
    changes, or if one of its outputs is NaN or infinite. Where clean images have changed, attacked ones are forwarded
    twice too. The check ``predictions`` says how many images counted as wrong for that, if any did.

    Parameters
    ----------
    model : nn.Module
        Any classifier of images in [0, 1]; see `wrap`. Evaluated in eval mode and left as it was found.
    images : Tensor, ndarray, list, ImageDataset or a dataset, (n, c, h, w)
        uint8, or floats in [0, 1]; a DataLoader or dataset of images with labels too: see `given_images`.
    labels : Tensor, ndarray or list of int, (n,), optional
        By default those of the dataset.
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
    # Check the arguments.
    dataset = given_images(images, labels)
    images, labels = dataset.images, dataset.labels
    attacks, known = dict(attacks or {}), dict(known or {})
    batch_size = check_whole("batch_size", batch_size, 1)
    if not len(images):
        raise ValueError("images must hold at least one image. Got none.")
    _check_names_and_outcomes(attacks, known, len(images))
    model = as_classifier(model, images, labels)

    # Measure the clean accuracy, then attack by attack.
    run = EvaluationRun(
        model, images, labels, attacks, known, batch_size=batch_size, generator=generator, fold=fold,
        early_stop=early_stop,
    )  # fmt: skip
    with (
        attack_mode(model),
        full_precision(run.device),
        _advancing(progress, run.total_steps()) as run.bar,
        _explained_out_of_memory(batch_size),
    ):
        run.measure_clean(check_model=checks)
        for name in attacks:
            if name in known:
                run.correct[name] = known[name]
                continue
            run.measure_attack(name, check=checks, search=search)
            if on_outcome is not None:
                on_outcome(name, run.correct[name], run.checks[name])

    # Compare the attacks, and warn of all that failed.
    results = {name: checks_of_name for name, checks_of_name in run.checks.items() if checks_of_name}
    descriptions = {name: describe_attack(attack) for name, attack in attacks.items()}
    if checks:
        for name, check in compare_attacks(run.correct, descriptions).items():
            results.setdefault(name, {})[check.name] = check
    for name, checks_of_name in results.items():
        warn_of_masking("every attack" if name == "model" else name, checks_of_name, stacklevel=2)
    return Evaluation(run.correct, descriptions, results)


def describe_attack(attack: Attack) -> dict[str, Any]:
    """The settings of an attack as JSON values; of a callable its name."""
    if isinstance(attack, AttackConfig):
        return attack.to_dict()
    if isinstance(attack, TransferAttack):
        return {"name": "transfer", "source": type(attack.source).__name__, "attack": describe_attack(attack.attack)}
    describe = getattr(attack, "describe", None)
    return describe() if describe else {"name": getattr(attack, "__qualname__", type(attack).__name__)}


def _check_names_and_outcomes(attacks: Mapping[str, Attack], known: Mapping[str, Tensor], n_images: int) -> None:
    for reserved in {"clean", "model"} & set(attacks):
        raise ValueError(f"an attack cannot be called {reserved!r}: that is what is measured without attack.")
    for name, outcome in known.items():
        if outcome.shape != (n_images,) or outcome.dtype != torch.bool:
            description = f"{tuple(outcome.shape)} {outcome.dtype}"
            raise ValueError(f"known[{name!r}] must be bool, ({n_images},), as in .correct. Got {description}.")


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
