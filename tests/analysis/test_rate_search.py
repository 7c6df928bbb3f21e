from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, Episode, ImplicitMAML, MetaSGD, ProtoNet, Reptile, SinusoidDataModule
from lightning_meta.analysis import search_rate
from lightning_meta.analysis.task_losses import losses_by_step
from lightning_meta.data.episodes import EpisodeDataset
from tests.registry import every


class Quadratics(EpisodeDataset):
    """Linear models without bias: the loss of w is the mean of ``(x (w − w*))²`` on 20 inputs ``x``; w starts at 0."""

    def make(self, indices):
        generator = torch.Generator().manual_seed(1)
        solution = torch.randn(1000, 1, 3, generator=generator)[indices]
        x = torch.randn(1000, 40, 3, generator=generator)[indices]
        y = (x * solution).sum(2, keepdim=True)
        return Episode(x[:, :20], y[:, :20], x[:, 20:], y[:, 20:])


def linear(cls=MAML, **options):
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    return cls(model, nn.MSELoss(), **options)


def state_of(learner):
    values = {name: value.clone() for name, value in learner.state_dict().items()}
    return values, learner.inner_lr, [module.training for module in learner.modules()]


def same_state(before, after):
    return before[1:] == after[1:] and all(torch.equal(before[0][name], after[0][name]) for name in before[0])


def best_of_grid(learner, tasks, steps, rates):
    batch = tasks.make(np.arange(400, 800))
    losses = {rate: float(losses_by_step(learner, batch, (steps,), rate).mean()) for rate in rates}
    return losses, batch


@pytest.mark.parametrize("cls", [MAML, Reptile])
@pytest.mark.parametrize("steps", [1, 2])
def test_it_comes_near_a_brute_force_grid(cls, steps):
    learner, tasks = linear(cls, inner_lr=0.001), Quadratics(600)
    found = search_rate(learner, tasks, steps=steps)
    losses, batch = best_of_grid(learner, tasks, steps, np.geomspace(1e-3, 1, 60))
    advised = float(losses_by_step(learner, batch, (steps,), found.advised).mean())
    assert advised <= 1.1 * min(losses.values())
    assert found.steps == steps
    low, high = found.as_good
    assert low <= found.advised <= high


def test_fresh_tasks_are_those_that_the_search_did_not_see():
    learner, tasks = linear(inner_lr=0.3), Quadratics(200)
    found = search_rate(learner, tasks, fresh_tasks=40)
    fresh = tasks.make(np.arange(160, 200))
    torch.testing.assert_close(found.fresh_losses, losses_by_step(learner, fresh, (1,), found.advised)[:, 0])
    torch.testing.assert_close(found.fresh_own_losses, losses_by_step(learner, fresh, (1,))[:, 0])
    assert max(losses.numel() for losses in found.losses.values()) <= 160
    gain = found.fresh_own_losses.mean() - found.fresh_losses.mean()
    assert found.fresh_gain.mean == pytest.approx(float(gain))


def test_learned_rates_are_searched_for_a_common_factor():
    plain, learned = linear(inner_lr=0.01), linear(MetaSGD, inner_lr=0.05)
    of_plain, of_learned = (search_rate(learner, Quadratics(200)) for learner in (plain, learned))
    assert of_learned.is_factor
    assert not of_plain.is_factor
    assert of_learned.own == 1.0
    assert math.log(0.05 * of_learned.advised / of_plain.advised) == pytest.approx(0, abs=math.log(3) / 4)
    rate = 3.0
    batch = Quadratics(1000).make(np.arange(5))
    torch.testing.assert_close(
        losses_by_step(learned, batch, (1,), rate), losses_by_step(linear(inner_lr=0.05 * rate), batch, (1,))
    )


def test_a_task_that_diverges_does_not_hide_the_others():
    batch = Quadratics(1000).make(np.arange(6))
    alone = losses_by_step(linear(), batch, (3,), 0.2)
    batch.support_x[2] *= 1e30
    together = losses_by_step(linear(), batch, (3,), 0.2)
    assert together[2].isinf()
    torch.testing.assert_close(together[[0, 1, 3, 4, 5]], alone[[0, 1, 3, 4, 5]])


@every(lambda entry: entry.takes_steps)
def test_every_learner_with_a_rate_is_searched_and_stays_as_it_is(entry):
    learner, tasks = entry.learner(inner_lr=0.01), entry.data(val_tasks=48).episodes("val")
    learner.train()
    learner.model.eval()  # a user's own choice of modes
    before = state_of(learner)
    found = search_rate(learner, tasks, steps=1, first_tasks=4, fresh_tasks=8, budget=10)
    assert math.isfinite(float(found.fresh_losses.mean()))
    assert found.losses.keys() >= {found.advised, found.own}
    assert same_state(before, state_of(learner))


def test_draws_are_the_same_for_all_rates():
    dropping = MAML(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)), nn.MSELoss())
    batch = Quadratics(1000).make(np.arange(4))
    assert torch.equal(losses_by_step(dropping, batch, (1,), 0.1), losses_by_step(dropping, batch, (1,), 0.1))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_learner_is_unchanged_after_an_interruption(error, monkeypatch):
    learner = MAML(MLP(hidden=[4]), nn.MSELoss(), inner_lr=0.02)
    before = state_of(learner)

    def interrupt(*_):
        raise error

    monkeypatch.setattr(learner, "map_tasks", interrupt)
    with pytest.raises(error):
        search_rate(learner, SinusoidDataModule(val_tasks=200).episodes("val"))
    assert same_state(before, state_of(learner))


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match=r"at least 192 validation tasks.*has 100.*val_tasks=192"):
        search_rate(linear(), Quadratics(100))
    with pytest.raises(ValueError, match="ProtoNet has no inner learning rate"):
        search_rate(ProtoNet(nn.Linear(3, 2)), Quadratics(200))
    with pytest.raises(ValueError, match="hessian_free"):
        search_rate(linear(ImplicitMAML, inner_solver="hessian_free"), Quadratics(200))
    for option in ({"tolerance": 0.0}, {"budget": 1}, {"first_tasks": 1}, {"fresh_tasks": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            search_rate(linear(), Quadratics(200), **option)
