"""Is a robust accuracy an illusion? Cheap checks for attacks that fail for another reason than robustness.

A model that hides its gradients looks robust to a gradient attack and is not (Athalye et al. 2018, "Obfuscated
Gradients Give a False Sense of Security"; Carlini et al. 2019, "On Evaluating Adversarial Robustness"). `model_checks`
needs no attack, `attack_checks` judges the outcome of one, and `masking_checks` does both. Passing them proves nothing;
failing one means that the accuracy should not be believed before the message has been followed.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.attacks import (
    Attack,
    attack_loss,
    attack_mode,
    counter_uniform,
    folded_if_equal,
    forward_in_chunks,
    run_attack,
)
from tla_core.config import AttackConfig
from tla_core.layers import model_device
from tla_core.random_search import random_search
from tla_core.validation import as_images, as_labels, check_images, check_label_range, scale_images

# A share counts as too large where it is, with this confidence (one-sided, Clopper and Pearson 1934).
_CONFIDENCE = 0.99
# Shares that an honest model may have. Another start of PGD-20 broke up to 1.6 % of all images of the models of `mini`,
# and 19 more starts cost the published ones 0.2 to 4.4 points; nothing excuses the others but the odd image.
_RESTART_TOLERANCE = 0.02
_SHARE_TOLERANCE = 0.01
# Of what all steps so far have reached: on the models of `mini`, 0.05 to 0.29 under PGD-20, 1.5 to 3.3 under PGD-2.
_GAIN_TOLERANCE = 0.5
# Of the margin that is left: a gain that would have to be repeated more often cannot change an outcome.
_GAIN_THAT_MATTERS = 0.01
# AutoAttack leaves 4 points less than PGD of the published TLA model on CIFAR-10 (51.59 and 47.41 %), and 23 points
# less of a TLA network of ours, most of which its search without gradients takes.
_ENSEMBLE_TOLERANCE = 0.1
# A short attack is continued by so many steps, since two steps more than two show little.
_LEAST_MORE_STEPS = 10
# The float32 gradient of the cross-entropy by the logits: below it, what reaches the pixels underflows (1.2e-38).
_SMALLEST_LOGIT_GRADIENT = 1e-30
_SMALLEST_RANDOM_CHANGE = 1e-4  # of the spread of the logits; rounding is 1e-6
_PASSES = 5
# The search without gradients may cost this share of the evaluation. 20 queries broke 3 of 59 images that had survived
# PGD-20 on a TLA network of which 400 queries broke 30; of two AT networks, 400 queries broke 2 of 60 and 2 of 53.
_SEARCH_COST = 0.02
_QUERIES, _MOST_QUERIES = 20, 500
_SAMPLE_SEED = 0x5A3B1E


class MaskingWarning(UserWarning):
    """A robust accuracy may be an illusion: a masking check failed."""


@dataclass(frozen=True)
class MaskingCheck:
    """The result of one check.

    Attributes
    ----------
    name : str
        ``"stochastic"``, ``"outputs"``, ``"gradients"``, ``"steps"``, ``"restarts"``, ``"black_box"``,
        ``"transfer"`` or ``"ensemble"``.
    passed : bool or None
        None where it could not be judged; the message says why.
    message : str
        What was found, in numbers; where the check failed also what that means and what to do.
    values : dict of str to float
        The numbers behind it. Shares are fractions.
    """

    name: str
    passed: bool | None
    message: str
    values: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        word = {True: "passed", False: "FAILED", None: "not judged"}[self.passed]
        return f"MaskingCheck({self.name} {word}: {self.message})"


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
    survived = _as_outcome(survived, len(images), "survived")
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
    n_queries = int(min(max(affordable, _QUERIES), _MOST_QUERIES))
    search = {**settings, "survivor_share": share, "n_queries": n_queries, "fold": fold}
    checks = {"black_box": check_black_box(model, x, y, attack, **search)}
    gradients = (known or {}).get("gradients")
    if gradients is not None and gradients.values["no_graph"] > 0:
        reason = "the model gives no gradient, so that a gradient attack says nothing: see the check 'gradients'."
        return {name: MaskingCheck(name, None, reason) for name in ("steps", "restarts")} | checks
    x_adv = _another_start(model, x, y, attack, generator, indices, batch_size, fold)
    checks["restarts"] = _judge_restarts(model, x, x_adv, y, attack, share, batch_size)
    checks["steps"] = check_steps(model, x, x_adv, y, attack, batch_size=batch_size, fold=fold)
    return {name: checks[name] for name in ("steps", "restarts", "black_box")}


def warn_of_masking(name: str, checks: Mapping[str, MaskingCheck], *, stacklevel: int = 2) -> None:
    """Warn, once for all failed checks of the attack called `name`; say nothing where none failed."""
    failed = [f"{check.name}: {check.message}" for check in checks.values() if check.passed is False]
    if failed:
        text = f"the accuracy under {name} may be an illusion. " + " ".join(failed)
        warnings.warn(text, MaskingWarning, stacklevel=stacklevel + 1)


def check_stochastic(model: nn.Module, x: Tensor | np.ndarray, *, batch_size: int = 256) -> MaskingCheck:
    """Are the logits of an image the same each time? Five passes over at most 16 images are compared.

    Against a randomised model an attack has to average its gradients (expectation over transformation, Athalye et al.
    2018), and an accuracy is that of one draw. AutoAttack (Croce and Hein 2020) raises the same flag.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the ``largest_change`` of a logit, as a fraction of the spread of the image's logits, and the
        ``changed_share`` of images.
    """
    x = as_images(x, device=model_device(model))[:16]
    with _undisturbed(model):
        passes = torch.stack([_logits(model, x, batch_size) for _ in range(_PASSES)])
    first = passes[0]
    spread = first.amax(1) - first.amin(1)
    # Two infinities or two NaN in the same place are no change.
    same = (passes == first) | (passes.isnan() & first.isnan())
    moved = torch.where(same, 0, (passes - first).abs()).nan_to_num(torch.inf).amax((0, 2))
    change = torch.where(moved == 0, 0.0, moved / spread).nan_to_num(torch.inf)
    changed = change > _SMALLEST_RANDOM_CHANGE
    values = {"largest_change": _largest(change), "changed_share": _share(changed)}
    if not changed.any():
        return MaskingCheck("stochastic", True, f"{_PASSES} passes over {len(x)} images gave the same logits.", values)
    return MaskingCheck(
        "stochastic",
        False,
        f"the model is random: the logits of {int(changed.sum())} of {len(x)} images changed between {_PASSES} passes,"
        f" by up to {values['largest_change']:.2g} of their spread. An attack follows the gradient of one draw, and the"
        " accuracy is that of another. Switch dropout and noise off, or attack the average of many passes.",
        values,
    )


def check_outputs(
    model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, loss: str = "ce", batch_size: int = 256
) -> MaskingCheck:
    """Are the outputs logits that a loss can be differentiated by: finite, no probabilities, not saturated?

    Probabilities, taken for logits, make the cross-entropy flat (AutoAttack's flag, Croce and Hein 2020); logarithms of
    probabilities do no harm. An image is saturated if its logits lie so far apart (about 69) that the gradient of the
    cross-entropy underflows in float32 (Carlini and Wagner 2016, of defensive distillation); the margin loss does not.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    y : Tensor or ndarray, (n,)
    loss : {"ce", "margin"}
        The loss that is attacked by; saturation counts for ``"ce"`` only.
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the shares ``not_finite``, ``probabilities`` and ``saturated``, and the ``median_gap`` between the two
        largest outputs.
    """
    x, y = _as_batch(model, x, y)
    with _undisturbed(model):
        logits = _logits(model, x, batch_size)
    check_label_range(y, logits)
    finite = logits.isfinite().all(1)
    inside = (logits >= 0).all(1) & (logits <= 1 + 1e-6).all(1)
    probabilities = inside & ((logits.sum(1) - 1).abs() < 1e-3) & (logits.shape[1] > 1)
    by_logits = logits.softmax(1).scatter_add(1, y[:, None], -torch.ones_like(logits[:, :1]))
    saturated = finite & (by_logits.abs().amax(1) < _SMALLEST_LOGIT_GRADIENT)
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    gap = (top[:, 0] - top[:, -1])[finite]
    values = {
        "not_finite": _share(~finite),
        "probabilities": _share(probabilities),
        "saturated": _share(saturated),
        "median_gap": gap.median().item() if len(gap) else float("nan"),
    }
    n = len(x)
    if not finite.all():
        message = (
            f"the outputs of {n - int(finite.sum())} of {n} images are not finite: neither a prediction nor a gradient"
            " of them means anything. Find the overflow in the model."
        )
        return MaskingCheck("outputs", False, message, values)
    if n and probabilities.all():
        message = (
            f"the outputs of all {n} images are probabilities (in [0, 1], with the sum 1): taken for logits they make"
            " the loss nearly flat. Leave out the softmax at the end of the model."
        )
        return MaskingCheck("outputs", False, message, values)
    if loss == "ce" and _too_many(saturated):
        message = (
            f"the outputs of {int(saturated.sum())} of {n} images are saturated (median gap between the two largest"
            f" logits {values['median_gap']:.3g}): the gradient of the cross-entropy underflows in float32. Divide the"
            " logits by a constant, or attack with loss='margin'."
        )
        return MaskingCheck("outputs", False, message, values)
    message = f"logits of {n} images, with a median gap of {values['median_gap']:.3g} between the two largest."
    return MaskingCheck("outputs", True, message, values)


def check_gradients(
    model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray, loss: str = "ce", *, batch_size: int = 256
) -> MaskingCheck:
    """Does the loss have a gradient by each image: a graph, finite, not exactly zero?

    A model that rounds, thresholds, detaches or leaves torch has none ("shattered gradients", Athalye et al. 2018), and
    a gradient attack stays where it started.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    y : Tensor or ndarray, (n,)
    loss : {"ce", "margin"}
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the shares of images whose gradient is ``zero``, ``not_finite``, or missing (``no_graph``).
    """
    x, y = _as_batch(model, x, y)
    count = {"zero": 0, "not_finite": 0, "no_graph": 0}
    with _undisturbed(model):
        for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            gradient = _input_gradient(model, part, labels, loss)
            if gradient is None:
                count["no_graph"] += len(part)
                continue
            gradient = gradient.flatten(1)
            count["zero"] += int((gradient == 0).all(1).sum())
            count["not_finite"] += int((~gradient.isfinite()).any(1).sum())
    n = len(x)
    values = {name: k / max(n, 1) for name, k in count.items()}
    bad = torch.arange(n) < sum(count.values())
    if not _too_many(bad):
        return MaskingCheck("gradients", True, f"{n - sum(count.values())} of {n} images have a gradient.", values)
    kinds = {"zero": "exactly zero", "not_finite": "not finite", "no_graph": "missing (no graph leads to the image)"}
    found = " and ".join(f"{count[name]} are {words}" for name, words in kinds.items() if count[name])
    return MaskingCheck(
        "gradients",
        False,
        f"of the gradients of {n} images {found}: a gradient attack does nothing there. Attack a differentiable"
        " approximation of what rounds, thresholds or detaches (BPDA), or with a black-box attack.",
        values,
    )


def check_steps(
    model: nn.Module,
    x: Tensor | np.ndarray,
    x_adv: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    attack: AttackConfig,
    *,
    batch_size: int = 256,
    fold: bool = True,
) -> MaskingCheck:
    """Has the attack converged? It goes on from its last iterate for as many steps again (at least ten).

    Judged by the margin ``max_other - z_y`` and not by outcomes: of the survivors of PGD-2 hardly more fall by two more
    steps than of those of PGD-20 by twenty, but their margins rise ten times as much. The attack fails the check if the
    further steps gain more than half of what it had gained, and at least 1 % of what is missing. After Carlini et al.
    2019, section 5.3: more iterations must not make the attack stronger.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
        Images that survived the attack.
    x_adv : Tensor or ndarray, (n, c, h, w)
        Where the attack ended; those that are misclassified there are left out.
    y : Tensor or ndarray, (n,)
    attack : AttackConfig
        Momentum starts anew.
    batch_size : int
    fold : bool
        See `run_attack`.

    Returns
    -------
    MaskingCheck
        With the mean margins ``clean_margin``, ``margin`` and ``continued_margin``, the ``gain`` as a fraction of what
        the attack had gained, and the share ``fell`` of images.
    """
    if attack.steps == 1:
        return MaskingCheck("steps", None, "not judged: a single step is not meant to converge.")
    x, y = _as_batch(model, x, y)
    x_adv = as_images(x_adv, device=x.device).detach()
    with _undisturbed(model):
        before, ended = (attack_loss(_logits(model, at, batch_size), y, "margin") for at in (x, x_adv))
        left = ((ended < 0) & before.isfinite() & ended.isfinite()).nonzero()[:, 0]  # NaN is not < 0
        if not len(left):
            return MaskingCheck("steps", True, "no image survived: nothing to judge.")
        x, x_adv, y, before, ended = (tensor[left] for tensor in (x, x_adv, y, before, ended))
        longer = dataclasses.replace(attack, steps=max(attack.steps, _LEAST_MORE_STEPS), restarts=1)
        parts = zip(x.split(batch_size), y.split(batch_size), x_adv.split(batch_size), strict=True)
        moved = torch.cat([run_attack(longer, model, a, b, start=c, fold=fold) for a, b, c in parts])
        after = attack_loss(_logits(model, moved, batch_size), y, "margin")
    fell = int((after >= 0).sum())
    gained, more, missing = (t.double().nan_to_num().sum().item() for t in (ended - before, after - ended, -ended))
    ratio = more / gained if gained > 0 else float("inf") if more > 0 else 0.0
    values = {
        "clean_margin": before.mean().item(),
        "margin": ended.mean().item(),
        "continued_margin": after.mean().item(),
        "gain": ratio,
        "fell": fell / len(x),
    }
    found = (
        f"{longer.steps} more steps took the mean margin of {len(x)} surviving images from {ended.mean():.3g} to"
        f" {after.mean():.3g} (clean {before.mean():.3g}, wrong from 0 on), and {fell} of them fell"
    )
    if not (more > _GAIN_TOLERANCE * max(gained, 0) and more > _GAIN_THAT_MATTERS * missing):
        return MaskingCheck("steps", True, f"{found}.", values)
    reach = attack.steps * attack.step_size
    advice = (
        f"{attack.steps} steps of {attack.step_size:g} do not even reach from the image to eps {attack.eps:g}: take"
        " more or larger ones."
        if reach < attack.eps
        else "Take more steps, or larger ones."
    )
    return MaskingCheck("steps", False, f"{found}: the attack has not converged. {advice}", values)


def check_restarts(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    attack: AttackConfig,
    *,
    survivor_share: float = 1.0,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
    batch_size: int = 256,
    fold: bool = True,
) -> MaskingCheck:
    """Does one more random start break images that survived all so far?

    The check fails if, with 99 % confidence, it breaks more than 2 % of all images: outcomes then depend on luck, as
    they do where the loss is rugged (Carlini et al. 2019, section 5.3).

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
        Images that survived the attack.
    y : Tensor or ndarray, (n,)
    attack : AttackConfig
    survivor_share : float
        Survivors as a fraction of all images, in (0, 1]: what falls is said as a share of all.
    generator, indices
        See `pgd`; those of the attack, so that the restart of index ``attack.restarts`` is a new one.
    batch_size : int
    fold : bool
        See `run_attack`.

    Returns
    -------
    MaskingCheck
        With the share ``fell`` of the survivors, and the ``lower_bound`` of the share of all images.
    """
    if not attack.random_start:
        return _no_restarts()
    x, y = _as_batch(model, x, y)
    indices = torch.arange(len(x)) if indices is None else as_labels(indices, len(x), name="indices").cpu()
    x_adv = _another_start(model, x, y, attack, generator, indices, batch_size, fold)
    return _judge_restarts(model, x, x_adv, y, attack, survivor_share, batch_size)


def check_black_box(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    attack: AttackConfig,
    *,
    survivor_share: float = 1.0,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
    n_queries: int = _QUERIES,
    batch_size: int = 256,
    fold: bool = True,
) -> MaskingCheck:
    """Does a random search without gradients break images that survived the attack?

    Few queries in the same ball (`tla_core.random_search`), which no gradient attack that works should lose to (Athalye
    et al. 2018, section 3.1). The check fails if, with 99 % confidence, more than 1 % of all images fall.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
        Images that survived the attack.
    y : Tensor or ndarray, (n,)
    attack : AttackConfig
        Its norm and `eps` are used.
    survivor_share : float
        Survivors as a fraction of all images, in (0, 1]: what falls is said as a share of all.
    generator, indices
        See `pgd`: the search depends on (seed, index) alone.
    n_queries : int
        Forward passes of each image.
    batch_size : int
    fold : bool
        See `run_attack`.

    Returns
    -------
    MaskingCheck
        With the share ``fell`` of the survivors, the ``lower_bound`` of the share of all images, and the `queries`.
    """
    x, y = _as_batch(model, x, y)
    if not len(x):
        return MaskingCheck("black_box", True, "no image survived: nothing to judge.")
    seed = 0 if generator is None else generator.initial_seed()
    indices = torch.arange(len(x)) if indices is None else as_labels(indices, len(x), name="indices")
    indices = indices.to(x.device)
    with _undisturbed(model):
        searched = folded_if_equal(model, x) if fold else model
        parts = zip(x.split(batch_size), y.split(batch_size), indices.split(batch_size), strict=True)
        found = [random_search(searched, *part, attack, seed=seed, n_queries=n_queries) for part in parts]
        fell = torch.cat([_logits(model, part, batch_size) for part in found]).argmax(1) != y
    values = _share_of_all(fell, survivor_share) | {"queries": float(n_queries)}
    said = f"{n_queries} random queries broke {int(fell.sum())} of {len(x)} images that had survived {attack}"
    if values["lower_bound"] <= _SHARE_TOLERANCE:
        return MaskingCheck("black_box", True, f"{said}.", values)
    return MaskingCheck(
        "black_box",
        False,
        f"{said}, at least {values['lower_bound']:.1%} of all: a search without gradients beats the attack, so the"
        " gradients mislead. Use a black-box attack (Square, AutoAttack) or a differentiable approximation (BPDA).",
        values,
    )


def check_transfer(correct_white: Tensor | Iterable[Tensor], correct_black: Tensor) -> MaskingCheck:
    """Does a transferred or other black-box attack break images that no white-box attack breaks?

    It should not: whoever sees the gradients can do all that others can (Athalye et al. 2018, section 3.1). The check
    fails if, with 99 % confidence, more than 1 % of all images are broken by the black-box attack alone.

    Parameters
    ----------
    correct_white : Tensor, (n,), bool, or several
        Outcomes under the white-box attacks, such as ``evaluation.correct["PGD-20"]``.
    correct_black : Tensor, (n,), bool
        Outcomes under the black-box attack, of the same images in the same order.

    Returns
    -------
    MaskingCheck
        With the share of images broken by the black box alone (``black_alone``), its ``lower_bound``, and the
        accuracies ``white`` and ``black``.

    Raises
    ------
    ValueError
        For outcomes of different lengths.
    """
    black = _as_outcome(correct_black, None, "correct_black")
    several = [correct_white] if isinstance(correct_white, (Tensor, np.ndarray)) else list(correct_white)
    if not several or not len(black):
        return MaskingCheck("transfer", None, "not judged: no white-box attack to compare with.")
    white = torch.stack([_as_outcome(outcome, len(black), "correct_white") for outcome in several]).all(0)
    alone = white & ~black
    bound = _lower_bound(int(alone.sum()), len(alone))
    values = {"black_alone": _share(alone), "lower_bound": bound, "white": _share(white), "black": _share(black)}
    found = (
        f"the black-box attack breaks {int(alone.sum())} of {len(alone)} images that no white-box attack breaks"
        f" (accuracies {_share(black):.1%} and {_share(white):.1%})"
    )
    if bound <= _SHARE_TOLERANCE:
        return MaskingCheck("transfer", True, f"{found}.", values)
    return MaskingCheck(
        "transfer",
        False,
        f"{found}: with gradients an attack should be the stronger one. Suspect the gradients, or give the white-box"
        " attack more steps and restarts.",
        values,
    )


def check_ensemble(correct_white: Tensor | Iterable[Tensor], correct_ensemble: Tensor) -> MaskingCheck:
    """Does AutoAttack break far more than the gradient attacks that an accuracy was reported for?

    Some more is what stronger attacks do; far more says that the gradients of the weaker ones mislead. The check fails
    if, with 99 % confidence, AutoAttack alone breaks more than 10 % of all images.

    Parameters
    ----------
    correct_white : Tensor, (n,), bool, or several
        Outcomes under the gradient attacks.
    correct_ensemble : Tensor, (n,), bool
        Outcomes under AutoAttack, of the same images in the same order.

    Returns
    -------
    MaskingCheck
        With the share of images broken by the ensemble alone (``ensemble_alone``), its ``lower_bound``, and the
        accuracies ``white`` and ``ensemble``.

    Raises
    ------
    ValueError
        For outcomes of different lengths.
    """
    ensemble = _as_outcome(correct_ensemble, None, "correct_ensemble")
    several = [correct_white] if isinstance(correct_white, (Tensor, np.ndarray)) else list(correct_white)
    if not several or not len(ensemble):
        return MaskingCheck("ensemble", None, "not judged: no gradient attack to compare with.")
    white = torch.stack([_as_outcome(outcome, len(ensemble), "correct_white") for outcome in several]).all(0)
    alone = white & ~ensemble
    bound = _lower_bound(int(alone.sum()), len(alone))
    values = {
        "ensemble_alone": _share(alone), "lower_bound": bound, "white": _share(white), "ensemble": _share(ensemble)
    }  # fmt: skip
    found = (
        f"AutoAttack breaks {int(alone.sum())} of {len(alone)} images that no gradient attack breaks (accuracies"
        f" {_share(ensemble):.1%} and {_share(white):.1%})"
    )
    if bound <= _ENSEMBLE_TOLERANCE:
        return MaskingCheck("ensemble", True, f"{found}.", values)
    message = f"{found}: the gradients mislead, and of the accuracies only AutoAttack's is to be believed."
    return MaskingCheck("ensemble", False, message, values)


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


def _another_start(
    model: nn.Module, x: Tensor, y: Tensor, attack: AttackConfig, generator: torch.Generator | None, indices: Tensor,
    batch_size: int, fold: bool,
) -> Tensor:  # fmt: skip
    """Where the attack ends from a start that it has not used, or from the image where it has no random start."""
    restart = attack.restarts if attack.random_start else 0
    with _undisturbed(model):
        ends = [
            run_attack(attack, model, *part, generator=generator, indices=at, restart=restart, fold=fold)
            for *part, at in zip(x.split(batch_size), y.split(batch_size), indices.split(batch_size), strict=True)
        ]
    x_adv = torch.cat(ends)
    return torch.where(x_adv.isnan(), x, x_adv)  # steps along gradients that are NaN


def _judge_restarts(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, attack: AttackConfig, share: float, batch_size: int
) -> MaskingCheck:
    if not attack.random_start:
        return _no_restarts()
    if not len(x):
        return MaskingCheck("restarts", True, "no image survived: nothing to judge.")
    with _undisturbed(model):
        fell = _logits(model, x_adv, batch_size).argmax(1) != y
    values = _share_of_all(fell, share)
    found = f"another random start broke {int(fell.sum())} of {len(x)} images that had survived {attack}"
    if values["lower_bound"] <= _RESTART_TOLERANCE:
        return MaskingCheck("restarts", True, f"{found}.", values)
    return MaskingCheck(
        "restarts",
        False,
        f"{found}, at least {values['lower_bound']:.1%} of all: outcomes depend on the start. Use more restarts, until"
        " the accuracy no longer falls.",
        values,
    )


def _no_restarts() -> MaskingCheck:
    return MaskingCheck("restarts", None, "not judged: the attack has no random start.")


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no trace in the model, and torch's random state as before afterwards."""
    device = model_device(model)
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with attack_mode(model), torch.random.fork_rng(devices=devices, device_type=kind):
        yield


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([forward_in_chunks(model, part) for part in x.split(batch_size)])


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor | None:
    """Gradient of the loss by the images; None where there is no graph from one to the other."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        try:
            total = attack_loss(model(x), y, loss).sum()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            with torch.no_grad():
                model(x.detach())  # raises again unless it was the graph, as in x.numpy()
            return None
        if not total.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    return gradient


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


def _as_batch(model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    x = as_images(x, device=model_device(model)).detach()
    return x, as_labels(y, len(x)).to(x.device)


def _as_outcome(outcome: Tensor | np.ndarray, n: int | None, name: str) -> Tensor:
    outcome = torch.as_tensor(outcome).cpu()
    if outcome.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, one for each image. Got {outcome.dtype}.")
    if outcome.ndim != 1 or (n is not None and len(outcome) != n):
        raise ValueError(f"{name} must have the shape ({'n' if n is None else n},). Got {tuple(outcome.shape)}.")
    return outcome


def _share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else 0.0


def _largest(values: Tensor) -> float:
    return values.max().item() if len(values) else 0.0


def _too_many(bad: Tensor) -> bool:
    """All of them, or with confidence more than the tolerance."""
    return bool(len(bad)) and (bool(bad.all()) or _lower_bound(int(bad.sum()), len(bad)) > _SHARE_TOLERANCE)


def _share_of_all(fell: Tensor, survivor_share: float) -> dict[str, float]:
    bound = _lower_bound(int(fell.sum()), len(fell)) * survivor_share
    return {"fell": _share(fell), "lower_bound": bound}


def _lower_bound(k: int, n: int) -> float:
    """One-sided lower confidence bound of a share, of which k of n were seen (Clopper and Pearson 1934)."""
    if k == 0:
        return 0.0
    low, high = 0.0, k / n
    counts = torch.arange(k, n + 1, dtype=torch.double)
    ways = torch.lgamma(torch.tensor(n + 1.0).double()) - torch.lgamma(counts + 1) - torch.lgamma(n - counts + 1)
    for _ in range(40):
        p = torch.tensor((low + high) / 2, dtype=torch.double)
        at_least_k = torch.exp(ways + counts * p.log() + torch.special.xlog1py(n - counts, -p)).sum().item()
        low, high = (p.item(), high) if at_least_k < 1 - _CONFIDENCE else (low, p.item())
    return low
