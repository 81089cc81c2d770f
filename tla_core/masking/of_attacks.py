"""Checks of one attack on a model, run on images that survived it: another start, more steps, a larger ball."""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.ascent import attack_loss
from tla_core.attack_config import AttackConfig
from tla_core.attacks import run_attack
from tla_core.chunks import images_at_once
from tla_core.folding import folded_if_equal
from tla_core.layers import model_device
from tla_core.masking.of_models import as_batch, how_many_not_finite, logits_of, undisturbed
from tla_core.masking.verdicts import GAP_TOLERANCE, MaskingCheck, share, share_of_all, too_many
from tla_core.random_numbers import counter_uniform
from tla_core.validation import as_images

# Of survivors, whose loss ended no higher than it started: none of 190 images did on the UM, AT, ALP and TLA networks
# of `mini` (PGD, MIM and C&W of 20 steps, BIM of 10), nearly all do along a reversed gradient.
_ASCENT_TOLERANCE = 0.1
_LEFT_TOLERANCE = 0.1  # of images that nothing bounds
# As a fraction of the gain of all steps so far. On the models of `mini`: 0.05 to 0.29 for PGD-20, 1.5 to 3.3 for PGD-2.
_GAIN_TOLERANCE = 0.5
# As a fraction of the margin that is left: a smaller gain would take too many repetitions to change an outcome.
_GAIN_THAT_MATTERS = 0.01
# A short attack is continued by so many steps, since two steps more than two show little.
_LEAST_MORE_STEPS = 10
_UNBOUNDED_STEPS = 20
_SEED = 0x0FFB17


