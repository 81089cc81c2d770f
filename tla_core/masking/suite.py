"""All checks of an accuracy, on samples of the images."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.attack_config import AttackConfig
from tla_core.attacks import Attack, TransferAttack
from tla_core.chunks import images_at_once
from tla_core.layers import model_device
from tla_core.masking.of_attacks import (
    another_start,
    check_perturbed_outputs,
    check_steps,
    check_unbounded,
    judge_ascent,
    judge_perturbed,
    judge_restarts,
)
from tla_core.masking.of_gradients import check_gradients
from tla_core.masking.of_models import check_batch, check_outputs, check_stochastic, logits_of, undisturbed
from tla_core.masking.of_searches import affordable_search, check_black_box
from tla_core.masking.verdicts import MaskingCheck, as_outcome
from tla_core.random_numbers import counter_uniform
from tla_core.validation import as_labels, check_images, check_whole, scale_images
from tla_core.wrapping import as_classifier

_OF_SURVIVORS = ("ascent", "steps", "restarts", "unbounded")
_RANDOM = "not judged: the model is random, so that images fall by chance; see the check 'stochastic'."
_ONE_CLASS = "not judged: the model has one output class, so that there is nothing to attack."
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
        Size of the samples. By default one image in 100, at least 10 and at most 256; for the search without gradients
        as many as `affordable_search` says.
    batch_size : int
        Images forwarded at once.
    fold : bool
        See `run_attack`.
    known : mapping of str to MaskingCheck, optional
        What `model_checks` found, so that several attacks need it once.

    Returns
    -------
    dict of str to MaskingCheck
        The checks of `model_checks`, then those of `attack_checks`, then ``"black_box"``.

    Raises
    ------
    TypeError, ValueError
        For bad images, labels or settings.
    """
    loss = attack.loss if isinstance(attack, AttackConfig) else "ce"
    model = as_classifier(model, check_images(images))
    if known is None:
        known = model_checks(model, images, labels, loss=loss, n_images=n_images, batch_size=batch_size)
    settings = {
        "generator": generator, "indices": indices, "n_images": n_images, "batch_size": batch_size, "fold": fold,
        "known": known,
    }  # fmt: skip
    outcome = attack_checks(model, images, labels, attack, survived, **settings)
    search = search_check(model, images, labels, {str(attack): attack}, survived, **settings)
    return {**known, **outcome, "black_box": search}


def model_checks(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    loss: str = "ce",
    n_images: int | None = None,
    batch_size: int = 256,
) -> dict[str, MaskingCheck]:
    """The checks without attack: ``stochastic``, ``batch``, ``outputs`` and ``gradients``. See `masking_checks`."""
    images = check_images(images)
    labels = as_labels(labels, len(images))
    rows = _sample(torch.arange(len(images)), n_images, len(images))
    device = model_device(model)
    x, y = scale_images(images[rows].to(device)), labels[rows].to(device)
    checks = {"stochastic": check_stochastic(model, x, batch_size=batch_size)}
    random = checks["stochastic"].passed is False
    company = scale_images(images[:batch_size].to(device))
    company = company[: images_at_once(company)]
    outputs = check_outputs(model, x, y, loss=loss, batch_size=batch_size)
    if _has_one_class({"outputs": outputs}):  # whose single logit has no spread to measure a change by
        return checks | {
            "batch": MaskingCheck("batch", None, _ONE_CLASS), "outputs": outputs,
            "gradients": MaskingCheck("gradients", None, _ONE_CLASS),
        }  # fmt: skip
    checks["batch"] = MaskingCheck("batch", None, _RANDOM) if random else check_batch(model, x, company)
    checks["outputs"] = outputs
    checks["gradients"] = check_gradients(model, x, y, loss=loss, batch_size=batch_size)
    return checks


