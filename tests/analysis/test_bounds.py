"""Bounds on the loss on a new task, against closed forms, naive loops and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from lightning_meta.analysis.bounds import kl_inverse, pac_bayes_bound, quantile_bound, upper_bound

METHODS = ["betting", "bernstein", "kl", "hoeffding"]
REPETITIONS = 2_000


def wealth_ever_reaches(m: float, x: list[float], delta: float) -> bool:
    """The gambler of Waudby-Smith and Ramdas, loss after loss."""
    wealth, total, squares = 1.0, 0.5, 0.25
    for t, value in enumerate(x, start=1):
        variance = squares / t
        bet = min(math.sqrt(2 * math.log(1 / delta) / (len(x) * variance)), 0.75 / (1 - m))
        wealth *= 1 + bet * (m - value)
        if wealth >= 1 / delta:
            return True
        total += value
        squares += (value - total / (t + 1)) ** 2
    return False


def test_betting_is_the_smallest_mean_whose_wealth_reaches_one_over_delta():
    losses = np.random.default_rng(0).beta(1, 5, 40)
    bound = upper_bound(losses, 0.1)
    assert wealth_ever_reaches(bound + 1e-9, list(losses), 0.1)
    assert not wealth_ever_reaches(bound - 1e-9, list(losses), 0.1)


def test_closed_forms():
    losses = np.array([0.0, 0.2, 0.4, 0.1, 0.3] * 8)
    assert upper_bound(losses, 0.05, "hoeffding") == pytest.approx(0.2 + math.sqrt(math.log(20) / 80))
    variance = float(((losses - 0.2) ** 2).sum() / 39)
    expected = 0.2 + math.sqrt(2 * variance * math.log(40) / 40) + 7 * math.log(40) / (3 * 39)
    assert upper_bound(losses, 0.05, "bernstein") == pytest.approx(expected)
    assert upper_bound(np.zeros(50), 0.05, "kl") == pytest.approx(1 - 0.05 ** (1 / 50))
    assert upper_bound(np.zeros(50), 0.05, "clopper_pearson") == pytest.approx(1 - 0.05 ** (1 / 50))
    divergence = 0.3 * math.log(0.3 / 0.5) + 0.7 * math.log(0.7 / 0.5)
    assert kl_inverse(0.3, divergence) == pytest.approx(0.5)


def test_clopper_pearson_inverts_the_binomial_test():
    losses = np.repeat([1.0, 0.0], [7, 53])
    interval = binomtest(7, 60).proportion_ci(0.9, "exact")
    assert upper_bound(losses, 0.05, "clopper_pearson") == pytest.approx(interval.high)


def drawn(kind, rng):
    if kind == "accuracies":
        return rng.binomial(75, rng.beta(2, 70, (REPETITIONS, 100))) / 75, 2 / 72
    if kind == "zero_one":
        return (rng.random((REPETITIONS, 100)) < 0.3).astype(float), 0.3
    return rng.beta(0.2, 0.2, (REPETITIONS, 100)), 0.5


@pytest.mark.parametrize("kind", ["accuracies", "zero_one", "extremes"])
def test_bounds_cover_and_betting_is_never_wider_than_bernstein(kind):
    samples, mean = drawn(kind, np.random.default_rng(1))
    allowed = 0.1 * REPETITIONS + 3 * math.sqrt(REPETITIONS * 0.1 * 0.9)
    bounds = {method: np.array([upper_bound(x, 0.1, method) for x in samples]) for method in METHODS}
    for method, values in bounds.items():
        assert (values < mean).sum() <= allowed, method
    assert (bounds["betting"] <= bounds["bernstein"]).all()
    assert bounds["betting"].mean() < bounds["hoeffding"].mean()


def test_the_bound_on_a_quantile_covers():
    samples = np.random.default_rng(2).exponential(size=(REPETITIONS, 60))
    bounds = np.array([quantile_bound(x, 0.9, 0.1) for x in samples])
    assert (bounds < -math.log(0.1)).sum() <= 0.1 * REPETITIONS + 3 * math.sqrt(REPETITIONS * 0.09)
    assert quantile_bound([*range(58), math.inf, math.inf], 0.9, 0.05) == math.inf


def test_pac_bayes_is_the_inverse_of_its_inequality():
    bound = pac_bayes_bound(0.1, 600, 3.0)
    kl = 0.1 * math.log(0.1 / bound) + 0.9 * math.log(0.9 / (1 - bound))
    assert kl == pytest.approx((3.0 + math.log(2 * math.sqrt(600) / 0.05)) / 600)


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([0.1, 1.2], {}, "1 values outside of .* such as 1.2"),
        ([0.1, math.nan], {}, "1 values outside of"),
        ([], {}, "one number for each task"),
        ([[0.1]], {}, "one number for each task"),
        ([0.1], {}, "has 1 tasks, too few for method='betting' with delta=0.05.*at least 2"),
        ([0.0] * 5, {"method": "bernstein"}, "at least 10"),
        ([0.1] * 30, {"delta": 0}, "delta=0 must lie between 0 and 1"),
        ([0.1] * 30, {"method": "clopper_pearson"}, "losses of 0 and 1"),
        ([0.1] * 30, {"method": "normal"}, "method='normal' is not one of"),
    ],
)
def test_bad_input_is_told(losses, options, message):
    with pytest.raises(ValueError, match=message):
        upper_bound(losses, **options)


def test_too_few_tasks_for_a_quantile():
    with pytest.raises(ValueError, match="has 28 tasks, too few.*at least 29"):
        quantile_bound([0.0] * 28, 0.9, 0.05)
    assert quantile_bound([0.0] * 29, 0.9, 0.05) == 0


def test_losses_of_a_quantile_are_one_number_for_each_task():
    assert quantile_bound([math.nan, *range(28)], 0.9, 0.05) == math.inf
    for losses in ([[0.0] * 29], []):
        with pytest.raises(ValueError, match="one number for each task"):
            quantile_bound(losses, 0.9, 0.05)