def check_steps(
    model: nn.Module,
    x: Tensor | np.ndarray,
    x_adv: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    attack: AttackConfig,
    *,
    survivor_share: float = 1.0,
    batch_size: int = 256,
    fold: bool = True,
) -> MaskingCheck:
    """Has the attack converged? It goes on from its last iterate for as many steps again (at least ten).

    Judged by the margin ``max_other - z_y`` and not by outcomes: of the survivors of PGD-2 hardly more fall by two more
    steps than of those of PGD-20 by twenty, but their margins rise ten times as much. The attack fails the check if the
    further steps gain more than half of what it had gained, and at least 1 % of what is missing, and if the survivors
    are more than 2 % of all images: if all of fewer fell, the accuracy would hardly change. After Carlini et al. 2019,
    section 5.3: more iterations must not make the attack stronger.

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
    survivor_share : float
        Survivors as a fraction of all images, in (0, 1].
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
    x, y = as_batch(model, x, y)
    x_adv = as_images(x_adv, device=x.device).detach()
    with undisturbed(model):
        # The survivors go on from where the attack ended.
        clean_margin, margin = (attack_loss(logits_of(model, images, batch_size), y, "margin") for images in (x, x_adv))
        survivors = ((margin < 0) & clean_margin.isfinite() & margin.isfinite()).nonzero()[:, 0]  # NaN is not < 0
        if not len(survivors):
            return MaskingCheck("steps", True, "no image survived: nothing to judge.")
        x, x_adv, y, clean_margin, margin = (rows[survivors] for rows in (x, x_adv, y, clean_margin, margin))
        longer = dataclasses.replace(attack, steps=max(attack.steps, _LEAST_MORE_STEPS), restarts=1)
        parts = zip(x.split(batch_size), y.split(batch_size), x_adv.split(batch_size), strict=True)
        continued = torch.cat([run_attack(longer, model, *part, start=start, fold=fold) for *part, start in parts])
        continued_margin = attack_loss(logits_of(model, continued, batch_size), y, "margin")

    # What did the attack gain, what did the further steps, and how much is missing until an image falls?
    differences = margin - clean_margin, continued_margin - margin, -margin
    gain, further_gain, missing = (margins.double().nan_to_num().sum().item() for margins in differences)
    fell = int((continued_margin >= 0).sum())
    values = {
        "clean_margin": clean_margin.mean().item(),
        "margin": margin.mean().item(),
        "continued_margin": continued_margin.mean().item(),
        "gain": further_gain / gain if gain > 0 else float("inf") if further_gain > 0 else 0.0,
        "fell": fell / len(x),
    }
    summary = (
        f"{longer.steps} more steps took the mean margin of {len(x)} surviving images from {margin.mean():.3g} to"
        f" {continued_margin.mean():.3g} (clean {clean_margin.mean():.3g}, wrong from 0 on), and {fell} of them fell"
    )

    # Would going on change the accuracy?
    still_gains = further_gain > max(_GAIN_TOLERANCE * max(gain, 0), _GAIN_THAT_MATTERS * missing)
    if not still_gains or survivor_share <= GAP_TOLERANCE:
        return MaskingCheck("steps", True, f"{summary}.", values)
    reach = attack.steps * attack.step_size
    advice = (
        f"{attack.steps} steps of {attack.step_size:g} do not even reach from the image to eps {attack.eps:g}: take"
        " more or larger ones."
        if reach < attack.eps
        else "Take more steps, or larger ones."
    )
    return MaskingCheck("steps", False, f"{summary}: the attack has not converged. {advice}", values)


def check_unbounded(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    attack: AttackConfig,
    *,
    batch_size: int = 256,
    fold: bool = True,
) -> MaskingCheck:
    """Does the attack break everything where nothing bounds it but the range of the pixels?

    From the images themselves, in 20 steps that reach across the range twice. The check fails if, with 99 % confidence,
    more than a tenth stay as they were: an image can always be turned into another (Carlini et al. 2019, section 5.6;
    Pintor et al. 2022).

    Parameters
    ----------
    model, x, y, attack, batch_size, fold
        See `check_steps`; the norm and the loss of the attack are used.

    Returns
    -------
    MaskingCheck
        With the share ``left`` of the images.
    """
    x, y = as_batch(model, x, y)
    if not len(x):
        return MaskingCheck("unbounded", True, "no image survived: nothing to judge.")
    if len(y.unique()) == 1:  # a model that knows one class alone cannot be led to another
        return MaskingCheck("unbounded", None, "not judged: all images that survived are of one class.")
    radius = 1.0 if attack.norm == "linf" else x[0].numel() ** 0.5
    settings = {"eps": radius, "step_size": 2 * radius / _UNBOUNDED_STEPS, "steps": _UNBOUNDED_STEPS}
    unbounded = dataclasses.replace(attack, random_start=False, restarts=1, **settings)
    with undisturbed(model):
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        x_adv = torch.cat([run_attack(unbounded, model, *part, fold=fold, stop_when_broken=True) for part in parts])
        unchanged = logits_of(model, x_adv.nan_to_num(), batch_size).argmax(1) == y
    values = {"left": share(unchanged)}
    summary = f"with pixels free to take any value, {int(unchanged.sum())} of {len(x)} images stay correct"
    if not too_many(unchanged, _LEFT_TOLERANCE):
        return MaskingCheck("unbounded", True, f"{summary}.", values)
    message = f"{summary}: the attack does not find what must be there. Suspect the gradients, or the loss."
    return MaskingCheck("unbounded", False, message, values)


def check_perturbed_outputs(
    model: nn.Module, x: Tensor | np.ndarray, attack: AttackConfig, *, batch_size: int = 256
) -> MaskingCheck:
    """Are the outputs finite within the ball, off the values that an image of bytes has?

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
        Clean images; each is looked at in one random place of the ball's border.
    attack : AttackConfig
        Or another attack with a `norm` and an `eps`, which are used.
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the share ``not_finite`` of the images.
    """
    x = as_images(x, device=model_device(model)).detach()
    noise = 2 * counter_uniform(_SEED, torch.arange(len(x), device=x.device), 0, x[0].numel()).view_as(x) - 1
    norms = 1.0 if attack.norm == "linf" else torch.linalg.vector_norm(noise.flatten(1), dim=1).view(-1, 1, 1, 1)
    with undisturbed(model):
        logits = logits_of(model, (x + attack.eps * noise / norms).clamp(0, 1), batch_size)
    return judge_perturbed(logits)


def judge_perturbed(logits: Tensor) -> MaskingCheck:
    """`check_perturbed_outputs`, of logits (n, classes)."""
    bad = ~logits.isfinite().all(1)
    values = {"not_finite": share(bad)}
    if not bad.any():
        return MaskingCheck("perturbed", True, f"the outputs of {len(bad)} perturbed images are finite.", values)
    return MaskingCheck(
        "perturbed",
        False,
        f"of perturbed images, {how_many_not_finite(logits)}: they are no predictions, and count as wrong. Find where"
        " the model divides by, or takes the root or logarithm of, what can be 0.",
        values,
    )


class Ascent(NamedTuple):
    """A run of an attack: last images (n, c, h, w), first losses (n,), and which were ever misclassified (n,)."""

    x_adv: Tensor
    start_loss: Tensor
    was_wrong: Tensor


class _Watched(nn.Module):
    """A model that remembers the loss of an attack's first forward pass, and who was misclassified in any of them."""

    def __init__(self, model: nn.Module, y: Tensor, loss: str) -> None:
        super().__init__()
        self.model, self.y, self.loss, self.training = model, y, loss, False
        self.start_loss, self.was_wrong = torch.full(y.shape, torch.nan, device=y.device), torch.zeros_like(y).bool()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if len(x) == len(self.y):  # not the single image that a range of labels is checked on
            values = logits.detach().float()
            loss = _unsaturated(values, self.y, self.loss)
            self.start_loss = torch.where(self.start_loss.isnan(), loss, self.start_loss)
            self.was_wrong |= values.argmax(1) != self.y
        return logits


def _unsaturated(logits: Tensor, y: Tensor, loss: str) -> Tensor:
    """The loss of an attack in float64, and of the cross-entropy what rises with it and does not round to 0."""
    logits = logits.double()
    if loss != "ce":
        return attack_loss(logits, y, loss)
    true = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf) - true).logsumexp(1)


