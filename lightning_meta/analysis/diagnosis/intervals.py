"""Means and differences over tasks, with 95 % intervals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_meta.analysis.paired import Interval
from lightning_meta.metrics.task_metrics import mean_and_interval


def mean_over_tasks(values: Tensor) -> Interval:
    """Return the mean of values ``[tasks]``, and its normal interval; that of paired differences is paired.

    If the mean is not finite, because tasks diverge, all three numbers are the mean.
    """
    mean, half = map(float, mean_and_interval(values.double()))
    return _interval(mean, half)


def difference_of_means(first: Tensor, second: Tensor) -> Interval:
    """Return the difference of the means of two independent sets of tasks, ``[tasks]`` each, and its interval."""
    (mean, half), (other, other_half) = (map(float, mean_and_interval(each.double())) for each in (first, second))
    return _interval(mean - other, math.hypot(half, other_half))


def ratio_of_means(numerator: Tensor, denominator: Tensor, draws: int = 2000, seed: int = 0) -> Interval:
    """Return the ratio of the means of two values of each task, and its percentile interval from bootstrap over tasks.

    Args:
        numerator: ``[tasks]``.
        denominator: ``[tasks]``.
        draws: How many times the tasks are drawn with replacement.
        seed: The seed of the draws.

    Returns:
        The ratio; NaN unless the denominator's mean is positive beyond its interval.
    """
    below = mean_over_tasks(denominator)
    if not (below.is_positive and math.isfinite(below.mean)):
        return Interval(math.nan, math.nan, math.nan)
    pairs = torch.stack([numerator, denominator]).double().cpu()
    tasks = pairs.shape[1]
    chosen = torch.randint(tasks, (draws, tasks), generator=torch.Generator().manual_seed(seed))
    above, below = pairs[:, chosen].mean(2)  # [draws] each
    low, high = (above / below).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(pairs[0].mean() / pairs[1].mean()), low, high)


def _interval(mean: float, half: float) -> Interval:
    return Interval(mean, mean - half, mean + half) if math.isfinite(mean) else Interval(mean, mean, mean)
