"""All checks of an accuracy, on a sample of the images, at a small share of what the attack itself cost."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.attacks import Attack
from tla_core.config import AttackConfig
from tla_core.layers import model_device
from tla_core.masking.of_attacks import another_start, check_black_box, check_steps, judge_restarts
from tla_core.masking.of_models import check_gradients, check_outputs, check_stochastic
from tla_core.masking.verdicts import MaskingCheck, as_outcome
from tla_core.random_numbers import counter_uniform
from tla_core.validation import as_labels, check_images, scale_images

# The search without gradients may cost this share of the evaluation. 20 queries broke 3 of 59 images that had survived
# PGD-20 on a TLA network of which 400 queries broke 30; of two AT networks, 400 queries broke 2 of 60 and 2 of 53.
_SEARCH_COST = 0.02
_LEAST_QUERIES, _MOST_QUERIES = 20, 500
_SAMPLE_SEED = 0x5A3B1E


class MaskingWarning(UserWarning):
    """A robust accuracy may be an illusion: a masking check failed."""


def masking_checks(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    attack: Attack,
    survived: Tensor,
    *,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
    n_images: int | None = None,
    batch_size: int = 256,
    fold: bool = True,
    known: Mapping[str, MaskingCheck] | None = None,
) -> dict[str, MaskingCheck]:
    """Check the outcome of an attack, and the model, on a sample of the images.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] -> logits. Checked in eval mode and left as it was found, like torch's random state.
    images : Tensor or ndarray, (n, c, h, w)
        All that were evaluated; uint8, or float32 in [0, 1].
    labels : Tensor or ndarray, (n,)
    attack : AttackConfig or callable
        What is said of a callable is only what needs no settings.
    survived : Tensor, (n,), bool
        Correct on the clean image and under the attack.
    generator : torch.Generator, optional
        That of the evaluation, so that the start tried here is one that it has not used. See `pgd`.
    indices : Tensor, (n,), optional
        The images' indices for random starts; by default their positions.
    n_images : int, optional
        Size of the samples. By default one image in 100, at least 10 and at most 256.
    batch_size : int
        Images forwarded at once.
    fold : bool
        See `run_attack`.
    known : mapping of str to MaskingCheck, optional
        What `model_checks` found, so that several attacks need it once.

    Returns
    -------
    dict of str to MaskingCheck
        The checks of `model_checks`, then those of `attack_checks`.

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or settings.
    """
    loss = attack.loss if isinstance(attack, AttackConfig) else "ce"
    if known is None:
        known = model_checks(model, images, labels, loss=loss, n_images=n_images, batch_size=batch_size)
    outcome = attack_checks(
        model, images, labels, attack, survived, generator=generator, indices=indices, n_images=n_images,
        batch_size=batch_size, fold=fold, known=known,
    )  # fmt: skip
    return {**known, **outcome}


def model_checks(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    loss: str = "ce",
    n_images: int | None = None,
    batch_size: int = 256,
) -> dict[str, MaskingCheck]:
    """The checks that need no attack: ``stochastic``, ``outputs`` and ``gradients``. See `masking_checks`."""
    images = check_images(images)
    labels = as_labels(labels, len(images))
    rows = _sample(torch.arange(len(images)), n_images, len(images))
    device = model_device(model)
    x, y = scale_images(images[rows].to(device)), labels[rows].to(device)
    return {
        "stochastic": check_stochastic(model, x, batch_size=batch_size),
        "outputs": check_outputs(model, x, y, loss=loss, batch_size=batch_size),
        "gradients": check_gradients(model, x, y, loss=loss, batch_size=batch_size),
    }


def attack_checks(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    attack: Attack,
    survived: Tensor,
    *,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
    n_images: int | None = None,
    batch_size: int = 256,
    fold: bool = True,
    known: Mapping[str, MaskingCheck] | None = None,
) -> dict[str, MaskingCheck]:
    """The checks of one attack's outcome: ``steps``, ``restarts`` and ``black_box``. See `masking_checks`.

    The sampled survivors are attacked from a start that the attack has not used, and from where that ends by more
    steps: one run for two checks. Without a random start the attack itself is run again and continued.
    """
    images = check_images(images)
    labels = as_labels(labels, len(images))
    survived = as_outcome(survived, len(images), "survived")
    reason = _why_not_judged(attack, survived, known or {})
    if reason is not None:
        passed = True if not survived.any() else None
        return {name: MaskingCheck(name, passed, reason) for name in ("steps", "restarts", "black_box")}
    device = model_device(model)
    rows = _sample(survived.nonzero()[:, 0], n_images, len(images))
    x, y = scale_images(images[rows].to(device)), labels[rows].to(device)
    indices = rows if indices is None else as_labels(indices, len(images), name="indices").cpu()[rows]
    share = survived.double().mean().item()
    settings = {"generator": generator, "indices": indices, "batch_size": batch_size}
    # A gradient costs about three forwards.
    affordable = _SEARCH_COST * 3 * len(images) * attack.steps * attack.restarts / len(rows)
    n_queries = int(min(max(affordable, _LEAST_QUERIES), _MOST_QUERIES))
    search = {**settings, "survivor_share": share, "n_queries": n_queries, "fold": fold}
    checks = {"black_box": check_black_box(model, x, y, attack, **search)}
    gradients = (known or {}).get("gradients")
    if gradients is not None and gradients.values["no_graph"] > 0:
        reason = "the model gives no gradient, so that a gradient attack says nothing: see the check 'gradients'."
        return {name: MaskingCheck(name, None, reason) for name in ("steps", "restarts")} | checks
    x_adv = another_start(model, x, y, attack, generator, indices, batch_size, fold)
    checks["restarts"] = judge_restarts(model, x, x_adv, y, attack, share, batch_size)
    checks["steps"] = check_steps(model, x, x_adv, y, attack, batch_size=batch_size, fold=fold)
    return {name: checks[name] for name in ("steps", "restarts", "black_box")}


def warn_of_masking(name: str, checks: Mapping[str, MaskingCheck], *, stacklevel: int = 2) -> None:
    """Warn, once for all failed checks of the attack called `name`; say nothing where none failed."""
    failed = [f"{check.name}: {check.message}" for check in checks.values() if check.passed is False]
    if failed:
        text = f"the accuracy under {name} may be an illusion. " + " ".join(failed)
        warnings.warn(text, MaskingWarning, stacklevel=stacklevel + 1)


def _why_not_judged(attack: Attack, survived: Tensor, known: Mapping[str, MaskingCheck]) -> str | None:
    if not survived.any():
        return "no image survived: nothing to judge."
    if not isinstance(attack, AttackConfig):
        return "not judged: only an attack that is given by an AttackConfig says which ball and how many steps it has."
    if attack.steps == 1 and not attack.random_start:
        return "not judged: a single step from the image is not meant to find the worst case; use PGD for that."
    if "stochastic" in known and known["stochastic"].passed is False:
        return "not judged: the model is random, so that images fall by chance; see the check 'stochastic'."
    return None


def _sample(rows: Tensor, n_images: int | None, n_evaluated: int) -> Tensor:
    """A sample of the rows: one of each of so many stretches of equal length, drawn by hash.

    Not every k-th one: in a dataset whose classes alternate, these could all be of one class.
    """
    if n_images is None:
        n_images = min(max(n_evaluated // 100, 10), 256)
    elif isinstance(n_images, bool) or not isinstance(n_images, int) or n_images < 1:
        raise ValueError(f"n_images must be a whole number of at least 1. Got {n_images!r}.")
    if len(rows) <= n_images:
        return rows
    stretch = torch.arange(n_images)
    where = (stretch + counter_uniform(_SAMPLE_SEED, stretch, 0, 1)[:, 0].double()) * len(rows) / n_images
    return rows[where.long().clamp(max=len(rows) - 1)]
