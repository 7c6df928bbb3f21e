"""Tasks that diverge in evaluation, kept with an infinite loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, Episode


def batch_where(*diverging: int, tasks: int = 4) -> Episode:
    generator = torch.Generator().manual_seed(0)
    batch = Episode(*[torch.randn(tasks, 5, 1, generator=generator) for _ in range(4)])
    for task in diverging:
        batch.support_y[task] *= 1e30
    return batch


def learner() -> MAML:
    torch.manual_seed(0)
    return MAML(MLP(1, 1, hidden=[4]), nn.MSELoss(), inner_lr=0.01, inner_steps=3)


def test_tasks_that_diverge_are_kept_with_an_infinite_loss_and_the_others_are_as_alone():
    found = learner().evaluate(batch_where(1, 3), diverged="keep").loss
    assert found[[1, 3]].tolist() == [math.inf, math.inf]
    alone = learner().evaluate(batch_where().select(torch.tensor([0, 2]))).loss
    torch.testing.assert_close(found[[0, 2]], alone)


def test_the_default_raises():
    with pytest.raises(FloatingPointError, match="task 1 of the batch"):
        learner().evaluate(batch_where(1, 3))


def test_a_task_counts_as_diverged_if_only_a_support_loss_is_not_finite():
    own = learner()
    evaluate_task = own._evaluate_task

    def with_broken_support_loss(*arguments):
        result = evaluate_task(*arguments)
        return result._replace(support_losses=result.support_losses * torch.tensor([1.0, math.nan, 1.0]))

    own._evaluate_task = with_broken_support_loss
    assert own.evaluate(batch_where(), diverged="keep").loss.isinf().all()


def test_data_and_parameters_that_are_not_finite_are_no_divergence():
    broken = batch_where(1)
    broken.query_x[2, 0] = math.nan
    with pytest.raises(FloatingPointError, match="task 2 of the batch .*: check its inputs and targets"):
        learner().evaluate(broken, diverged="keep")
    own = learner()
    nn.init.constant_(own.model.layers[0].bias, math.nan)
    with pytest.raises(FloatingPointError, match="parameters are not finite themselves"):
        own.evaluate(batch_where(), diverged="keep")


def test_other_choices_are_refused():
    with pytest.raises(ValueError, match="diverged='drop' is not one of"):
        learner().evaluate(batch_where(), diverged="drop")
