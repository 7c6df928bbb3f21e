"""Means, differences and ratios over tasks, with 95 % intervals.

Intervals are for new tasks that are drawn as these were; where tasks share classes, they do not cover new classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor


class Interval(NamedTuple):
    """An estimate and its 95 % interval over tasks; NaN where it is undetermined."""

    mean: float
    low: float
    high: float

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


def mean_interval(values: Tensor) -> Interval:
    """Return the mean of values ``[tasks]`` and its interval by Student's distribution; paired for paired differences.

    Where a value is not finite, because a task diverged, neither are mean and interval: all three are the mean. A
    single task's interval is the whole line.

    Example:
        >>> import torch
        >>> [round(value, 3) for value in mean_interval(torch.tensor([1.0, 2.0, 3.0]))]
        [2.0, -0.484, 4.484]
    """
    return _students(float(values.double().mean()), values)


def difference_of_means(first: Tensor, second: Tensor) -> Interval:
    """Return the difference of the means of two independent sets of tasks, ``[tasks]`` each, with its interval.

    By Student's distribution with the degrees of freedom of Welch (Biometrika, 1947). What is not finite, and single
    tasks, as in `mean_interval`.
    """
    return _students(float(first.double().mean() - second.double().mean()), first, second)


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
    below = mean_interval(denominator)
    if not (below.is_positive and math.isfinite(below.mean)):
        return Interval(math.nan, math.nan, math.nan)
    pairs = torch.stack([numerator, denominator]).double().cpu()
    tasks = pairs.shape[1]
    chosen = torch.randint(tasks, (draws, tasks), generator=torch.Generator().manual_seed(seed))
    above, below = pairs[:, chosen].mean(2)  # [draws] each
    low, high = (above / below).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(pairs[0].mean() / pairs[1].mean()), low, high)


def _students(mean: float, *sets: Tensor) -> Interval:
    """Return the interval of a mean of one set, or of a difference of the means of two independent ones."""
    if not math.isfinite(mean):
        return Interval(mean, mean, mean)
    if any(values.numel() == 1 for values in sets):
        return Interval(mean, -math.inf, math.inf)
    variances = [float(values.double().var()) / values.numel() for values in sets]  # of the means
    total = sum(variances)
    if total == 0:
        return Interval(mean, mean, mean)
    # Welch's degrees of freedom are those of the values where there is one set.
    shares = [(variance / total) ** 2 for variance in variances]
    freedom = 1 / sum(share / (values.numel() - 1) for share, values in zip(shares, sets, strict=True))
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return Interval(mean, mean - half, mean + half)
