from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, Episode, MetaSGD, ProtoNet, Reptile
from lightning_meta.analysis.inner_rates import inner_rate_losses


@pytest.fixture
def batch():
    return Episode(*[torch.randn(6, 5, 1) for _ in range(4)])


@pytest.mark.parametrize("cls", [MAML, Reptile])
def test_losses_are_those_of_learners_with_these_rates(cls, batch):
    model, rates = MLP(hidden=[6]), [0.01, 0.1, 0.3]
    learner = cls(model, nn.MSELoss(), inner_lr=0.02, inner_steps=2)
    before = learner.evaluate(batch).loss
    found = inner_rate_losses(learner, batch, rates)
    expected = [cls(model, nn.MSELoss(), inner_lr=rate, inner_steps=2).evaluate(batch).loss.mean() for rate in rates]
    torch.testing.assert_close(found, torch.stack(expected))
    assert torch.equal(learner.evaluate(batch).loss, before)


def test_divergence_is_an_infinite_loss(batch):
    found = inner_rate_losses(MAML(MLP(hidden=[6]), nn.MSELoss(), inner_steps=9), batch, [0.01, 1e20])
    assert torch.isfinite(found).tolist() == [True, False]


def test_rates_are_factors_of_learned_ones(batch):
    model = MLP(hidden=[6])
    learned = inner_rate_losses(MetaSGD(model, nn.MSELoss(), inner_lr=0.1), batch, [0.5, 2.0])
    torch.testing.assert_close(learned, inner_rate_losses(MAML(model, nn.MSELoss()), batch, [0.05, 0.2]))


def test_what_cannot_be_evaluated_is_refused(batch):
    with pytest.raises(ValueError, match="has no inner learning rate"):
        inner_rate_losses(ProtoNet(MLP()), batch, [0.1])
    with pytest.raises(ValueError, match="rates"):
        inner_rate_losses(MAML(MLP(), nn.MSELoss()), batch, [0.1, -1.0])
