"""Numbers of several trainings: their mean, their error over seeds, and the words of a caption about that error."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.paper.verdicts import Estimate, paired_difference
from analysis.ratios import RatioResult


@dataclass(frozen=True)
class OverSeeds:
    """One number of each of several trainings, or of one.

    Attributes
    ----------
    by_seed : dict of int to float
        Without seeds of which there is no number.
    images_error : float, optional
        Standard error of the mean over the test images, of the trainings as they are.
    left_out : str
        Of a ratio: which classes have none, by seed. Ratios of other classes are not compared.
    """

    by_seed: Mapping[int, float]
    images_error: float | None = None
    left_out: str = ""

    @classmethod
    def of(cls, by_seed: Mapping[int, float], images_error: float | None = None) -> "OverSeeds":
        """The finite ones of some numbers; those that are nan are left out."""
        return cls({seed: float(value) for seed, value in by_seed.items() if math.isfinite(value)}, images_error)

    @classmethod
    def of_ratios(cls, ratios: Mapping[int, RatioResult]) -> "OverSeeds":
        """A ratio of each training."""
        number = cls.of({seed: result.value for seed, result in ratios.items()})
        left_out = [f"{seed}: {result.left_out}" for seed, result in ratios.items() if result.left_out]
        return replace(number, left_out="; ".join(left_out))

    @classmethod
    def of_shares(cls, outcomes: Mapping[int, Any]) -> "OverSeeds":
        """The share of images that are right, from (n,) bools of the same images in every training."""
        outcomes = {seed: np.asarray(outcome, dtype=np.float64) for seed, outcome in outcomes.items()}
        image_means = np.mean(list(outcomes.values()), axis=0)
        return cls.of(
            {seed: o.mean() for seed, o in outcomes.items()}, float(image_means.std() / len(image_means) ** 0.5)
        )

    @property
    def value(self) -> float:
        """The mean over seeds; nan without any."""
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else math.nan

    @property
    def error(self) -> float | None:
        """Standard error over seeds, sd / sqrt(n); of one training that over test images."""
        if len(self.by_seed) > 1:
            return Estimate.of_mean(list(self.by_seed.values())).error
        return self.images_error

    def record(self, name: str) -> dict[str, Any]:
        """The entries of a table's row that hold it; `estimate` and `difference` read them again."""
        return {
            name: self.value, f"{name} se": self.error, f"{name} se of images": self.images_error,
            f"{name} by seed": {str(seed): value for seed, value in self.by_seed.items()},
            **({f"{name} left out": self.left_out} if self.left_out else {}),
        }  # fmt: skip


def is_over_seeds(row: Mapping[str, Any], name: str) -> bool:
    """Whether a number in a row of a table is of several trainings; older rows do not say, and count as one."""
    return len(row.get(f"{name} by seed") or {}) > 1


def estimate(row: Mapping[str, Any], name: str) -> Estimate:
    """The number of a row with its error over seeds and test images together; of one training over images alone."""
    if not is_over_seeds(row, name):
        # Its error may be the standard deviation of that many other trainings.
        n_others = row.get(f"{name} error seeds")
        return Estimate(row[name], row[f"{name} se"], n_others - 1 if n_others else math.inf)
    over_seeds = Estimate.of_mean(list(row[f"{name} by seed"].values()))
    return over_seeds - Estimate(0.0, row.get(f"{name} se of images") or 0.0)


def difference(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> Estimate:
    """The number of one row minus that of another: paired by seed where both have several of the same."""
    values, other_values = (row.get(f"{name} by seed") or {} for row in (one, other))
    if len(values.keys() & other_values.keys()) > 1:
        return paired_difference(values, other_values)
    return estimate(one, name) - estimate(other, name)


def error_words(seeds: Sequence[int], over: str = "test images") -> str:
    """What a caption says of an error bar: ``mean ± standard error over 3 trainings (seeds 0, 1, 2)``."""
    if len(seeds) == 1:
        return f"± standard error over {over}, one training (seed {seeds[0]})"
    return f"mean ± standard error over {len(seeds)} trainings (seeds {', '.join(map(str, seeds))})"


def images_words(
    rows: Iterable[Mapping[str, Any]], names: Iterable[str], text: Callable[[float], str], over: str = "test images"
) -> str:
    """What a caption adds to errors over seeds: ``test images alone: ±0.61 to ±1.20``; empty if there are none.

    A number of one training counts if its error is the spread of other seeds.

    Parameters
    ----------
    rows : iterable of dict
        Of a table, as of `OverSeeds.record`.
    names : iterable of str
        Numbers in them.
    text : callable
        An error as printed.
    over : str
    """
    names = list(names)
    errors = [
        row[f"{name} se of images"] for row in rows for name in names
        if (is_over_seeds(row, name) or row.get(f"{name} error seeds"))
        and row.get(f"{name} se of images") is not None
    ]  # fmt: skip
    if not errors:
        return ""
    low, high = text(min(errors)), text(max(errors))
    return f"{over} alone: ±{low}" + (f" to ±{high}" if high != low else "")
