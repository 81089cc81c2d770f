"""Whether a robust accuracy may be believed: the masking checks in words, as the published checklists ask for them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from analysis.reports.accuracies import Accuracies
from tla_core.masking import MaskingCheck
from tla_core.masking.verdicts import GAP_TOLERANCE, paired_gap

CARLINI, PINTOR = "Carlini et al. 2019", "Pintor et al. 2022"
FEW_IMAGES = 100
# Light -> what it says; red is the first of any.
LIGHTS = {
    "red": "Do not believe these robust accuracies.",
    "amber": "Believe these robust accuracies with care.",
    "green": "No reason was seen to doubt these robust accuracies.",
}
NO_PROOF = "That is no proof: an attack made for this model may break more."


@dataclass(frozen=True)
class Verdict:
    """One line of the checklist: what is asked, by whom, whether it holds, and in words what was seen."""

    question: str
    source: str
    status: Literal["passed", "failed", "care", "not judged", "not done"]
    words: str


@dataclass(frozen=True)
class Trust:
    """The light, the sentence that it stands for, the reasons, and the checklist behind it."""

    light: str
    sentence: str
    reasons: list[str]
    checklist: list[Verdict]


def judge(measured: Accuracies) -> Trust:
    """Judge what was measured of one model."""
    checklist = [*_sanity(measured), *_of_checks(measured), *_by_hand(measured)]
    failed = [verdict for verdict in checklist if verdict.status == "failed"]
    careful = [verdict for verdict in checklist if verdict.status == "care"]
    light = "red" if failed else "amber" if careful else "green"
    reasons = [verdict.words for verdict in failed or careful]
    return Trust(light, LIGHTS[light], reasons or [NO_PROOF], checklist)


def _sanity(measured: Accuracies) -> Iterable[Verdict]:
    """What follows from the accuracies themselves."""
    correct, accuracy = measured.evaluation.correct, measured.evaluation.accuracy
    n = len(correct["clean"])
    size = f"{n} images: the standard error of an accuracy is up to {50 / n**0.5:.0f} points."
    yield Verdict("Are there enough images?", "", "care" if n < FEW_IMAGES else "passed", size)
    pgd = next((name for name in correct if name.startswith("PGD")), None)
    question = "Do many steps break more than one?"
    if pgd is None:
        yield Verdict(question, CARLINI, "care", "Only a single step was tried: the accuracy under attack is too high.")
    else:
        seen = f"FGSM leaves {accuracy['FGSM']:.1%}, {pgd} {accuracy[pgd]:.1%}."
        worse = paired_gap(correct[pgd], correct["FGSM"])["lower_bound"] > GAP_TOLERANCE
        words = f"{seen} One step that breaks more than many is a sign of masked gradients." if worse else seen
        yield Verdict(question, CARLINI, "failed" if worse else "passed", words)
    yield _of_curve(measured)


def _of_curve(measured: Accuracies) -> Verdict:
    question = "Does a larger eps break more?"  # whether no bound at all breaks everything is a check of its own
    if len(measured.curve) < 2:
        return Verdict(question, CARLINI, "not done", "The curve over eps was left out.")
    levels = list(measured.curve)
    rises = [
        (low, high) for low, high in pairwise(levels)
        if paired_gap(measured.curve[high], measured.curve[low])["lower_bound"] > GAP_TOLERANCE
    ]  # fmt: skip
    last = measured.curve[levels[-1]].double().mean().item()
    seen = f"At eps {levels[-1]:.3g} {last:.1%} are left."
    if rises:
        low, high = rises[0]
        return Verdict(question, CARLINI, "failed", f"Accuracy rises between eps {low:.3g} and {high:.3g}.")
    clean = measured.curve[levels[0]].double().mean().item()
    if clean and last >= clean:
        words = f"{seen} That is as many as of clean images: this attack finds nothing to break, at any eps."
        return Verdict(question, CARLINI, "care", words)
    return Verdict(question, CARLINI, "passed", f"Accuracy falls with eps. {seen}")


# Question, indicator or checklist, and the checks that answer it.
_ASKED = (
    ("Is there a gradient, and is it the model's own?", f"{CARLINI}; {PINTOR}, I1", ("gradients", "outputs")),
    ("Does the same image give the same output?", f"{CARLINI}; {PINTOR}, I2", ("stochastic", "batch", "predictions")),
    ("Are outputs finite around the images?", CARLINI, ("perturbed",)),
    ("Do other random starts leave as many?", f"{CARLINI}; {PINTOR}, I2", ("restarts",)),
    ("Does the attack return the worst that it passed?", f"{PINTOR}, I3", ("ascent",)),
    ("Has the attack converged?", f"{CARLINI}; {PINTOR}, I4", ("steps",)),
    ("Does an attack without bounds break everything?", f"{CARLINI}; {PINTOR}, I6", ("unbounded",)),
    ("Does a search without gradients break no more?", CARLINI, ("black_box",)),
    ("Does AutoAttack leave as many?", CARLINI, ("ensemble", "stronger")),
)  # fmt: skip


def _of_checks(measured: Accuracies) -> Iterable[Verdict]:
    for question, source, names in _ASKED:
        several = [
            (attack, checks[name]) for name in names for attack, checks in measured.checks.items() if name in checks
        ]
        yield Verdict(question, source, *_status(several, "ensemble" in names and measured.strongest.any()))


def _status(several: list[tuple[str, MaskingCheck]], needed: bool) -> tuple[str, str]:
    """The worst of several checks, and what that one says."""

    def first(condition: Callable[[MaskingCheck], bool]) -> str:
        attack, check = next(pair for pair in several if condition(pair[1]))
        text = check.message.removeprefix("not judged: ")
        return text[:1].upper() + text[1:] if attack == "model" else f"{attack}: {text}"

    if any(check.passed is False for _, check in several):
        return "failed", first(lambda check: check.passed is False)
    if any(check.is_gap for _, check in several):
        return "care", first(lambda check: check.is_gap)
    if any(check.passed for _, check in several):
        return "passed", first(lambda check: bool(check.passed))
    if several:
        return "not judged", first(lambda check: True)
    if needed:
        return "care", "AutoAttack was not run: take the robust accuracy for an upper bound."
    return "not done", "Not run."


def _by_hand(measured: Accuracies) -> Iterable[Verdict]:
    """What no tool does."""
    words = "Each example is shown to the model itself; none is transferred from another model."
    yield Verdict("Do transferred examples break no more?", f"{CARLINI}; {PINTOR}, I5", "not done", words)
    words = "An attack made for the defence of this model: that is for its author to write."
    yield Verdict("Was an adaptive attack tried?", CARLINI, "not done", words)


def as_numbers(trust: Trust) -> dict[str, Any]:
    """As JSON values."""
    return {
        "light": trust.light, "sentence": trust.sentence, "reasons": trust.reasons,
        "checklist": [vars(verdict) for verdict in trust.checklist],
    }  # fmt: skip