def saturation_check(model: nn.Module, images: Tensor, labels: Tensor, attack: Attack) -> dict[str, MaskingCheck]:
    """``outputs`` alone, on a sample, of a gradient attack by the cross-entropy; nothing of another attack."""
    inner = attack.attack if isinstance(attack, TransferAttack) else attack
    if not isinstance(inner, AttackConfig) or not inner.takes_gradients:
        return {}
    source = as_classifier(attack.source, images, labels) if isinstance(attack, TransferAttack) else model
    rows = _sample(torch.arange(len(images)), None, len(images))
    x = scale_images(images[rows].to(model_device(source)))
    return {"outputs": check_outputs(source, x, labels[rows], loss=inner.loss)}


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
    """The checks of one attack's outcome: ``perturbed``, then ``ascent``, ``steps``, ``restarts`` and ``unbounded``.

    The sampled survivors are attacked from a start that the attack has not used, and from where that ends by more
    steps: one run for three checks. Without a random start the attack itself is run again and continued. See
    `masking_checks`.
    """
    # Are the outputs finite around the images? Asked of every attack that names a ball, AutoAttack too.
    images = check_images(images)
    labels = as_labels(labels, len(images))
    survived, known = as_outcome(survived, len(images), "survived"), known or {}
    device = model_device(model)
    checks = {}
    inner = attack.attack if isinstance(attack, TransferAttack) else attack
    if hasattr(inner, "norm") and hasattr(inner, "eps"):
        rows = _sample(torch.arange(len(images)), n_images, len(images))
        x = scale_images(images[rows].to(device))
        checks["perturbed"] = check_perturbed_outputs(model, x, inner, batch_size=batch_size)

    # Is there anything to judge?
    reason = _why_not_judged(attack, survived, known)
    if reason is None and "gradients" in known and known["gradients"].values.get("no_graph", 0) > 0:
        reason = "not judged: the model gives no gradient, so that a gradient attack says nothing; see 'gradients'."
    if reason is not None:
        passed = None if survived.any() else True
        return checks | {name: MaskingCheck(name, passed, reason) for name in _OF_SURVIVORS}

    # One run from a start that the attack has not used, and what it says.
    rows = _sample(survived.nonzero()[:, 0], n_images, len(images))
    x, y = scale_images(images[rows].to(device)), labels[rows].to(device)
    indices = rows if indices is None else as_labels(indices, len(images), name="indices").cpu()[rows]
    share = survived.double().mean().item()
    ascent = another_start(model, x, y, attack, generator, indices, batch_size, fold)
    if checks["perturbed"].passed:
        with undisturbed(model):
            at_the_end = judge_perturbed(logits_of(model, ascent.x_adv, batch_size))
        checks["perturbed"] = checks["perturbed"] if at_the_end.passed else at_the_end
    checks["ascent"] = judge_ascent(model, ascent, y, attack, share, batch_size)
    checks["steps"] = check_steps(
        model, x, ascent.x_adv, y, attack, survivor_share=share, batch_size=batch_size, fold=fold
    )
    checks["restarts"] = judge_restarts(model, ascent, y, attack, share, batch_size)
    checks["unbounded"] = check_unbounded(model, x, y, attack, batch_size=batch_size, fold=fold)
    return checks


def search_check(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    attacks: Mapping[str, Attack],
    survived: Tensor,
    *,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
    n_images: int | None = None,
    batch_size: int = 256,
    fold: bool = True,
    known: Mapping[str, MaskingCheck] | None = None,
) -> MaskingCheck:
    """`check_black_box` on a sample of the images that survived all of the attacks, which have one ball."""
    images = check_images(images)
    labels = as_labels(labels, len(images))
    survived = as_outcome(survived, len(images), "survived")
    reasons = [_why_not_judged(attack, survived, known or {}) for attack in attacks.values()]
    if all(reasons):
        return MaskingCheck("black_box", None if survived.any() else True, reasons[0])
    # As many survivors and queries as the gradients of the attacks have paid for.
    device = model_device(model)
    attack = next(attack for attack, reason in zip(attacks.values(), reasons, strict=True) if reason is None)
    n_searched, n_queries = affordable_search(
        len(images), sum(each.steps * each.restarts for each in attacks.values() if isinstance(each, AttackConfig))
    )
    rows = _sample(survived.nonzero()[:, 0], n_images or n_searched, len(images))
    x, y = scale_images(images[rows].to(device)), labels[rows].to(device)
    return check_black_box(
        model, x, y, attack, survived_by=" and ".join(attacks), survivor_share=survived.double().mean().item(),
        generator=generator, n_queries=n_queries, batch_size=batch_size, fold=fold,
        indices=rows if indices is None else as_labels(indices, len(images), name="indices").cpu()[rows],
    )  # fmt: skip


def warn_of_masking(name: str, checks: Mapping[str, MaskingCheck], *, stacklevel: int = 2) -> None:
    """Warn, once for all failed checks of the attack called `name`; say nothing where none failed."""
    failed = [f"{check.name}: {check.message}" for check in checks.values() if check.passed is False]
    if failed:
        text = f"the accuracy under {name} may be an illusion. " + " ".join(failed)
        warnings.warn(text, MaskingWarning, stacklevel=stacklevel + 1)


def _has_one_class(checks: Mapping[str, MaskingCheck]) -> bool:
    return "outputs" in checks and checks["outputs"].values.get("classes") == 1


def _why_not_judged(attack: Attack, survived: Tensor, known: Mapping[str, MaskingCheck]) -> str | None:
    if _has_one_class(known):
        return _ONE_CLASS
    if not survived.any():
        return "no image survived: nothing to judge."
    if not isinstance(attack, AttackConfig):
        return "not judged: only an attack that is given by an AttackConfig says which ball and how many steps it has."
    if not attack.takes_gradients:
        return "not judged: the attack takes no gradients."
    if attack.steps == 1 and not attack.random_start:
        return "not judged: a single step from the image is not meant to find the worst case; use PGD for that."
    if "stochastic" in known and known["stochastic"].passed is False:
        return _RANDOM
    return None


def _sample(rows: Tensor, n_images: int | None, n_evaluated: int) -> Tensor:
    """A sample of the rows: one of each of so many stretches of equal length, drawn by hash.

    Not every k-th one: in a dataset whose classes alternate, these could all be of one class.
    """
    if n_images is None:
        n_images = min(max(n_evaluated // 100, 10), 256)
    n_images = check_whole("n_images", n_images, 1)
    if len(rows) <= n_images:
        return rows
    stretch = torch.arange(n_images)
    places = (stretch + counter_uniform(_SAMPLE_SEED, stretch, 0, 1)[:, 0].double()) * len(rows) / n_images
    return rows[places.long().clamp(max=len(rows) - 1)]
