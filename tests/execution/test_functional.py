"""Modules as pure functions of their parameters."""

from __future__ import annotations

import torch
from torch import nn

from lightning_meta import MAML, Episode
from lightning_meta.execution.functional import call_with


def in_two_places():
    """A layer in two places, and a third one that shares its weight."""
    layer, tied = nn.Linear(3, 3), nn.Linear(3, 3)
    tied.weight = layer.weight
    return nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer, nn.Tanh()), tied)


def test_a_part_in_two_places_is_called_with_the_given_parameters_and_not_changed():
    module = in_two_places()
    before = {name: (p, p.detach().clone()) for name, p in module.named_parameters(remove_duplicate=False)}
    given = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    x = torch.randn(5, 3)
    hidden = x
    for _ in range(2):
        hidden = (hidden @ given["0.weight"].T + given["0.bias"]).tanh()
    expected = hidden @ given["0.weight"].T + given["3.bias"]
    torch.testing.assert_close(call_with(module, given, x), expected)
    after = dict(module.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, value)


def test_a_model_with_a_part_in_two_places_is_meta_learned(float64):
    model = in_two_places()
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1)
    task = Episode(torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.randn(2, 4, 3))
    learner.training_step(task, 0).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total = torch.zeros(())
    names = [name for name, _ in model.named_parameters()]
    for x, y, query_x, query_y in zip(task.support_x, task.support_y, task.query_x, task.query_y, strict=True):
        loss = nn.functional.mse_loss(model(x), y)
        slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        adapted = {n: p - 0.1 * g for n, p, g in zip(names, model.parameters(), slopes, strict=True)}
        total = total + nn.functional.mse_loss(call_with(model, adapted, query_x), query_y) / 2
    total.backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters()])
