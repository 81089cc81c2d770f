"""What a check says, and the statistics that it is judged by."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# A share counts as too large where it is, with this confidence (one-sided, Clopper and Pearson 1934).
_CONFIDENCE = 0.99
# Of images for which nothing excuses a failure: the odd one.
SHARE_TOLERANCE = 0.01


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


def as_outcome(outcome: Tensor | np.ndarray, n: int | None, name: str) -> Tensor:
    outcome = torch.as_tensor(outcome).cpu()
    if outcome.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, one for each image. Got {outcome.dtype}.")
    if outcome.ndim != 1 or (n is not None and len(outcome) != n):
        raise ValueError(f"{name} must have the shape ({'n' if n is None else n},). Got {tuple(outcome.shape)}.")
    return outcome


def share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else 0.0


def largest(values: Tensor) -> float:
    return values.max().item() if len(values) else 0.0


def too_many(bad: Tensor) -> bool:
    """All of them, or with confidence more than the tolerance."""
    return bool(len(bad)) and (bool(bad.all()) or lower_bound(int(bad.sum()), len(bad)) > SHARE_TOLERANCE)


def share_of_all(fell: Tensor, survivor_share: float) -> dict[str, float]:
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
