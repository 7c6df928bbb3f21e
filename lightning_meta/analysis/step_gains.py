"""What each inner step gains on the query set."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_meta.analysis.intervals import Interval, mean_interval
from lightning_meta.analysis.task_losses import check_has_rate, losses_by_step
from lightning_meta.arguments import check_optional_count
from lightning_meta.episodes import Episode
from lightning_meta.learners.task_learner import TaskLearner

_LEAST_SHOWN = 10


class StepGains(NamedTuple):
    """Query losses after each number of inner steps.

    Attributes:
        losses: ``[tasks, steps + 1]``, the first before adaptation; infinite where a task diverges.
    """

    losses: Tensor

    @property
    def gains(self) -> Tensor:
        """By how much each step lowers each task's loss, ``[tasks, steps]``; NaN where a task has diverged."""
        return self.losses[:, :-1] - self.losses[:, 1:]

    @property
    def intervals(self) -> list[Interval]:
        """The mean gain of each step with its own 95 % interval over tasks, ``[steps]``."""
        return [mean_interval(gains) for gains in self.gains.T]

    @property
    def gaining(self) -> list[int]:
        """The steps, counted from 1, whose gain is told apart from zero: the interval is above it."""
        return [step for step, gain in enumerate(self.intervals, start=1) if gain.low > 0]

    @property
    def losing(self) -> list[int]:
        """The steps whose interval is below zero, those after which a task has diverged included."""
        return [step for step, gain in enumerate(self.intervals, start=1) if not gain.high >= 0]


def step_gains(learner: TaskLearner, batch: Episode, steps: int | None = None, seed: int = 0) -> StepGains:
    """Return what each inner step gains on the tasks' query sets, with the learner's own rate.

    Intervals are pointwise: of 20 steps without a gain, one is told apart from zero on average.

    Args:
        learner: The learner.
        batch: Validation tasks, at least 2.
        steps: The last step; None: twice ``eval_inner_steps``, and at least 10.
        seed: The seed of the random draws of learners that draw.

    Raises:
        ValueError: If the learner takes no inner steps, or there are fewer than 2 tasks.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import MAML, Episode
        >>> batch = Episode(*(torch.ones(2, 4, 1) for _ in range(4)))
        >>> step_gains(MAML(nn.Linear(1, 1), nn.MSELoss()), batch).gains.shape
        torch.Size([2, 10])
    """
    adapting = check_has_rate(learner, of_any_solver=True)
    check_optional_count("steps", steps)
    if batch.num_tasks < 2:
        raise ValueError(f"intervals over tasks need at least 2 tasks, and there are {batch.num_tasks}: give more")
    last = max(_LEAST_SHOWN, 2 * adapting.eval_inner_steps) if steps is None else steps
    return StepGains(losses_by_step(learner, batch, range(last + 1), seed=seed).cpu())
