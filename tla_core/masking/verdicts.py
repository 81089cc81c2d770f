"""What a check says, and the statistics that it is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A share counts as too large where it is, with this confidence (one-sided, Clopper and Pearson 1934).
_CONFIDENCE = 0.99
# Of images for which nothing excuses a failure: the odd one.
SHARE_TOLERANCE = 0.01
# Of all images: by how much two attacks may differ before one of them is not to be believed.
GAP_TOLERANCE = 0.02
_NORMAL_QUANTILE = 2.3263478740408408  # of that confidence

# The indicators of attack failure (Pintor et al. 2022) that a check looks for, by its name.
INDICATORS = {
    "gradients": "I1, unavailable gradients",
    "outputs": "I1, unavailable gradients",
    "stochastic": "I2, unstable predictions",
    "restarts": "I2, unstable predictions",
    "ascent": "I3, silent success",
    "steps": "I4, incomplete optimization",
    "unbounded": "I6, unconstrained attack failure",
}


@dataclass(frozen=True)
class MaskingCheck:
    """The result of one check.

    Attributes
    ----------
    name : str
        Of a model ``"stochastic"``, ``"batch"``, ``"outputs"`` or ``"gradients"``; of an attack ``"perturbed"``,
        ``"ascent"``, ``"steps"``, ``"restarts"``, ``"unbounded"`` or ``"black_box"``; of several attacks
        ``"transfer"``, ``"ensemble"`` or ``"stronger"``.
    passed : bool or None
        None where it could not be judged, or where a stronger attack is what a lower accuracy comes from; the message
        says which.
    message : str
        What was found, in numbers; where the check failed also what that means and what to do.
    values : dict of str to float
        The numbers behind it. Shares are fractions.
    """

    name: str
    passed: bool | None
    message: str
    values: dict[str, float] = field(default_factory=dict)

    @property
    def indicator(self) -> str:
        """The indicator of attack failure of Pintor et al. 2022 that it looks for; empty where there is none."""
        return INDICATORS.get(self.name, "")

    @property
    def is_gap(self) -> bool:
        """Does another attack leave clearly less, more than 2 points, without a failure being shown?"""
        gap, bound = self.values.get("gap", 0.0), self.values.get("lower_bound", 0.0)
        return self.passed is None and gap > GAP_TOLERANCE and bound > 0

    def __repr__(self) -> str:
        word = "GAP" if self.is_gap else {True: "passed", False: "FAILED", None: "not judged"}[self.passed]
        indicator = f" [{self.indicator}]" if self.indicator else ""
        return f"MaskingCheck({self.name}{indicator} {word}: {self.message.removeprefix('not judged: ')})"


def failure_lines(checks: Mapping[str, Mapping[str, MaskingCheck | Mapping[str, Any]]]) -> list[str]:
    """One line for each check that failed, of those of ``"model"`` and of each attack; as stored, or as they are."""
    return [f"{name}, {check.name}: {check.message}" for name, check in _each(checks) if check.passed is False]


def gap_lines(checks: Mapping[str, Mapping[str, MaskingCheck | Mapping[str, Any]]]) -> list[str]:
    """One line for each attack that leaves clearly less than weaker ones, without a failed check. See `failure_lines`.

    Only where these and `failure_lines` are both empty there is nothing to say of an accuracy.
    """
    return [check.message for _, check in _each(checks) if check.is_gap]


def _each(checks: Mapping[str, Mapping[str, MaskingCheck | Mapping[str, Any]]]) -> list[tuple[str, MaskingCheck]]:
    return [
        (name, check if isinstance(check, MaskingCheck) else MaskingCheck(**check))
        for name, checks_of_name in checks.items()
        for check in checks_of_name.values()
    ]


def as_outcome(outcome: Tensor | np.ndarray, n: int | None, name: str) -> Tensor:
    """Check that an outcome is bool and (n,), for any n if that is None, and return it on the CPU."""
    outcome = torch.as_tensor(outcome).cpu()
    if outcome.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, one for each image. Got {outcome.dtype}.")
    if outcome.ndim != 1 or (n is not None and len(outcome) != n):
        raise ValueError(f"{name} must have the shape ({'n' if n is None else n},). Got {tuple(outcome.shape)}.")
    return outcome


def share(flags: Tensor) -> float:
    """The fraction that is True; 0 of none."""
    return flags.double().mean().item() if len(flags) else 0.0


def largest(values: Tensor) -> float:
    """The largest value; 0 of none."""
    return values.max().item() if len(values) else 0.0


def too_many(bad: Tensor, tolerance: float = SHARE_TOLERANCE) -> bool:
    """All of them, or with confidence more than the tolerance."""
    return bool(len(bad)) and (bool(bad.all()) or lower_bound(int(bad.sum()), len(bad)) > tolerance)


def share_of_all(fell: Tensor, survivor_share: float) -> dict[str, float]:
    """The share of survivors that ``fell``, and the ``lower_bound`` of what that is of all images."""
    bound = lower_bound(int(fell.sum()), len(fell)) * survivor_share
    return {"fell": share(fell), "lower_bound": bound}


def lower_bound(k: int, n: int) -> float:
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


def paired_gap(weaker: Tensor, stronger: Tensor) -> dict[str, float]:
    """By how much less a stronger attack leaves of the same images, from those whose outcomes differ (McNemar 1947).

    Parameters
    ----------
    weaker, stronger : Tensor, (n,), bool
        Correct under either.

    Returns
    -------
    dict of str to float
        The ``gap`` of the accuracies, its ``standard_error``, and its one-sided ``lower_bound``: the normal
        approximation, or where it is lower Clopper and Pearson's for what the stronger one breaks alone, less what the
        weaker one does.
    """
    n = len(weaker)
    gained, lost = int((weaker & ~stronger).sum()), int((stronger & ~weaker).sum())
    gap = (gained - lost) / n
    error = max((gained + lost) / n - gap**2, 0.0) ** 0.5 / n**0.5
    bound = min(gap - _NORMAL_QUANTILE * error, lower_bound(gained, n) - lost / n)
    return {"gap": gap, "standard_error": error, "lower_bound": bound}
