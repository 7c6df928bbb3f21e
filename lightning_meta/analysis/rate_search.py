"""Search for the inner learning rate with the lowest loss after adaptation to validation tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_meta.analysis.intervals import Interval, mean_interval
from lightning_meta.analysis.rate_race import REFINEMENTS, RateRace
from lightning_meta.analysis.task_losses import check_has_rate, learned_rate_names, losses_by_step
from lightning_meta.analysis.tasks import take
from lightning_meta.arguments import check_count, check_rate
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode
from lightning_meta.learners.task_learner import TaskLearner

_CAUTION = 0.03
"""Losses rise steeply above the best rate, where rare tasks diverge: a lower rate is preferred at this share more."""


@dataclass(frozen=True)
class RateSearch:
    """The result of `search_rate`.

    Attributes:
        advised: The advised rate; for a learner whose rates are learned, a factor on them.
        own: The learner's own rate; 1 for a learner whose rates are learned.
        is_factor: Whether rates are factors on learned rates.
        steps: The inner steps of the losses.
        losses: The losses of each rate in ascending order, ``[tasks]``: each on as many of the first tasks as it was
            evaluated on. Infinite where a task diverges.
        settled: Whether the advised rate's loss is, by the 95 % intervals, at most ``tolerance`` above that of any rate
            that was compared with it to the end.
        tolerance: The share by which a higher loss does not matter.
        evaluations: How many times a task was evaluated with a rate, the fresh tasks included.
        fresh_losses: Losses with the advised rate on tasks that the search did not see, ``[fresh tasks]``.
        fresh_own_losses: The same with the learner's own rate.
    """

    advised: float
    own: float
    is_factor: bool
    steps: int
    losses: Mapping[float, Tensor]
    settled: bool
    tolerance: float
    evaluations: int
    fresh_losses: Tensor
    fresh_own_losses: Tensor

    def difference(self, rate: float) -> Interval:
        """Return by how much a rate's loss is higher than the advised one's, on the tasks that both were evaluated on.

        The 95 % interval is that of one comparison. The rates were chosen on the same tasks, so that it flatters the
        advised one; only the fresh tasks' losses are free of that.
        """
        own, advised = self.losses[rate], self.losses[self.advised]
        common = min(own.numel(), advised.numel())
        return mean_interval(own[:common] - advised[:common])

    @property
    def as_good(self) -> tuple[float, float]:
        """The lowest and highest of the neighbouring rates that are not told apart from the advised one, or better.

        Better ones are so by less than the 3 % for which a smaller rate is preferred.
        """
        rates = list(self.losses)
        position = rates.index(self.advised)
        low = high = position
        while low > 0 and self.difference(rates[low - 1]).low <= 0:
            low -= 1
        while high + 1 < len(rates) and self.difference(rates[high + 1]).low <= 0:
            high += 1
        return rates[low], rates[high]

    @property
    def fresh_interval(self) -> Interval:
        """The advised rate's mean loss on fresh tasks, with its 95 % interval."""
        return mean_interval(self.fresh_losses)

    @property
    def fresh_gain(self) -> Interval:
        """How much lower the advised rate's loss is than the own rate's, on fresh tasks, with its 95 % interval."""
        return mean_interval(self.fresh_own_losses - self.fresh_losses)

    @property
    def at_edge(self) -> bool:
        """Whether the advised rate is the lowest or highest of all that were tried: the best may be beyond."""
        rates = list(self.losses)
        return self.advised in (rates[0], rates[-1])