def another_start(
    model: nn.Module, x: Tensor, y: Tensor, attack: AttackConfig, generator: torch.Generator | None, indices: Tensor,
    batch_size: int, fold: bool,
) -> Ascent:  # fmt: skip
    """Where the attack ends from a start that it has not used, or from the image where it has no random start."""
    size = max(min(batch_size, images_at_once(x)), 1)  # so that each forward pass is of the same images
    ascents = []
    with undisturbed(model):
        # The first start of one restart more: of a targeted attack, towards the target that `check_steps` takes too.
        restart = attack.n_starts(logits_of(model, x[:1], 1).shape[1]) if attack.random_start and len(x) else 0
        inner = folded_if_equal(model, x) if fold and len(x) else model
        for images, labels, rows in zip(x.split(size), y.split(size), indices.split(size), strict=True):
            watched = _Watched(inner, labels, attack.loss)
            x_adv = run_attack(attack, watched, images, labels, generator=generator, indices=rows, restart=restart)
            ascents.append(Ascent(x_adv, watched.start_loss, watched.was_wrong))
    x_adv, start_loss, was_wrong = (torch.cat(parts) for parts in zip(*ascents, strict=True))
    return Ascent(torch.where(x_adv.isnan(), x, x_adv), start_loss, was_wrong)  # NaN where the gradients are


def judge_ascent(
    model: nn.Module, ascent: Ascent, y: Tensor, attack: AttackConfig, survivor_share: float, batch_size: int
) -> MaskingCheck:
    """Does the attack raise its loss, and keep the misclassified images that it comes across?

    The check fails if, with 99 % confidence, the loss of more than a tenth of the survivors ends no higher than it
    started, as along a reversed gradient; or if more than 2 % of all images were misclassified at an iterate and are
    not at the end ("silent success", Pintor et al. 2022).

    Parameters
    ----------
    model : nn.Module
    ascent : Ascent
        Of images that survived the attack, from `another_start`.
    y : Tensor, (n,)
    attack : AttackConfig
    survivor_share : float
        Survivors as a fraction of all images, in (0, 1].
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the shares of survivors whose loss did not rise (``not_risen``) and that were broken on the way only
        (``silent``).
    """
    if attack.steps == 1 or attack.eps == 0:
        return MaskingCheck("ascent", None, "not judged: a single step, or none, is not meant to rise everywhere.")
    if attack.targets:
        return MaskingCheck("ascent", None, "not judged: a targeted attack climbs another loss for each target.")
    if not len(y):
        return MaskingCheck("ascent", True, "no image survived: nothing to judge.")
    # What became of the loss, and of images that were broken on the way?
    with undisturbed(model):
        logits = logits_of(model, ascent.x_adv, batch_size)
    end_loss = _unsaturated(logits, y, attack.loss)
    not_risen = end_loss <= ascent.start_loss
    silent = ascent.was_wrong & (logits.argmax(1) == y)
    values = {
        "not_risen": share(not_risen),
        "silent": share(silent),
        "lower_bound": share_of_all(silent, survivor_share)["lower_bound"],
    }
    summary = (
        f"the loss of {int(not_risen.sum())} of {len(y)} surviving images ended no higher than it started, and"
        f" {int(silent.sum())} were misclassified on the way alone"
    )
    # The verdict.
    if too_many(not_risen, _ASCENT_TOLERANCE):
        advice = (
            "the attack does not climb. Suspect the sign of the gradients, a backward pass that is written by hand, or"
            " a step size that is far too large."
        )
        return MaskingCheck("ascent", False, f"{summary}: {advice}", values)
    if values["lower_bound"] > GAP_TOLERANCE:
        advice = "keep the iterate that is misclassified (APGD does), or take smaller steps."
        return MaskingCheck("ascent", False, f"{summary}: {advice}", values)
    return MaskingCheck("ascent", True, f"{summary}.", values)


def judge_restarts(
    model: nn.Module, ascent: Ascent, y: Tensor, attack: AttackConfig, survivor_share: float, batch_size: int
) -> MaskingCheck:
    """Does one more random start break images that survived all so far?

    The check fails if, with 99 % confidence, it breaks more than 2 % of all images: outcomes then depend on luck, as
    they do where the loss is rugged (Carlini et al. 2019, section 5.3).

    Parameters
    ----------
    model, ascent, y, attack, survivor_share, batch_size
        See `judge_ascent`.

    Returns
    -------
    MaskingCheck
        With the share ``fell`` of the survivors, and the ``lower_bound`` of the share of all images.
    """
    if not attack.random_start:
        return MaskingCheck("restarts", None, "not judged: the attack has no random start.")
    if not len(y):
        return MaskingCheck("restarts", True, "no image survived: nothing to judge.")
    with undisturbed(model):
        fell = logits_of(model, ascent.x_adv, batch_size).argmax(1) != y
    values = share_of_all(fell, survivor_share)
    summary = f"another random start broke {int(fell.sum())} of {len(y)} images that had survived {attack}"
    if values["lower_bound"] <= GAP_TOLERANCE:
        return MaskingCheck("restarts", True, f"{summary}.", values)
    return MaskingCheck(
        "restarts",
        False,
        f"{summary}, at least {values['lower_bound']:.1%} of all: outcomes depend on the start. Use more restarts,"
        " until the accuracy no longer falls.",
        values,
    )
