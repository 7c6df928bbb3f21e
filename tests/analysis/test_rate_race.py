"""The race beside tables of losses that are known for all rates and tasks."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_meta.analysis.rate_race import RateRace


class Table:
    """Losses ``(log rate − log best of the task)² + level of the task``, which differ more between tasks than rates."""

    def __init__(self, best, spread=0.1, tasks=512, diverging=None):
        generator = torch.Generator().manual_seed(0)
        self.best = math.log(best) + spread * torch.randn(tasks, generator=generator, dtype=torch.float64)
        self.level = 1 + 5 * torch.rand(tasks, generator=generator, dtype=torch.float64)
        self.diverging = diverging
        self.calls = []

    def __call__(self, rate, first, count):
        self.calls.append((rate, first, count))
        loss = (math.log(rate) - self.best) ** 2 + self.level
        if self.diverging is not None and rate > self.diverging:
            loss[::20] = math.inf
        return loss[first : first + count]


def race_of(table, start=0.01, most_tasks=512, budget=2_000, tolerance=0.001):
    return RateRace(table, start, 16, most_tasks, budget, tolerance)


@pytest.mark.parametrize("best", [1e-6, 0.0004, 0.01, 0.3, 7e3])
def test_the_best_rate_is_found_wherever_the_search_starts(best):
    race = race_of(Table(best))
    assert abs(math.log(race.run() / best)) <= math.log(3) / 16 + 0.02  # half the final spacing, and the tasks' spread
    assert race.settled


def test_it_evaluates_no_task_twice_and_counts_all():
    table = Table(0.02)
    race = race_of(table)
    race.run()
    assert race.evaluations == sum(count for _, _, count in table.calls)
    assert len({(rate, first) for rate, first, _ in table.calls}) == len(table.calls)
    for rate, losses in race.by_rate().items():
        blocks = sorted((first, count) for own, first, count in table.calls if own == rate)
        assert [first for first, _ in blocks] == [sum(count for _, count in blocks[:i]) for i in range(len(blocks))]
        assert losses.numel() == sum(count for _, count in blocks)


def test_a_rate_at_which_one_task_in_twenty_diverges_is_left_out():
    race = race_of(Table(0.1, diverging=0.05))
    assert 0.05 / 3**0.125 <= race.run() <= 0.05
    assert any(losses.isinf().any() and losses.isfinite().any() for losses in race.by_rate().values())


def test_limits_of_tasks_and_evaluations_end_it_unsettled():
    torn = Table(0.1, spread=4.0)  # tasks disagree
    for limits in ({"most_tasks": 200}, {"budget": 400}):
        race = race_of(torn, **limits)
        race.run()
        assert not race.settled
        assert race.tasks == 128


def test_a_choice_that_does_not_matter_is_settled():
    race = race_of(lambda rate, first, count: torch.ones(count, dtype=torch.float64))
    race.run()
    assert race.settled
    assert race.tasks == 128


def test_rates_that_all_diverge_are_an_error():
    with pytest.raises(ValueError, match="diverges with each inner rate"):
        race_of(lambda rate, first, count: torch.full((count,), math.inf)).run()


def test_a_lower_rate_is_found_where_all_contenders_diverge_on_later_tasks():
    table = Table(0.1)

    def losses(rate, first, count):
        found = table(rate, first, count)
        return torch.full_like(found, math.inf) if first >= 32 and rate > 0.02 else found

    race = race_of(losses)
    assert 0.01 <= race.run() <= 0.02
    assert race.tasks >= 128
    assert all(own.numel() <= race.tasks for own in race.by_rate().values())


def test_rates_that_all_diverge_on_later_tasks_are_an_error():
    with pytest.raises(ValueError, match="of 32 tasks at least one diverges with each inner rate"):
        race_of(lambda rate, first, count: torch.full((count,), math.inf if first else 1.0)).run()
