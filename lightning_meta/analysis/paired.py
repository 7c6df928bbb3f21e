"""Means of paired differences over tasks, with their intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

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
    """Return the mean of values ``[tasks]`` and its 95 % interval, by Student's distribution.

    Where a value is not finite, neither are mean and interval: all three are the mean. A single task's interval is
    the whole line. The interval is for new tasks that are drawn as these were; where tasks share classes, it does not
    cover new classes.

    Example:
        >>> import torch
        >>> [round(value, 3) for value in mean_interval(torch.tensor([1.0, 2.0, 3.0]))]
        [2.0, -0.484, 4.484]
    """
    tasks, mean = values.numel(), float(values.mean())
    if not math.isfinite(mean):
        return Interval(mean, mean, mean)
    if tasks == 1:
        return Interval(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, tasks - 1)) * float(values.std()) / math.sqrt(tasks)
    return Interval(mean, mean - half, mean + half)
