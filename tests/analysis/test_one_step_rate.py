from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, Episode, MetaSGD, ProtoMAML
from lightning_meta.analysis import one_step_rate
from lightning_meta.analysis.task_losses import losses_by_step


def quadratic_tasks(tasks=7):
    """Linear regressions through the solution, with the Hessians of support and query losses, and their solutions."""
    x, solution = torch.randn(tasks, 12, 3).double(), torch.randn(tasks, 1, 3).double()
    y = (x * solution).sum(2, keepdim=True)
    hessians = [2 * part.mT @ part / 6 for part in (x[:, :6], x[:, 6:])]
    return Episode(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:]), *hessians, solution[:, 0]


def linear(cls=MAML, **options):
    return cls(nn.Linear(3, 1, bias=False).double(), nn.MSELoss(), **options)


def test_it_is_the_minimum_of_quadratics():
    """α* = Σ eᵀ A C e / Σ eᵀ A C A e with support Hessian A, query Hessian C and e = θ − θ*."""
    batch, a, c, solution = quadratic_tasks()
    learner = linear(inner_lr=0.3)
    e = learner.model.weight.detach() - solution  # [tasks, 3]
    ae = torch.einsum("tij,tj->ti", a, e)
    ce, cae = (torch.einsum("tij,tj->ti", c, vector) for vector in (e, ae))
    expected = float((ae * ce).sum() / (ae * cae).sum())
    found = one_step_rate(learner, batch)
    assert found.rate == pytest.approx(expected)
    losses = [float(losses_by_step(learner, batch, (1,), found.rate * near).mean()) for near in (0.99, 1.0, 1.01)]
    assert losses[1] == min(losses)
    assert learner.inner_lr == 0.3


def test_of_learned_rates_it_is_a_factor():
    batch, *_ = quadratic_tasks()
    plain = linear(inner_lr=0.3)
    learned = MetaSGD(plain.model, nn.MSELoss(), inner_lr=0.05)
    assert 0.05 * one_step_rate(learned, batch).rate == pytest.approx(one_step_rate(plain, batch).rate)


def test_harmful_steps_have_a_negative_rate_and_negative_curvature_none():
    batch, *_ = quadratic_tasks()
    learner = linear()
    residual = (batch.support_x * learner.model.weight.detach()).sum(2, keepdim=True) - batch.support_y
    agreeing = batch._replace(query_x=batch.support_x, query_y=batch.support_y)
    opposed = agreeing._replace(query_y=batch.support_y + 2 * residual)  # the query loss falls the other way
    assert one_step_rate(learner, opposed).rate == pytest.approx(-one_step_rate(learner, agreeing).rate)
    concave = MAML(learner.model, lambda output, target: -nn.functional.mse_loss(output, target))
    assert math.isnan(one_step_rate(concave, batch).rate)


def test_what_has_no_closed_form_is_refused():
    batch, *_ = quadratic_tasks()
    with pytest.raises(ValueError, match="not ProtoMAML"):
        one_step_rate(ProtoMAML(nn.Linear(3, 2)), batch)
    broken = Episode(*(torch.full((2, 3, 1), torch.nan) for _ in range(4)))
    with pytest.raises(ValueError, match="not finite"):
        one_step_rate(MAML(MLP(hidden=[4]), nn.MSELoss()), broken)
