"""Intervals over tasks beside scipy's; a task that diverges decides a comparison, and does not make it undetermined."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lightning_meta.analysis.intervals import difference_of_means, mean_interval, ratio_of_means

FINE, WITH_ONE = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, math.inf, 0.3])


@pytest.mark.parametrize("tasks", [2, 3, 40])
def test_intervals_are_students_and_welchs(tasks):
    first, second = torch.randn(tasks, dtype=torch.float64), 3 * torch.randn(5, dtype=torch.float64) + 1
    expected = stats.ttest_1samp(first.numpy(), 0.0).confidence_interval()
    assert mean_interval(first) == pytest.approx((float(first.mean()), *expected))
    expected = stats.ttest_ind(first.numpy(), second.numpy(), equal_var=False).confidence_interval()
    assert difference_of_means(first, second) == pytest.approx((float(first.mean() - second.mean()), *expected))


def test_single_tasks_tell_nothing_and_equal_ones_all():
    one, equal = torch.ones(1), torch.full((3,), 2.0)
    assert mean_interval(one) == (1.0, -math.inf, math.inf)
    assert difference_of_means(one, equal) == difference_of_means(one, 2 * one) == (-1.0, -math.inf, math.inf)
    assert mean_interval(equal) == (2.0, 2.0, 2.0)
    assert difference_of_means(equal, equal) == (0.0, 0.0, 0.0)


def test_a_ratio_covers_its_true_value():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for seed in range(100):
        below = 1 + torch.rand(50, generator=generator)
        found = ratio_of_means(0.3 * below + 0.2 * torch.randn(50, generator=generator), below, 400, seed)
        inside += found.low <= 0.3 <= found.high
    assert inside >= 88  # of 95 expected
    assert math.isnan(ratio_of_means(torch.ones(50), torch.randn(50, generator=generator)).mean)


def test_a_mean_with_a_diverging_task_is_infinite_beyond_doubt():
    assert mean_interval(WITH_ONE - FINE).is_positive
    assert mean_interval(FINE - WITH_ONE).is_negative
    assert difference_of_means(WITH_ONE, FINE).is_positive
    assert difference_of_means(FINE, WITH_ONE).is_negative


def test_both_diverging_is_undetermined():
    found = difference_of_means(WITH_ONE, WITH_ONE)
    assert math.isnan(found.mean)
    assert not found.is_positive
    assert not found.is_negative


def test_a_ratio_to_an_infinite_mean_is_undetermined():
    assert math.isnan(ratio_of_means(FINE, WITH_ONE).mean)
