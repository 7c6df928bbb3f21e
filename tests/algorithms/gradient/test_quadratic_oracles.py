"""Closed forms: with a linear model and squared error the losses are quadratic and everything can be written down."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, Episode

pytestmark = pytest.mark.usefixtures("float64")

ALPHA, STEPS, TASKS, FEATURES = 0.05, 3, 4, 3


@pytest.fixture
def model():
    return nn.Linear(FEATURES, 1, bias=False)


@pytest.fixture
def batch():
    return Episode(*(torch.randn(TASKS, n, d) for n, d in [(7, FEATURES), (7, 1), (9, FEATURES), (9, 1)]))


def quadratic(x, y):
    """Mean squared error of a linear model as ½‖φ − a‖²_A + const: (A, a)."""
    a_matrix = 2 * x.T @ x / len(x)
    return a_matrix, torch.linalg.solve(a_matrix, 2 * x.T @ y / len(x))


def expected(model, batch, first_order):
    theta, total = model.weight.detach().T, 0
    for i in range(TASKS):
        a_matrix, a = quadratic(batch.support_x[i], batch.support_y[i])
        c_matrix, b = quadratic(batch.query_x[i], batch.query_y[i])
        m = torch.linalg.matrix_power(torch.eye(FEATURES) - ALPHA * a_matrix, STEPS)
        phi = a + m @ (theta - a)
        gradient = c_matrix @ (phi - b)
        total = total + (gradient if first_order else m @ gradient) / TASKS
    return total.T


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_is_the_closed_form(model, batch, first_order):
    learner = MAML(model, nn.MSELoss(), inner_lr=ALPHA, inner_steps=STEPS, first_order=first_order)
    learner.training_step(batch, 0).backward()
    torch.testing.assert_close(model.weight.grad, expected(model, batch, first_order), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("first_order", [False, True])
def test_learned_rates_have_the_closed_form_gradient(model, batch, first_order):
    learner = MAML(
        model, nn.MSELoss(), inner_lr=ALPHA, inner_steps=STEPS, learned_rates="tensor_step", first_order=first_order
    )
    learner.training_step(batch, 0).backward()
    theta = model.weight.detach().T
    gradient = torch.zeros(STEPS)
    for i in range(TASKS):
        a_matrix, a = quadratic(batch.support_x[i], batch.support_y[i])
        c_matrix, b = quadratic(batch.query_x[i], batch.query_y[i])
        m = torch.eye(FEATURES) - ALPHA * a_matrix
        phi = [a + torch.linalg.matrix_power(m, k) @ (theta - a) for k in range(STEPS + 1)]
        outer = c_matrix @ (phi[-1] - b)
        for k in range(STEPS):
            through = torch.eye(FEATURES) if first_order else torch.linalg.matrix_power(m, STEPS - 1 - k)
            gradient[k] -= ((through @ outer).T @ (a_matrix @ (phi[k] - a))).squeeze() / TASKS
    (rate,) = learner.inner_rates.parameters()
    torch.testing.assert_close(rate.grad, gradient, rtol=1e-10, atol=1e-10)


def test_meta_sgd_learns_a_rate_per_element(model, batch):
    learner = MAML(model, nn.MSELoss(), inner_lr=ALPHA, inner_steps=1, learned_rates="element")
    learner.training_step(batch, 0).backward()
    theta, total = model.weight.detach().T, 0
    for i in range(TASKS):
        a_matrix, a = quadratic(batch.support_x[i], batch.support_y[i])
        c_matrix, b = quadratic(batch.query_x[i], batch.query_y[i])
        inner = a_matrix @ (theta - a)
        total = total - (c_matrix @ (theta - ALPHA * inner - b)) * inner / TASKS
    (rate,) = learner.inner_rates.parameters()
    torch.testing.assert_close(rate.grad, total.T, rtol=1e-10, atol=1e-10)


def test_adapt_reaches_the_closed_form_point(model, batch):
    learner = MAML(model, nn.MSELoss(), inner_lr=ALPHA, inner_steps=1)
    task = batch.select(0)
    a_matrix, a = quadratic(task.support_x, task.support_y)
    phi = a + torch.linalg.matrix_power(torch.eye(FEATURES) - ALPHA * a_matrix, 20) @ (model.weight.detach().T - a)
    adapted = learner.adapt(task.support_x, task.support_y, steps=20)
    torch.testing.assert_close(adapted(task.query_x), task.query_x @ phi, rtol=1e-10, atol=1e-10)
