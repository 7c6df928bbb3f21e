"""What is recorded: simplified graphs, keys and draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from lightning_meta.execution.capture import closed_world, recorder
from lightning_meta.execution.capture.graph import Recording
from tests.execution.capture.recorded import make_batch

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(autouse=True)
def _recorded_at_once(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)


@pytest.fixture
def batch():
    return make_batch()


def test_the_key_takes_each_shared_part_once():
    class Counted(closed_world._Look):
        calls = 0

        def add_module(self, module, path):
            Counted.calls += 1
            super().add_module(module, path)

    first = nn.Linear(2, 2)
    blocks = [first]
    for _ in range(16):  # each block lists all earlier ones
        blocks.append(nn.Sequential(*blocks))
    look = Counted({}, [])
    look.add_module(blocks[-1], "model")
    assert Counted.calls <= 17 * 17


def test_shape_changes_of_what_lies_inside_other_memory_are_left_alone():
    """Compilers count `as_strided` from the start of that memory."""

    def function(_, x):
        y = x.exp()
        parts = y[:, 1], y[1:, 0], y.unbind(1)[1], y[0].diagonal()
        return [part.unsqueeze(0).transpose(0, 1) * 2 for part in parts], (y.flatten().unsqueeze(1).t() * 2)

    x = torch.rand(3, 2, 2)
    recording = Recording(function, (x[:0], x), compiled=False)
    strided = [n for n in recording._graph.graph.nodes if n.target == torch.ops.aten.as_strided.default]
    assert [str(n.args[0].target) for n in strided] == ["aten.exp.default"]
    for found, expected in zip(recording([x[:0], x])[0], function(None, x)[0], strict=True):
        assert torch.equal(found, expected)


def test_simplified_graphs_have_fewer_operations_and_the_same_bits(monkeypatch):
    weight, x = torch.randn(6, 6), torch.randn(4, 5, 6)

    def function(weight, x):
        def loss(weight, x):
            return (torch.nn.functional.linear(x, weight).relu()[1:].T.reshape(3, -1) ** 2).sum()

        return vmap(grad(loss), in_dims=(None, 0))(weight, x)

    def recording():
        made = Recording(function, (weight, x), compiled=False)
        return made([weight, x]), sum(node.op == "call_function" for node in made._run.__self__.graph.nodes)

    simplified, fewer = recording()
    monkeypatch.setattr("lightning_meta.execution.capture.graph.simplify", lambda graph: None)
    exact, more = recording()
    assert torch.equal(simplified, exact)
    torch.testing.assert_close(exact, function(weight, x))
    assert fewer < 0.8 * more


def test_draws_without_use_stay(batch):
    def function(x):
        torch.randn(3)
        return x * torch.randn(())

    recorded = Recording(function, (torch.ones(()),), compiled=False)
    results = []
    for call in (lambda: function(torch.ones(())), lambda: recorded([torch.ones(())])):
        torch.manual_seed(3)
        results.append(float(call()))
    assert results[0] == results[1]
    assert recorded.draws
