"""Inner loops by each update rule, against plain loops of autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import MAML, Episode, ImplicitMAML, Reptile
from tests.reference import RULES, NaiveRule, assert_same, meta_gradient
from tests.registry import every

pytestmark = pytest.mark.usefixtures("float64")

RATE, STEPS, STRENGTH = 0.05, 4, 4.0  # above the loss's most negative curvature


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


@pytest.fixture
def batch():
    return Episode(*[torch.randn(3, examples, size) for examples, size in ((6, 2), (6, 1), (5, 2), (5, 1))])


def parameters_of(model):
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


def loss_of(model, names, values, x, y):
    return nn.functional.mse_loss(functional_call(model, dict(zip(names, values, strict=True)), (x,)), y)


def mean_of(gradients):
    return {name: sum(own[name] for own in gradients) / len(gradients) for name in gradients[0]}


def descend(rule, objective, values):
    """The values after all steps of a rule, differentiable in the first ones."""
    take = NaiveRule(rule)
    for _ in range(STEPS):
        values = take(values, torch.autograd.grad(objective(*values), values, create_graph=True), RATE)
    return values


@pytest.mark.parametrize("rule", RULES)
def test_maml(rule, model, batch):
    names, gradients = [name for name, _ in model.named_parameters()], []
    for i in range(batch.num_tasks):
        task, start = batch.select(i), list(parameters_of(model).values())
        ends = descend(rule, lambda *values, task=task: loss_of(model, names, values, *task[:2]), start)
        slopes = torch.autograd.grad(loss_of(model, names, ends, *task[2:4]), start)
        gradients.append(dict(zip(names, slopes, strict=True)))
    learner = MAML(model, nn.MSELoss(), RATE, STEPS, inner_optimizer=RULES[rule])
    assert_same(meta_gradient(learner, batch)[1], mean_of(gradients))


@pytest.mark.parametrize("rule", RULES)
def test_reptile(rule, model, batch):
    names, gradients = [name for name, _ in model.named_parameters()], []
    for i in range(batch.num_tasks):
        task, start = batch.select(i), list(parameters_of(model).values())
        x, y = torch.cat([task.support_x, task.query_x]), torch.cat([task.support_y, task.query_y])
        ends = descend(rule, lambda *values, x=x, y=y: loss_of(model, names, values, x, y), start)
        moved = [(one - end).detach() / (RATE * STEPS) for one, end in zip(start, ends, strict=True)]
        gradients.append(dict(zip(names, moved, strict=True)))
    learner = Reptile(model, nn.MSELoss(), RATE, STEPS, inner_optimizer=RULES[rule])
    assert_same(meta_gradient(learner, batch)[1], mean_of(gradients))


@pytest.mark.parametrize("rule", RULES)
def test_implicit_maml(rule, batch):
    """The solver by a plain loop, its adjoint by a dense Hessian."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
    names, gradients = ["0.weight", "0.bias"], []
    for i in range(batch.num_tasks):
        task, start = batch.select(i), [p.detach() for p in model.parameters()]

        def objective(*values, task=task, start=start):
            pull = sum((value - anchor).square().sum() for value, anchor in zip(values, start, strict=True))
            return loss_of(model, names, values, *task[:2]) + 0.5 * STRENGTH * pull

        ends = [end.detach() for end in descend(rule, objective, [p.requires_grad_() for p in start])]
        flat = torch.cat([end.flatten() for end in ends])

        def parts(flat):
            return [flat[:2].view(1, 2), flat[2:]]

        hessian = torch.autograd.functional.hessian(
            lambda flat, task=task: loss_of(model, names, parts(flat), *task[:2]), flat
        )
        slope = torch.autograd.functional.jacobian(
            lambda flat, task=task: loss_of(model, names, parts(flat), *task[2:4]), flat
        )
        adjoint = STRENGTH * torch.linalg.solve(hessian + STRENGTH * torch.eye(3), slope)
        gradients.append(dict(zip(names, parts(adjoint), strict=True)))
    learner = ImplicitMAML(
        model, nn.MSELoss(), RATE, STEPS, prox_lambda=STRENGTH, cg_steps=3, inner_optimizer=RULES[rule]
    )
    assert_same(meta_gradient(learner, batch)[1], mean_of(gradients), 1e-8)


@every(lambda entry: entry.takes_steps)
@pytest.mark.parametrize("rule", RULES)
def test_every_learner_takes_every_rule(entry, rule):
    batch, found = entry.batch(3), []
    options = {"inner_lr": 0.01, "inner_steps": 3, "inner_optimizer": RULES[rule], "compile": False, **entry.certain}
    state = entry.learner(**options).state_dict()
    for chunk in (None, 1):
        learner = entry.learner(task_chunk_size=chunk, **options)
        learner.load_state_dict(state)
        learner.training_step(batch, 0).backward()
        found.append({name: p.grad for name, p in learner.named_parameters()})
        task = learner.eval().adapt(batch.support_x[0], batch.support_y[0])
        assert torch.isfinite(task(batch.query_x[0])).all()
    assert all(torch.isfinite(slope).all() for slope in found[0].values())
    assert_same(found[0], found[1], 1e-5 if entry.draws else 1e-9)