def search_rate(
    learner: TaskLearner,
    tasks: EpisodeDataset,
    steps: int | None = None,
    tolerance: float = 0.05,
    budget: int = 2_000,
    first_tasks: int = 16,
    fresh_tasks: int = 64,
    seed: int = 0,
) -> RateSearch:
    """Search for the inner rate with the lowest mean query loss after adaptation, with the initialization as it is.

    Rates are compared by paired differences on the same tasks, first on few tasks and then on twice as many each time,
    for the rates alone that are not told apart from the best (`RateRace`). The search ends when the best rate is
    separated from the others, or their losses cannot differ by more than ``tolerance``. Of the rates with nearly the
    lowest loss the smallest is advised, because above the best rate rare tasks diverge. Each stage compares on all
    tasks so far, because all rates have seen the same ones; as the search chooses on these tasks, the loss of its
    choice is too good there, and the last ``fresh_tasks`` measure it again.

    Training moves the curvature of tasks towards the rate in use: a trained learner confirms the rate it was trained
    with. For the rate to train with, search with an untrained learner, and compare short trainings.

    For a learner whose rates are learned the search is for a common factor on them.

    Args:
        learner: The learner, trained or not; it is the same afterwards.
        tasks: Validation tasks, ``data.episodes("val")``.
        steps: Inner steps; None: the learner's ``eval_inner_steps``.
        tolerance: A loss that is higher by this share does not matter.
        budget: Evaluations of a task with a rate, without the fresh tasks; the first four stages are run in any case,
            with about 1,000.
        first_tasks: Tasks of the first stage.
        fresh_tasks: Tasks that only the result is evaluated on.
        seed: The seed of the random draws of learners that draw.

    Raises:
        ValueError: If the learner has no inner rate, there are too few tasks, or tasks diverge with each rate.

    Example:
        >>> from torch import nn
        >>> from lightning_meta import MAML, MLP, SinusoidDataModule
        >>> learner = MAML(MLP(), nn.MSELoss(), inner_lr=0.001, inner_steps=5)
        >>> found = search_rate(learner, SinusoidDataModule(val_tasks=200).episodes("val"))
        >>> found.advised > 0.001
        True
    """
    adapting = check_has_rate(learner)
    check_rate("tolerance", tolerance)
    for name, count in {"budget": budget, "first_tasks": first_tasks, "fresh_tasks": fresh_tasks}.items():
        check_count(name, count, least=2)
    steps = adapting.eval_inner_steps if steps is None else steps
    check_count("steps", steps)
    least = first_tasks * 2**REFINEMENTS + fresh_tasks
    if len(tasks) < least:
        raise ValueError(
            f"a search for the rate needs at least {least} validation tasks, and the data module has {len(tasks)}: "
            f"give it val_tasks={least} or more, or lower first_tasks={first_tasks} or fresh_tasks={fresh_tasks}"
        )
    learned = bool(learned_rate_names(learner))
    own = 1.0 if learned else adapting.inner_lr
    blocks: dict[int, Episode] = {}

    def losses(rate: float, first: int, count: int) -> Tensor:
        if first not in blocks:
            blocks[first] = take(tasks, count, learner.device, first)
        return losses_by_step(learner, blocks[first], (steps,), rate, seed + first)[:, 0].cpu()

    race = RateRace(losses, own, first_tasks, len(tasks) - fresh_tasks, budget, tolerance)
    best = race.run()
    by_rate = race.by_rate()
    advised = _cautious(by_rate, best)
    first_fresh = len(tasks) - fresh_tasks
    fresh = losses(advised, first_fresh, fresh_tasks)
    fresh_own = fresh if advised == own else losses(own, first_fresh, fresh_tasks)
    evaluations = race.evaluations + fresh_tasks * (1 if advised == own else 2)
    return RateSearch(advised, own, learned, steps, by_rate, race.settled, tolerance, evaluations, fresh, fresh_own)


def _cautious(losses: Mapping[float, Tensor], best: float) -> float:
    """Return the smallest of the neighbouring rates below the best whose loss is nearly as low on as many tasks."""
    lowest, chosen = losses[best], best
    for rate in sorted((rate for rate in losses if rate < best), reverse=True):
        own = losses[rate]
        if own.numel() < lowest.numel() or float(own.mean() - lowest.mean()) > _CAUTION * abs(float(lowest.mean())):
            break
        chosen = rate
    return chosen
