"""Whether two numbers differ, and what that says of a number beside the paper's: two-sided tests at 95 %.

The verdicts on a number in a column of methods:

* **agrees**: no difference between ours and the paper's is shown;
* **same ordering only**: they differ, but this method is shown to differ from others of its column, and each time in
  the direction of the paper;
* **too close to order**: they differ, and this method is not shown to differ from any other of its column;
* **disagrees**: some method that is below it in the paper is above it here, or there is no other method to compare.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

AGREES, ORDERED, NOISE, DISAGREES = "agrees", "same ordering only", "too close to order", "disagrees"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Attributes
    ----------
    value, error : float
        The error is infinite if there is none, as of a single value.
    freedom : float
        Degrees of freedom of the error: infinite for one that is computed (binomial, say), n - 1 for that of a mean of
        n values.
    """

    value: float
    error: float
    freedom: float = math.inf

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> "Estimate":
        """The mean of values, with the error that their standard deviation gives."""
        value = float(np.mean(values)) if len(values) else math.nan
        if len(values) < 2:
            return cls(value, math.inf, 1)
        return cls(value, float(np.std(values, ddof=1)) / math.sqrt(len(values)), len(values) - 1)

    @property
    def margin(self) -> float:
        """Half the width of the interval of 95 %, by Student's t: 1.96 errors, or 4.30 with 2 degrees of freedom."""
        from scipy import stats  # which takes half a second to import

        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error

    @property
    def is_not_zero(self) -> bool:
        """Whether zero lies outside that interval."""
        return abs(self.value) > self.margin

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two independent numbers, with the degrees of freedom of Welch and Satterthwaite."""
        error = math.hypot(self.error, other.error)
        if math.isinf(error):
            return Estimate(self.value - other.value, error, 1)
        parts = self.error**4 / self.freedom + other.error**4 / other.freedom
        return Estimate(self.value - other.value, error, error**4 / parts if parts else math.inf)


def paired_difference(one: Mapping[Hashable, float], other: Mapping[Hashable, float]) -> Estimate:
    """The mean difference of values with the same keys, such as classes; keys that one of them lacks are left out."""
    return Estimate.of_mean([one[key] - other[key] for key in one if key in other])


@dataclass(frozen=True)
class Number:
    """One number of ours, and the paper's."""

    ours: Estimate
    paper: Estimate


@dataclass(frozen=True)
class Group:
    """Numbers that the paper orders by method: a column of one of its tables.

    Attributes
    ----------
    artefact, dataset, quantity : str
        ``"table3"``, ``"cifar10"``, ``"r′ at ε 8/255"``.
    numbers : dict of str to Number
        By method, or by the value of what is swept.
    basis : str
        What the errors are over and how differences between methods are judged, in words.
    differ : callable
        The difference of our numbers of two methods. It need not be that of the numbers shown, which may be means over
        different classes. By default that of two independent numbers.
    """

    artefact: str
    dataset: str
    quantity: str
    numbers: dict[str, Number]
    basis: str = ""
    differ: Callable[[str, str], Estimate] | None = field(default=None, repr=False, compare=False)

    def difference(self, one: str, other: str) -> Estimate:
        """Our number of one method minus that of another."""
        return self.differ(one, other) if self.differ else self.numbers[one].ours - self.numbers[other].ours

    def verdict(self, name: str) -> str:
        """The verdict on one number; the module says what each means."""
        number = self.numbers[name]
        if not (number.ours - number.paper).is_not_zero:
            return AGREES
        is_ordered = False
        for other in self.numbers.keys() - {name}:
            paper_lead, our_lead = number.paper - self.numbers[other].paper, self.difference(name, other)
            if not (paper_lead.is_not_zero and our_lead.is_not_zero):
                continue
            if paper_lead.value * our_lead.value < 0:
                return DISAGREES
            is_ordered = True
        return ORDERED if is_ordered else NOISE if len(self.numbers) > 1 else DISAGREES
