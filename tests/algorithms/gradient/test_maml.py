from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lightning_meta import ANIL, BOIL, MAML, Episode, MetaSGD
from lightning_meta.inner.multi_step import multi_step_weights
from tests.reference import assert_same, loop_loss, loop_meta_gradient, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.fixture
def batch():
    return Episode(torch.randn(4, 5, 3), torch.randn(4, 5, 2), torch.randn(4, 6, 3), torch.randn(4, 6, 2))


@pytest.mark.parametrize(
    ("adapt", "adapted"),
    [
        ("all", ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
        ("head", ["4.weight", "4.bias"]),
        ("body", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        (["2.*", "*.bias"], ["0.bias", "2.weight", "2.bias", "4.bias"]),
    ],
)
@pytest.mark.parametrize("first_order", [False, True])
def test_adapted_subsets_have_the_loops_gradient(model, batch, adapt, adapted, first_order):
    learner = MAML(model, nn.MSELoss(), inner_lr=0.2, inner_steps=2, adapt=adapt, first_order=first_order)
    assert list(learner.adapted_names) == adapted
    loss, gradient = meta_gradient(learner, batch)
    expected_loss, expected = loop_meta_gradient(model, nn.MSELoss(), batch, 0.2, 2, first_order, adapted)
    torch.testing.assert_close(loss, expected_loss)
    assert_same(gradient, expected)
    task = learner.adapt(batch.support_x[0], batch.support_y[0])
    assert list(task.state) == adapted


def test_anil_and_boil_are_maml_on_a_part(model, batch):
    for part, learner in [("head", ANIL(model, nn.MSELoss(), 0.2)), ("body", BOIL(model, nn.MSELoss(), 0.2))]:
        _, gradient = meta_gradient(learner, batch)
        assert_same(gradient, meta_gradient(MAML(model, nn.MSELoss(), 0.2, adapt=part), batch)[1])


def test_meta_sgd_starts_as_maml_and_learns_its_rates(model, batch):
    learner = MetaSGD(model, nn.MSELoss(), inner_lr=0.2, inner_steps=2)
    _, gradient = meta_gradient(learner, batch)
    assert_same(gradient, loop_meta_gradient(model, nn.MSELoss(), batch, 0.2, 2)[1])
    shapes = [tuple(rate.shape) for rate in learner.inner_rates.parameters()]
    assert shapes == [tuple(p.shape) for p in model.parameters()]
    before = [rate.detach().clone() for rate in learner.inner_rates.parameters()]
    optimizer = learner.configure_optimizers()
    learner.training_step(batch, 0).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, learner.inner_rates.parameters(), strict=True))


def test_more_steps_in_evaluation_repeat_the_last_learned_rate(model, batch):
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, eval_inner_steps=5, learned_rates="tensor_step")
    with torch.no_grad():
        for rate in learner.inner_rates.parameters():
            rate.copy_(torch.tensor([0.1, 0.02]))
    task = batch.select(0)
    fast = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    for lr in [0.1, 0.02, 0.02, 0.02, 0.02]:
        loss = nn.functional.mse_loss(torch.func.functional_call(model, fast, (task.support_x,)), task.support_y)
        fast = {
            n: p - lr * g
            for (n, p), g in zip(fast.items(), torch.autograd.grad(loss, list(fast.values())), strict=True)
        }
    expected = torch.func.functional_call(model, fast, (task.query_x,))
    torch.testing.assert_close(learner.adapt(task.support_x, task.support_y)(task.query_x), expected)
    torch.testing.assert_close(learner.predict_step(batch)[0], expected)


def test_multi_step_weights_are_maml_plus_plus():
    # By hand for K = 5 steps over E = 10 epochs: 1/K − e/(K·E), floored at 0.03/K; the last 1/K + e(K−1)/(K·E).
    assert multi_step_weights(5, 0, 10) == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert multi_step_weights(5, 4, 10) == pytest.approx([0, 0.12, 0.12, 0.12, 0.12, 0.52])
    assert multi_step_weights(5, 10, 10) == [0, 0, 0, 0, 0, 1]
    late = multi_step_weights(5, 99, 100)
    assert late == pytest.approx([0, 0.006, 0.006, 0.006, 0.006, 0.976])
    assert multi_step_weights(3, 0, 0) == [0, 0, 0, 1]


def test_multi_step_loss_is_the_weighted_sum_over_steps(model, batch):
    learner = MAML(model, nn.MSELoss(), inner_lr=0.2, inner_steps=3, multi_step_loss_epochs=10)
    loss, gradient = meta_gradient(learner, batch)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    total = sum(
        loop_loss(model, nn.MSELoss(), parameters, batch.select(i), 0.2, k) for i in range(4) for k in (1, 2, 3)
    ) / (4 * 3)
    torch.testing.assert_close(loss, total.detach())
    expected = torch.autograd.grad(total, list(parameters.values()))
    assert_same(gradient, dict(zip(parameters, expected, strict=True)))


def test_a_query_loss_of_weight_zero_may_be_infinite():
    """Before the first step the loss 1/φ is infinite; it never counts in the multi-step loss."""

    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            return self.phi.expand(len(x), 1)

    ones = torch.ones(1, 2, 1)
    learner = MAML(
        Itself(),
        lambda output, exponent: (output**exponent).mean(),
        inner_lr=0.1,
        inner_steps=2,
        multi_step_loss_epochs=5,
    )
    loss = learner.training_step(Episode(ones, ones, ones, -ones), 0)
    assert float(loss.detach()) == pytest.approx(0.5 * (1 / -0.1 + 1 / -0.2))


def test_derivative_order_annealing_switches_at_its_epoch(model, batch, monkeypatch):
    learner = MAML(model, nn.MSELoss(), inner_lr=0.2, inner_steps=2, first_order_epochs=3)
    for epoch, first_order in [(0, True), (2, True), (3, False)]:
        monkeypatch.setattr(MAML, "current_epoch", epoch)
        expected = loop_meta_gradient(model, nn.MSELoss(), batch, 0.2, 2, first_order)[1]
        assert_same(meta_gradient(learner, batch)[1], expected)


def test_the_phase_of_training_changes_with_what_a_step_computes(model, monkeypatch):
    def phases(**options):
        learner, found = MAML(model, nn.MSELoss(), **options), []
        for epoch in range(6):
            monkeypatch.setattr(MAML, "current_epoch", epoch)
            found.append(learner.training_phase())
        return [phase == before for before, phase in itertools.pairwise(found)]

    assert phases() == [True] * 5
    assert phases(first_order_epochs=3) == [True, True, False, True, True]
    assert phases(multi_step_loss_epochs=2) == [False, False, True, True, True]
