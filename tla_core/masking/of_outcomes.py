"""Checks that compare the outcomes of attacks: no model, no image, only who broke what."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tla_core.masking.verdicts import GAP_TOLERANCE, MaskingCheck, as_outcome, lower_bound, paired_gap, share

COMPARISONS = ("transfer", "ensemble", "stronger")
_PGD, _APGD, _BLACK_BOX, _ENSEMBLE, _UNKNOWN = "PGD", "APGD", "black box", "ensemble", "unknown"


def compare_attacks(
    correct: Mapping[str, Tensor], settings: Mapping[str, Mapping[str, Any]], n_images: int | None = None
) -> dict[str, MaskingCheck]:
    """Compare the attacks of an evaluation, each with the weaker ones in the same ball, on the images that they share.

    Whoever sees the gradients can do all that others can (Athalye et al. 2018, section 3.1). So a black box or a
    transferred attack is compared with all gradient attacks together (``"transfer"``), and so is AutoAttack
    (``"ensemble"``); APGD, and attacks whose kind is not known, are compared with those of fixed steps
    (``"stronger"``). Where there is none in the same ball, those in larger balls count, to which it should lose. See
    `check_transfer`, `check_ensemble` and `check_stronger` for when they fail.

    Parameters
    ----------
    correct : mapping of str to Tensor, (k,), bool
        Attack -> outcomes. An attack on k of the n images was run on ``arange(k) * n // k``.
    settings : mapping of str to mapping
        Attack -> what `describe_attack` says of it; others are not compared.
    n_images : int, optional
        All images; by default as many as the longest outcome has.

    Returns
    -------
    dict of str to MaskingCheck
        By the names of the stronger attacks; one that has no weaker attack beside it is left out.
    """
    # What kind of attack each is, and in which ball.
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
        # The weaker attacks in the same ball, or in larger ones.
        weaker_kinds = (_PGD,) if kind in (_APGD, _UNKNOWN) else (_PGD, _APGD)
        candidates = {
            other: balls[other] for other in names if kinds[other] in weaker_kinds and balls[other] is not None
        }
        equal_ball = [other for other, its_ball in candidates.items() if its_ball == ball]
        larger = [other for other, (norm, eps) in candidates.items() if norm == ball[0] and eps > ball[1]]
        weaker = {other: correct[other] for other in equal_ball or larger}
        shared_outcomes, outcome = _on_shared_images(weaker, correct[name], n_images)
        if not shared_outcomes or not len(outcome):
            continue
        # The comparison that suits the kind.
        if kind == _BLACK_BOX:
            checks[name] = check_transfer(shared_outcomes.values(), outcome)
        elif kind == _ENSEMBLE:
            checks[name] = check_ensemble(
                shared_outcomes, outcome, name=name, strong=any(kinds[other] == _APGD for other in shared_outcomes)
            )
        else:
            checks[name] = check_stronger(shared_outcomes, outcome, name=name)
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
    broken = white & ~black
    bound = lower_bound(int(broken.sum()), len(broken))
    values = {"black_alone": share(broken), "lower_bound": bound, "white": share(white), "black": share(black)}
    summary = (
        f"the black-box attack breaks {int(broken.sum())} of {len(broken)} images that no white-box attack breaks"
        f" (accuracies {share(black):.1%} and {share(white):.1%})"
    )
    if bound <= GAP_TOLERANCE:
        return MaskingCheck("transfer", True, f"{summary}.", values)
    return MaskingCheck(
        "transfer",
        False,
        f"{summary}: with gradients an attack should be the stronger one. Suspect the gradients, or give the white-box"
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
    """How much less does AutoAttack leave than the strongest gradient attack that was run?

    Beside PGD that is a number and no failure: fixed steps are the weaker attack. Beside APGD, which is half of
    AutoAttack, the check fails if with 99 % confidence it leaves less than all gradient attacks together by more than 2
    points.

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
        See `check_stronger`.

    Raises
    ------
    ValueError
        For outcomes of different lengths.
    """
    check = _gap("ensemble", correct_white, correct_ensemble, name)
    if not strong or not check.values:
        return check
    outcomes = correct_white.values() if isinstance(correct_white, Mapping) else correct_white
    ensemble = torch.as_tensor(correct_ensemble).cpu()
    gap = paired_gap(_worst_case(outcomes, len(ensemble)), ensemble)
    if gap["lower_bound"] <= GAP_TOLERANCE:
        return check
    message = (
        f"{name} leaves {share(ensemble):.1%} of {len(ensemble)} images, {_points(gap)} points less than all"
        f" gradient attacks together, APGD among them: the gradients mislead. Believe {name}."
    )
    return MaskingCheck("ensemble", False, message, check.values | gap)


def check_stronger(
    correct_weaker: Tensor | Iterable[Tensor] | Mapping[str, Tensor], correct_stronger: Tensor, *, name: str = "APGD"
) -> MaskingCheck:
    """How much less does a stronger attack leave than the strongest of weaker ones? A number, which never fails.

    Parameters
    ----------
    correct_weaker : Tensor, (n,), bool, or several, or a mapping of their names
    correct_stronger : Tensor, (n,), bool
        Of the same images in the same order.
    name : str
        What the stronger attack is called.

    Returns
    -------
    MaskingCheck
        With the ``gap`` of the accuracies ``weaker`` and ``stronger``, its ``standard_error``, and its
        ``lower_bound``. Not passed, but None, where the gap is more than 2 points and, with 99 % confidence, no chance.

    Raises
    ------
    ValueError
        For outcomes of different lengths.
    """
    return _gap("stronger", correct_weaker, correct_stronger, name)


def _gap(
    check: str, weaker: Tensor | Iterable[Tensor] | Mapping[str, Tensor], stronger: Tensor, name: str
) -> MaskingCheck:
    """The gap to the strongest of the weaker attacks, the one that leaves the least."""
    outcome = as_outcome(stronger, None, "the stronger outcome")
    if not isinstance(weaker, Mapping):
        outcomes = [weaker] if isinstance(weaker, (Tensor, np.ndarray)) else list(weaker)
        weaker = {
            f"gradient attack {k + 1}" if len(outcomes) > 1 else "the gradient attack": each
            for k, each in enumerate(outcomes)
        }
    if not weaker or not len(outcome):
        return MaskingCheck(check, None, "not judged: no gradient attack to compare with.")
    weaker = {key: as_outcome(each, len(outcome), "correct_white") for key, each in weaker.items()}
    strongest = min(weaker, key=lambda key: share(weaker[key]))
    values = paired_gap(weaker[strongest], outcome)
    values |= {"weaker": share(weaker[strongest]), "stronger": share(outcome)}
    direction = "less" if values["gap"] >= 0 else "more"
    summary = (
        f"{name} leaves {share(outcome):.1%} of {len(outcome)} images, {_points(values)} points {direction} than"
        f" {strongest}"
    )
    result = MaskingCheck(check, None, f"{summary}: believe the lower number.", values)
    return result if result.is_gap else MaskingCheck(check, True, f"{summary}.", values)


def _points(values: Mapping[str, float]) -> str:
    return f"{abs(100 * values['gap']):.1f} ± {100 * values['standard_error']:.1f}"


def _worst_case(outcomes: Tensor | Iterable[Tensor], n: int) -> Tensor | None:
    outcomes = [outcomes] if isinstance(outcomes, (Tensor, np.ndarray)) else list(outcomes)
    if not outcomes or not n:
        return None
    return torch.stack([as_outcome(outcome, n, "correct_white") for outcome in outcomes]).all(0)


def ball_of(settings: Mapping[str, Any]) -> tuple[str, float] | None:
    """The norm and eps of an attack, by what `describe_attack` says of it; None where that does not say."""
    inner = settings.get("attack", settings)
    return (inner["norm"], inner["eps"]) if {"norm", "eps"} <= set(inner) else None


def _kind_and_ball(settings: Mapping[str, Any]) -> tuple[str, tuple[str, float] | None]:
    """What sort of attack, and in which ball."""
    ball, name = ball_of(settings), settings.get("name")
    if name in ("transfer", "square"):
        return _BLACK_BOX, ball
    if name == "autoattack":
        return _ENSEMBLE, ball
    if "steps" in settings:
        return (_APGD if name == "apgd" else _PGD), ball
    return _UNKNOWN, ball


def _on_shared_images(weaker: Mapping[str, Tensor], outcome: Tensor, n_images: int) -> tuple[dict[str, Tensor], Tensor]:
    """The outcomes on the images that attacks share, of those weaker attacks that have all images of the outcome.

    If none has, those on most images are taken.
    """
    rows = {k: (torch.arange(k) * n_images // k).tolist() for k in {len(each) for each in [outcome, *weaker.values()]}}
    # An attack on fewer images must not take the others away from the comparison.
    complete = {name: each for name, each in weaker.items() if set(rows[len(outcome)]) <= set(rows[len(each)])}
    comparable = complete or {
        name: each for name, each in weaker.items() if len(each) == max(map(len, weaker.values()))
    }
    if not comparable:
        return {}, outcome
    shared = sorted(set(rows[len(outcome)]).intersection(*(rows[len(each)] for each in comparable.values())))

    def at_shared(each: Tensor) -> Tensor:
        position = {row: i for i, row in enumerate(rows[len(each)])}
        return each[[position[row] for row in shared]]

    return {name: at_shared(each) for name, each in comparable.items()}, at_shared(outcome)
