"""One task that diverges is infinitely bad: it decides a comparison, and does not make it undetermined."""

from __future__ import annotations

import math

import torch

from lightning_meta.analysis.diagnosis.intervals import difference_of_means, mean_over_tasks, ratio_of_means

FINE, WITH_ONE = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, math.inf, 0.3])


def test_a_mean_with_a_diverging_task_is_infinite_beyond_doubt():
    assert mean_over_tasks(WITH_ONE - FINE).is_positive
    assert mean_over_tasks(FINE - WITH_ONE).is_negative
    assert difference_of_means(WITH_ONE, FINE).is_positive
    assert difference_of_means(FINE, WITH_ONE).is_negative


def test_both_diverging_is_undetermined():
    found = difference_of_means(WITH_ONE, WITH_ONE)
    assert math.isnan(found.mean)
    assert not found.is_positive
    assert not found.is_negative


def test_a_ratio_to_an_infinite_mean_is_undetermined():
    assert math.isnan(ratio_of_means(FINE, WITH_ONE).mean)
