"""Checks that compare the outcomes of attacks: no model, no image, only who broke what."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tla_core.masking.verdicts import GAP_TOLERANCE, MaskingCheck, as_outcome, lower_bound, paired_gap, share

_PGD, _APGD, _BLACK_BOX, _ENSEMBLE, _UNKNOWN = "PGD", "APGD", "black box", "ensemble", "unknown"


def compare_attacks(
    correct: Mapping[str, Tensor], settings: Mapping[str, Mapping[str, Any]], n_images: int | None = None
) -> dict[str, MaskingCheck]:
    """Compare the attacks of an evaluation in the same ball, each with the weaker ones on the images that they share.

    Whoever sees the gradients can do all that others can (Athalye et al. 2018, section 3.1). So a black box or a
    transferred attack is compared with all gradient attacks together (``"transfer"``), and so is AutoAttack
    (``"ensemble"``); APGD, and attacks whose kind is not known, are compared with those of fixed steps
    (``"stronger"``). See `check_transfer`, `check_ensemble` and `check_stronger` for when they fail.

    Parameters
    ----------
    correct : mapping of str to Tensor, (k,), bool
        Attack -> outcomes. Those of k of the n images are of every n / k-th, ``arange(k) * n // k``.
    settings : mapping of str to mapping
        Attack -> what `describe_attack` says of it; others are not compared.
    n_images : int, optional
        All images; by default as many as the longest outcome has.

    Returns
    -------
    dict of str to MaskingCheck
        By the names of the stronger attacks; without those that have no weaker attack beside them.
    """
    names = [name for name in settings if name in correct]
    n_images = n_images or max((len(correct[name]) for name in correct), default=0)
    kinds, balls = {}, {}
    for name in names:
        kinds[name], balls[name] = _kind_and_ball(settings[name])
    known_balls = {ball for ball in balls.values() if ball is not None}
    checks = {}
    for name in names:
        kind, ball = kinds[name], balls[name]
        if ball is None and len(known_balls) == 1:
            (ball,) = known_balls
        if kind == _PGD or ball is None:
            continue
        fixed = {other: correct[other] for other in names if kinds[other] == _PGD and balls[other] == ball}
        adaptive = {other: correct[other] for other in names if kinds[other] == _APGD and balls[other] == ball}
        weaker = fixed if kind in (_APGD, _UNKNOWN) else fixed | adaptive
        several, outcome = _on_shared_images(weaker, correct[name], n_images)
        if not several or not len(outcome):
            continue
        if kind == _BLACK_BOX:
            checks[name] = check_transfer(several.values(), outcome)
        elif kind == _ENSEMBLE:
            checks[name] = check_ensemble(several, outcome, name=name, strong=bool(set(adaptive) & set(several)))
        else:
            checks[name] = check_stronger(several, outcome, name=name)
    return checks


def check_transfer(correct_white: Tensor | Iterable[Tensor], correct_black: Tensor) -> MaskingCheck:
    """Does a transferred or other black-box attack break images that no white-box attack breaks?

    The check fails if, with 99 % confidence, more than 2 % of all images are broken by the black-box attack alone.

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
    white = _worst_case(correct_white, len(black))
    if white is None:
        return MaskingCheck("transfer", None, "not judged: no white-box attack to compare with.")
    alone = white & ~black
    bound = lower_bound(int(alone.sum()), len(alone))
    values = {"black_alone": share(alone), "lower_bound": bound, "white": share(white), "black": share(black)}
    found = (
        f"the black-box attack breaks {int(alone.sum())} of {len(alone)} images that no white-box attack breaks"
        f" (accuracies {share(black):.1%} and {share(white):.1%})"
    )
    if bound <= GAP_TOLERANCE:
        return MaskingCheck("transfer", True, f"{found}.", values)
    return MaskingCheck(
        "transfer",
        False,
        f"{found}: with gradients an attack should be the stronger one. Suspect the gradients, or give the white-box"
        " attack more steps and restarts, or take APGD.",
        values,
    )


