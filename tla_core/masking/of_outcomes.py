"""Checks that compare the outcomes of attacks: no model, no image, only who broke what."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tla_core.masking.verdicts import SHARE_TOLERANCE, MaskingCheck, as_outcome, lower_bound, share

# AutoAttack leaves 4 points less than PGD of the published TLA model on CIFAR-10 (51.59 and 47.41 %), and 23 points
# less of a TLA network of ours, most of which its search without gradients takes.
_ENSEMBLE_TOLERANCE = 0.1


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
    black = as_outcome(correct_black, None, "correct_black")
    several = [correct_white] if isinstance(correct_white, (Tensor, np.ndarray)) else list(correct_white)
    if not several or not len(black):
        return MaskingCheck("transfer", None, "not judged: no white-box attack to compare with.")
    white = torch.stack([as_outcome(outcome, len(black), "correct_white") for outcome in several]).all(0)
    alone = white & ~black
    bound = lower_bound(int(alone.sum()), len(alone))
    values = {"black_alone": share(alone), "lower_bound": bound, "white": share(white), "black": share(black)}
    found = (
        f"the black-box attack breaks {int(alone.sum())} of {len(alone)} images that no white-box attack breaks"
        f" (accuracies {share(black):.1%} and {share(white):.1%})"
    )
    if bound <= SHARE_TOLERANCE:
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
    ensemble = as_outcome(correct_ensemble, None, "correct_ensemble")
    several = [correct_white] if isinstance(correct_white, (Tensor, np.ndarray)) else list(correct_white)
    if not several or not len(ensemble):
        return MaskingCheck("ensemble", None, "not judged: no gradient attack to compare with.")
    white = torch.stack([as_outcome(outcome, len(ensemble), "correct_white") for outcome in several]).all(0)
    alone = white & ~ensemble
    bound = lower_bound(int(alone.sum()), len(alone))
    values = {
        "ensemble_alone": share(alone), "lower_bound": bound, "white": share(white), "ensemble": share(ensemble)
    }  # fmt: skip
    found = (
        f"AutoAttack breaks {int(alone.sum())} of {len(alone)} images that no gradient attack breaks (accuracies"
        f" {share(ensemble):.1%} and {share(white):.1%})"
    )
    if bound <= _ENSEMBLE_TOLERANCE:
        return MaskingCheck("ensemble", True, f"{found}.", values)
    message = f"{found}: the gradients mislead, and of the accuracies only AutoAttack's is to be believed."
    return MaskingCheck("ensemble", False, message, values)
