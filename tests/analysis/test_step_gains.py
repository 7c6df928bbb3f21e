from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, Episode, ProtoNet
from lightning_meta.analysis import step_gains


def batch_of(tasks=6):
    return Episode(*[torch.randn(tasks, 5, 1) for _ in range(4)])


def test_losses_are_those_of_evaluation():
    learner, batch = MAML(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.05, eval_inner_steps=3), batch_of()
    found = step_gains(learner, batch)
    assert found.losses.shape == (6, 11)
    for steps in (1, 3, 10):
        torch.testing.assert_close(found.losses[:, steps].float(), learner.evaluate(batch, steps=steps).loss)
    torch.testing.assert_close(found.gains.sum(1), found.losses[:, 0] - found.losses[:, -1])


def test_steps_that_help_and_harm_are_told_apart():
    """On ``w²`` for all tasks steps of rate 0.25 halve w; of rate 2 they double and turn it."""
    tasks = Episode(*(torch.ones(4, 3, 1) * scale for scale in (1.0, 0.0, 1.0, 0.0)))
    tasks = tasks._replace(query_x=tasks.query_x * torch.tensor([1.0, 1.1, 1.2, 1.3])[:, None, None])
    helping, harming = (MAML(nn.Linear(1, 1, bias=False), nn.MSELoss(), inner_lr=rate) for rate in (0.25, 2.0))
    assert step_gains(helping, tasks, steps=3).gaining == [1, 2, 3]
    assert step_gains(harming, tasks, steps=3).losing == [1, 2, 3]
    diverging = step_gains(MAML(nn.Linear(1, 1, bias=False), nn.MSELoss(), inner_lr=1e30), tasks, steps=3)
    assert diverging.losing == [1, 2, 3]
    assert diverging.losses[:, 0].isfinite().all()


def test_what_has_no_steps_is_refused():
    with pytest.raises(ValueError, match="ProtoNet has no inner"):
        step_gains(ProtoNet(nn.Linear(1, 2)), batch_of())
    with pytest.raises(ValueError, match="at least 2 tasks"):
        step_gains(MAML(MLP(), nn.MSELoss()), batch_of(1))
    with pytest.raises(ValueError, match="steps=0"):
        step_gains(MAML(MLP(), nn.MSELoss()), batch_of(), steps=0)