def check_ensemble(
    correct_white: Tensor | Iterable[Tensor] | Mapping[str, Tensor],
    correct_ensemble: Tensor,
    *,
    name: str = "AutoAttack",
    strong: bool = False,
) -> MaskingCheck:
    """How much less does AutoAttack leave than the gradient attacks that an accuracy was reported for?

    Beside PGD that is a number and no failure: fixed steps are the weaker attack. Beside APGD, which is half of
    AutoAttack, the check fails if with 99 % confidence it leaves less by more than 2 points.

    Parameters
    ----------
    correct_white : Tensor, (n,), bool, or several, or a mapping of their names
        Outcomes under the gradient attacks.
    correct_ensemble : Tensor, (n,), bool
        Outcomes under AutoAttack, of the same images in the same order.
    name : str
        What AutoAttack is called.
    strong : bool
        Is APGD among the gradient attacks?

    Returns
    -------
    MaskingCheck
        With the ``gap`` of the accuracies ``white`` and ``ensemble``, its ``standard_error``, and its
        ``lower_bound``.

    Raises
    ------
    ValueError
        For outcomes of different lengths.
    """
    check = _gap("ensemble", correct_white, correct_ensemble, name, "ensemble")
    if not strong or check.values.get("lower_bound", 0.0) <= GAP_TOLERANCE:
        return check
    found = check.message.partition(":")[0]
    message = f"{found}: the gradients mislead even APGD, and of the accuracies only {name}'s is to be believed."
    return MaskingCheck("ensemble", False, message, check.values)


def check_stronger(
    correct_weaker: Tensor | Iterable[Tensor] | Mapping[str, Tensor], correct_stronger: Tensor, *, name: str = "APGD"
) -> MaskingCheck:
    """How much less does a stronger attack leave than weaker ones? A number, which never fails. See `check_ensemble`.

    Returns
    -------
    MaskingCheck
        With the ``gap`` of the accuracies ``white`` and ``stronger``, its ``standard_error``, and its
        ``lower_bound``.
    """
    return _gap("stronger", correct_weaker, correct_stronger, name, "stronger")


def _gap(check: str, weaker, stronger: Tensor, name: str, key: str) -> MaskingCheck:
    outcome = as_outcome(stronger, None, f"correct_{key}")
    white = _worst_case(weaker.values() if isinstance(weaker, Mapping) else weaker, len(outcome))
    if white is None:
        return MaskingCheck(check, None, "not judged: no gradient attack to compare with.")
    values = paired_gap(white, outcome) | {"white": share(white), key: share(outcome)}
    several = list(weaker) if isinstance(weaker, Mapping) else []
    others = " and ".join(several) if 0 < len(several) <= 2 else f"the {len(several) or ''} gradient attacks".replace("  ", " ")
    gap, error = 100 * values["gap"], 100 * values["standard_error"]
    found = (
        f"{name} leaves {share(outcome):.1%} of {len(outcome)} images, {abs(gap):.1f} ± {error:.1f} points"
        f" {'less' if gap >= 0 else 'more'} than {others}"
    )
    judged = MaskingCheck(check, None, f"{found}: believe the lower number.", values)
    return judged if judged.is_gap else MaskingCheck(check, True, f"{found}.", values)


def _worst_case(several: Tensor | Iterable[Tensor], n: int) -> Tensor | None:
    several = [several] if isinstance(several, (Tensor, np.ndarray)) else list(several)
    if not several or not n:
        return None
    return torch.stack([as_outcome(outcome, n, "correct_white") for outcome in several]).all(0)


def _kind_and_ball(settings: Mapping[str, Any]) -> tuple[str, tuple[str, float] | None]:
    """What sort of attack, and in which ball: None where its settings do not say."""
    inner = settings.get("attack", settings)
    ball = (inner["norm"], inner["eps"]) if {"norm", "eps"} <= set(inner) else None
    name = settings.get("name")
    if name in ("transfer", "square"):
        return _BLACK_BOX, ball
    if name == "autoattack":
        return _ENSEMBLE, ball
    if "steps" in settings:
        return (_APGD if name == "apgd" else _PGD), ball
    return _UNKNOWN, ball


def _on_shared_images(
    weaker: Mapping[str, Tensor], outcome: Tensor, n_images: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The outcomes on the images that those attacks share which have as many as the largest number below allows."""
    rows = {k: (torch.arange(k) * n_images // k).tolist() for k in {len(each) for each in [outcome, *weaker.values()]}}
    # An attack on fewer images must not take the others away from the comparison.
    complete = {name: each for name, each in weaker.items() if set(rows[len(outcome)]) <= set(rows[len(each)])}
    compared = complete or {name: each for name, each in weaker.items() if len(each) == max(map(len, weaker.values()))}
    if not compared:
        return {}, outcome
    shared = sorted(set(rows[len(outcome)]).intersection(*(rows[len(each)] for each in compared.values())))

    def at_shared(each: Tensor) -> Tensor:
        position = {row: i for i, row in enumerate(rows[len(each)])}
        return each[[position[row] for row in shared]]

    return {name: at_shared(each) for name, each in compared.items()}, at_shared(outcome)
