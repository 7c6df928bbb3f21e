"""A race of rates on growing sets of common tasks; what it races is a function, so that it knows no learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_meta.analysis.intervals import Interval, mean_interval

FACTOR = 3.0
"""The ratio of neighbouring rates in the first stage."""

_UNIT = 8  # rates are the start times powers of 3^(1/8)
_LATER_SPACINGS = (4, 2, 1)
REFINEMENTS = len(_LATER_SPACINGS)
"""Stages after the first, which are always run."""
_EACH_SIDE = 5  # rates on each side of the start in the first stage
_FARTHER = 10  # how many more may be added on a side while the best rate is the outermost
_CONTENDERS = 6

Losses = Callable[[float, int, int], Tensor]
"""``losses(rate, first, count)`` returns the losses ``[count]`` of tasks ``first``, ``first + 1``, ... with a rate."""


class RateRace:
    """Finds the rate with the lowest mean loss.

    The first stage takes rates a factor of 3 apart on 16 tasks, and further rates while the best is the outermost.
    Three stages follow that take two rates beside the best, by half the last distance on the logarithmic axis, and
    double the tasks; all further stages double the tasks. Each stage keeps the rates that are not told apart from the
    best by the 95 % interval of their paired differences, at most the six with the lowest losses. If a task diverges
    with all of them, the highest rate with which none does takes their place. Rates are compared on all tasks so far,
    the same for both.

    Args:
        losses: Evaluates a rate on tasks. Blocks of tasks are the same for all rates.
        start: The rate in the middle.
        first_tasks: Tasks of the first stage; the numbers in this text are for 16.
        most_tasks: Tasks of the last stage at most.
        budget: Evaluations of a task at most, from the second stage on.
        tolerance: A loss that is higher by this share does not matter.
    """

    def __init__(
        self, losses: Losses, start: float, first_tasks: int, most_tasks: int, budget: int, tolerance: float
    ) -> None:
        self._evaluate = losses
        self._start = start
        self._first_tasks = first_tasks
        self._most_tasks = most_tasks
        self._budget = budget
        self._tolerance = tolerance
        self._losses: dict[int, list[Tensor]] = {}  # by exponent, a tensor for each block of tasks
        self.evaluations = 0
        self.tasks = first_tasks
        self.settled = False

    def run(self) -> float:
        """Run the race and return the best rate.

        Raises:
            ValueError: If tasks diverge with each rate.
        """
        self._first_stage()
        contenders = self._kept(self._losses)
        for spacing in _LATER_SPACINGS:
            contenders = self._beside_the_best(contenders, spacing)
            contenders = self._with_twice_the_tasks(contenders)
        while not self._is_settled(contenders):
            needed = len(contenders) * self.tasks
            if 2 * self.tasks > self._most_tasks or self.evaluations + needed > self._budget:
                break
            contenders = self._with_twice_the_tasks(contenders)
        self.settled = self._is_settled(contenders)
        return self.rate(min(contenders, key=self._mean))

    def rate(self, exponent: int) -> float:
        """Return the rate of an exponent."""
        return self._start * FACTOR ** (exponent / _UNIT)

    def by_rate(self) -> dict[float, Tensor]:
        """Return the losses of each rate in ascending order, ``[tasks]`` with as many as it was evaluated on."""
        return {self.rate(exponent): torch.cat(self._losses[exponent]) for exponent in sorted(self._losses)}

    def _first_stage(self) -> None:
        self._extend(range(-_EACH_SIDE * _UNIT, (_EACH_SIDE + 1) * _UNIT, _UNIT))
        for _ in range(2 * _FARTHER):
            best, exponents = min(sorted(self._losses), key=self._mean), sorted(self._losses)
            if best not in (exponents[0], exponents[-1]):
                break
            outer = best - _UNIT if best == exponents[0] else best + _UNIT
            if abs(outer) > (_EACH_SIDE + _FARTHER) * _UNIT:
                break
            self._extend([outer])
        if not math.isfinite(self._mean(min(self._losses, key=self._mean))):
            raise self._diverging()

    def _extend(self, exponents: Iterable[int]) -> None:
        """Evaluate rates on the tasks of this stage that they were not evaluated on yet."""
        for exponent in exponents:
            blocks = self._losses.setdefault(exponent, [])
            while (done := sum(map(len, blocks))) < self.tasks:
                count = max(done, self._first_tasks)
                blocks.append(self._evaluate(self.rate(exponent), done, count))
                self.evaluations += count

    def _mean(self, exponent: int) -> float:
        return float(torch.cat(self._losses[exponent]).mean())

    def _difference(self, exponent: int, best: int) -> Interval:
        own, lowest = torch.cat(self._losses[exponent]), torch.cat(self._losses[best])
        return mean_interval(own - lowest)

    def _kept(self, exponents: Iterable[int]) -> list[int]:
        finite = [exponent for exponent in exponents if math.isfinite(self._mean(exponent))]
        if not finite:
            finite = [self._highest_finite()]
        best = min(finite, key=self._mean)
        kept = [e for e in finite if e == best or self._difference(e, best).low <= 0]
        return sorted(kept, key=self._mean)[:_CONTENDERS]

    def _highest_finite(self) -> int:
        """Return the highest rate with which no task so far diverges, where one does with each contender.

        Raises:
            ValueError: If there is none.
        """
        for exponent in sorted(self._losses, reverse=True):
            if math.isfinite(self._mean(exponent)):
                self._extend([exponent])
                if math.isfinite(self._mean(exponent)):
                    return exponent
        raise self._diverging()

    def _diverging(self) -> ValueError:
        low, high = self.rate(min(self._losses)), self.rate(max(self._losses))
        return ValueError(
            f"of {self.tasks} tasks at least one diverges with each inner rate from {low:.2g} to {high:.2g}: check "
            "the data and the learner's parameters"
        )

    def _beside_the_best(self, contenders: list[int], spacing: int) -> list[int]:
        """Return the contenders and the rates on both sides of the best."""
        best = min(contenders, key=self._mean)
        new = [best - spacing, best + spacing]
        self._extend(new)
        return self._kept({*contenders, *new})

    def _with_twice_the_tasks(self, contenders: list[int]) -> list[int]:
        self.tasks *= 2
        self._extend(contenders)
        return self._kept(contenders)

    def _is_settled(self, contenders: list[int]) -> bool:
        """Whether no contender's loss may be lower than the best one's by more than the tolerance."""
        best = min(contenders, key=self._mean)
        others = [self._difference(e, best).low for e in contenders if e != best]
        return all(-low <= self._tolerance * abs(self._mean(best)) for low in others)
