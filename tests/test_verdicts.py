import math

import numpy as np
import pytest
from scipy import stats

from analysis.paper.verdicts import AGREES, DISAGREES, NOISE, ORDERED, Estimate, Group, Number, paired_difference


def random_values(seed, n, mean=0.0, sd=1.0):
    return (mean + sd * np.random.default_rng(seed).standard_normal(n)).tolist()


def group(differ=None, **numbers):
    """Ours, its error, the paper's, and its error."""
    columns = {
        name.upper(): Number(Estimate(*values[:2]), Estimate(values[2], values[3] if values[3:] else 0.0))
        for name, values in numbers.items()
    }
    return Group("main_accuracy", "cifar10", "PGD20", columns, differ=differ)


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({"at": (0.45, 0.01, 0.46), "tla": (0.50, 0.01, 0.60)}, AGREES),
        ({"at": (0.20, 0.01, 0.46), "tla": (0.30, 0.01, 0.60)}, ORDERED),
        ({"at": (0.30, 0.01, 0.46), "tla": (0.20, 0.01, 0.60)}, DISAGREES),
        ({"at": (0.30, 0.01, 0.46), "tla": (0.31, 0.01, 0.60)}, NOISE),
        ({"at": (0.30, 0.01, 0.46)}, DISAGREES),
        # One pair as in the paper, one the other way round.
        ({"at": (0.30, 0.01, 0.46), "um": (0.0, 0.0, 0.0), "tla": (0.2, 0.01, 0.6)}, DISAGREES),
        # What the paper itself does not order cannot be contradicted.
        ({"at": (0.30, 0.01, 0.46, 0.01), "tla": (0.20, 0.01, 0.47, 0.01)}, NOISE),
        # Nor can an order be seen in numbers without a known error.
        ({"at": (0.30, 0.01, 0.46), "tla": (0.20, math.inf, 0.60)}, NOISE),
    ],
)
def test_verdicts(numbers, verdict):
    assert group(**numbers).verdict("AT") == verdict


@pytest.mark.parametrize("n", [3, 4, 10, 30])
@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_a_mean_differs_where_students_t_says_so(n, scale):
    values = random_values(n, n)
    # So far from zero that the test of one sample lies just within, or just beyond, its level.
    width = stats.t.interval(0.95, n - 1, loc=0, scale=stats.sem(values))[1]
    reference = np.mean(values) + scale * width
    differs = (Estimate.of_mean(values) - Estimate(reference, 0)).is_not_zero
    assert differs == (stats.ttest_1samp(values, reference).pvalue < 0.05) == (scale > 1)


def test_three_seeds_need_more_than_four_errors():
    assert Estimate(4.2, 1, 2).is_not_zero is False and Estimate(4.4, 1, 2).is_not_zero is True
    assert Estimate(1.9, 1).is_not_zero is False and Estimate(2.0, 1).is_not_zero is True
    assert Estimate.of_mean([1.0, 2.0, 4.5]).margin == pytest.approx(4.302653 * stats.sem([1.0, 2.0, 4.5]))


@pytest.mark.parametrize("seed", range(5))
def test_independent_means_are_compared_by_welchs_t(seed):
    one, other = random_values(seed, 3, 1.5), random_values(seed + 100, 5, 0, 3)
    difference = Estimate.of_mean(one) - Estimate.of_mean(other)
    reference = stats.ttest_ind(one, other, equal_var=False)
    assert difference.value / difference.error == pytest.approx(reference.statistic)
    assert difference.freedom == pytest.approx(reference.df)
    low, high = reference.confidence_interval(0.95)
    assert (difference.value - difference.margin, difference.value + difference.margin) == pytest.approx((low, high))
    assert difference.is_not_zero == (reference.pvalue < 0.05)


@pytest.mark.parametrize("seed", range(5))
def test_paired_values_are_compared_by_the_paired_t_over_the_keys_that_both_have(seed):
    shared = [str(k) for k in range(8)]
    one = dict(zip([*shared, "only one"], random_values(seed, 9), strict=True))
    other = dict(zip(["only other", *shared[::-1]], random_values(seed + 50, 9, 0.8), strict=True))
    difference = paired_difference(one, other)
    reference = stats.ttest_rel([one[k] for k in shared], [other[k] for k in shared])
    assert difference.value / difference.error == pytest.approx(reference.statistic)
    assert difference.freedom == reference.df == 7
    assert difference.is_not_zero == (reference.pvalue < 0.05)


@pytest.mark.parametrize("shared", [{}, {"a": 2.0}])
def test_too_few_shared_values_show_no_difference(shared):
    difference = paired_difference({"x": 1.0, **shared}, {"y": 5.0, **{k: v + 9 for k, v in shared.items()}})
    assert not difference.is_not_zero and math.isinf(difference.error)
    assert not (difference - Estimate(100, 0)).is_not_zero


def test_numbers_without_any_error_differ_unless_they_are_equal():
    assert (Estimate(0.1, 0) - Estimate(0.2, 0)).is_not_zero and not (Estimate(0.2, 0) - Estimate(0.2, 0)).is_not_zero


def test_the_verdict_goes_by_the_difference_and_not_by_the_numbers_shown():
    numbers = {"at": (2.3, 0.1, 1.342), "tla": (2.2, 0.1, 1.191)}
    assert group(**numbers).verdict("TLA") == NOISE
    assert group(lambda *_: Estimate(-0.1, 0.01), **numbers).verdict("TLA") == ORDERED
    # The mean of other classes is lower, but of those that both have it is higher.
    assert group(lambda *_: Estimate(0.1, 0.01), **numbers).verdict("TLA") == DISAGREES
