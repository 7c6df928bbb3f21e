"""Certificates: closed forms, diverged tasks, and simulated coverage of what is claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from lightning_meta.analysis import certify, upper_bound

REPETITIONS = 2_000
DELTA = 0.1
MOST_MISSES = DELTA * REPETITIONS + 3 * math.sqrt(REPETITIONS * DELTA * (1 - DELTA))


def test_losses_are_scaled_by_the_largest():
    losses = np.random.default_rng(0).uniform(0, 3, 80)
    found = certify(losses, largest=4.0, delta=0.1)
    assert found.bound == pytest.approx(4 * upper_bound(losses / 4, 0.1))
    assert found.others["hoeffding"] == pytest.approx(losses.mean() + 4 * math.sqrt(math.log(10) / 160))
    assert found.approximate == pytest.approx(losses.mean() + norm.ppf(0.9) * losses.std(ddof=1) / math.sqrt(80))
    assert (found.mean, found.tasks, found.diverged) == (pytest.approx(losses.mean()), 80, 0)


def test_diverged_tasks_count_as_the_largest_loss_and_are_infinite_for_the_quantile():
    losses = [0.1] * 60
    found = certify([*losses, math.inf, math.nan], largest=2.0)
    as_largest = certify([*losses, 2.0, 2.0], largest=2.0)
    assert (found.bound, found.mean, found.diverged) == (as_largest.bound, as_largest.mean, 2)
    assert found.quantile_bound == 0.1
    assert certify([*losses, *[math.inf] * 8], largest=2.0).quantile_bound == math.inf


def test_errors_of_single_queries_have_the_exact_bound_of_the_binomial_distribution():
    losses = np.repeat([1.0, 0.0], [4, 46])
    exact = binomtest(4, 50).proportion_ci(0.9, "exact").high
    assert certify(losses, method="clopper_pearson").bound == pytest.approx(exact)


def test_too_few_tasks_for_a_quantile_have_none():
    assert certify([0.0] * 28).quantile_bound is None
    assert certify([0.0] * 29).quantile_bound == 0


def test_clipped_losses_are_those_of_the_minimum():
    losses = np.random.default_rng(1).exponential(size=50)
    assert certify(losses, largest=2.0, clip=True).bound == certify(np.minimum(losses, 2), largest=2.0).bound


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([0.2, 1.5], {}, r"losses has 1 values above largest=1, such as 1.5: raise largest .* or ask for clip"),
        ([0.2, -0.1], {}, "losses has -0.1, less than 0"),
        ([0.2] * 3, {"settings": 50}, "has 3 tasks, too few for method='betting'.*at least"),
        ([0.2] * 30, {"settings": 0}, "settings=0 must be an integer of at least 1"),
        ([0.2] * 30, {"largest": 0}, "largest=0 must be a positive number"),
        ([0.2] * 30, {"delta": 1.5}, "must lie between 0 and 1"),
        ([0.2] * 30, {"quantile": 1.0}, "quantile=1.0 must lie between 0 and 1"),
        ([[0.2]], {}, "one number for each task"),
        ([], {}, "one number for each task"),
    ],
)
def test_bad_input_is_told(losses, options, message):
    with pytest.raises(ValueError, match=message):
        certify(losses, **options)


def test_the_bound_of_the_setting_that_looks_best_covers():
    """Of eight equally good settings on the same tasks; without delta / 8 the bound of the chosen one fails often."""
    rng = np.random.default_rng(2)
    misses = {1: 0, 8: 0}
    for _ in range(REPETITIONS):
        losses = (rng.random((8, 40)) < 0.3).astype(float)
        chosen = losses[losses.mean(1).argmin()]
        for settings in misses:
            misses[settings] += upper_bound(chosen, DELTA / settings) < 0.3
    assert misses[8] <= MOST_MISSES < misses[1]


def test_settings_divide_delta():
    losses = np.random.default_rng(3).random(50)
    assert certify(losses, settings=4).bound == certify(losses, delta=0.05 / 4).bound


@pytest.mark.parametrize(("tasks", "covers"), [("disjoint", True), ("drawn", False)])
def test_only_disjoint_tasks_cover_new_classes(tasks, covers):
    """Classes differ in how hard they are; each repetition has 60 test classes, in tasks of 3."""
    rng = np.random.default_rng(4)
    misses = 0
    for _ in range(REPETITIONS):
        difficulty = rng.beta(0.5, 2, 60)  # mean 0.2
        disjoint, drawn = rng.permutation(60).reshape(20, 3), rng.random((300, 60)).argsort(1)[:, :3]
        classes = disjoint if tasks == "disjoint" else drawn
        errors = rng.binomial(5, difficulty[classes]) / 5
        misses += upper_bound(errors.mean(1), DELTA) < 0.2
    assert (misses <= MOST_MISSES) is covers
