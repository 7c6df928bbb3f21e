"""CAVIA against a loop that concatenates the context, or scales and shifts feature maps, as the paper writes it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import CAVIA, MLP, Conv4, Episode, collate_episodes
from lightning_meta.analysis import curvature
from lightning_meta.inner import Checkpointed
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("float64")


def tasks(count=3, outputs=2):
    return [
        Episode(*(torch.randn(n, f) for n, f in ((6, 3), (6, outputs), (5, 3), (5, outputs)))) for _ in range(count)
    ]


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def concatenated(p, phi, x, layer="0"):
    """The network of `network` whose layer takes its inputs and the context."""
    for index in ("0", "2", "4"):
        weight, bias = p[f"model.{index}.weight"], p[f"model.{index}.bias"]
        if index == layer:
            weight = torch.cat([weight, p[f"context_layers.shift.{index}"]], dim=1)
            x = torch.cat([x, phi.expand(x.shape[0], -1)], dim=1)
        x = F.linear(x, weight, bias)
        x = x if index == "4" else torch.tanh(x)
    return x


def filmed(p, phi, x):
    """The network of `network` with the outputs of its layers 0 and 2 scaled and shifted."""
    for index in ("0", "2", "4"):
        x = F.linear(x, p[f"model.{index}.weight"], p[f"model.{index}.bias"])
        if index != "4":
            scale = 1 + p[f"context_layers.scale.{index}"] @ phi
            x = torch.tanh(scale * x + p[f"context_layers.shift.{index}"] @ phi)
    return x


def adapted(forward, p, task, size, rate, steps, create_graph):
    phi = torch.zeros(size, requires_grad=True)
    for _ in range(steps):
        loss = F.mse_loss(forward(p, phi, task.support_x), task.support_y)
        (slope,) = torch.autograd.grad(loss, phi, create_graph=create_graph)
        phi = phi - rate * slope
    return phi


def loop(learner, forward, batch, size, rate, steps, first_order=False):
    """The mean query loss and its gradient."""
    p = {name: own.detach().clone().requires_grad_() for name, own in learner.named_parameters()}
    losses = []
    for task in batch:
        phi = adapted(forward, p, task, size, rate, steps, not first_order)
        losses.append(F.mse_loss(forward(p, phi, task.query_x), task.query_y))
    loss = sum(losses) / len(losses)
    return loss.detach(), dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))


def own_gradient(learner, batch):
    learner.zero_grad()
    loss = learner.training_step(collate_episodes(batch), 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in learner.named_parameters() if p.requires_grad}


def assert_is(learner, forward, size, first_order=False):
    batch = tasks()
    loss, found = own_gradient(learner, batch)
    expected = loop(learner, forward, batch, size, learner.inner_lr, learner.inner_steps, first_order)
    torch.testing.assert_close(loss, expected[0])
    assert_same(found, expected[1])
    assert all(slope.any() for slope in found.values())


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_that_of_a_concatenated_context(steps, first_order, chunk):
    options = {"inner_steps": steps, "first_order": first_order, "task_chunk_size": chunk}
    learner = CAVIA(network(), nn.MSELoss(), inner_lr=0.7, num_context_parameters=5, **options)
    assert_is(learner, concatenated, 5, first_order)


def test_the_context_may_enter_a_later_layer():
    learner = CAVIA(network(), nn.MSELoss(), inner_steps=2, num_context_parameters=3, layers="2")
    assert_is(learner, lambda p, phi, x: concatenated(p, phi, x, "2"), 3)


def test_a_model_that_is_one_layer_reads_the_context():
    def one_layer(p, phi, x):
        weight = torch.cat([p["model.weight"], p["context_layers.shift./"]], dim=1)
        return F.linear(torch.cat([x, phi.expand(x.shape[0], -1)], dim=1), weight, p["model.bias"])

    assert_is(CAVIA(nn.Linear(3, 2), nn.MSELoss(), inner_steps=2, num_context_parameters=3), one_layer, 3)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_is_that_of_scaled_and_shifted_features(first_order):
    options = {"context": "film", "layers": ["0", "2"], "num_context_parameters": 3, "first_order": first_order}
    assert_is(CAVIA(network(), nn.MSELoss(), inner_lr=0.5, inner_steps=2, **options), filmed, 3, first_order)


def test_recomputed_steps_give_the_same_gradient():
    options = {"inner_steps": 5, "num_context_parameters": 3, "compile": False}
    learner = CAVIA(network(), nn.MSELoss(), **options)
    other = CAVIA(copy.deepcopy(learner.model), nn.MSELoss(), meta_gradient=Checkpointed(), **options)
    other.load_state_dict(learner.state_dict())
    batch = tasks()
    assert_same(own_gradient(other, batch)[1], own_gradient(learner, batch)[1], 1e-12)


def test_the_meta_gradient_is_that_of_finite_differences():
    learner = CAVIA(network(), nn.MSELoss(), inner_lr=0.7, inner_steps=3, num_context_parameters=2, compile=False)
    batch = tasks(2)
    _, found = own_gradient(learner, batch)
    for name, p in learner.named_parameters():
        direction = torch.randn_like(p)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * 1e-5 * direction
            values.append(learner.training_step(collate_episodes(batch), 0).detach())
            with torch.no_grad():
                p -= sign * 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((found[name] * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def test_feature_maps_are_scaled_and_shifted_after_normalization():
    model = Conv4(3, filters=4)
    learner = CAVIA(model, inner_steps=1, context="film", layers="norms.2", num_context_parameters=6).eval()
    x, y = torch.rand(6, 1, 28, 28), torch.arange(6) % 3
    task = learner.adapt(x, y)
    phi = task.state["context"]
    scale = 1 + learner.context_layers.scale["norms/2"] @ phi
    shift = learner.context_layers.shift["norms/2"] @ phi
    hidden = x
    for index, (convolution, norm) in enumerate(zip(model.convolutions, model.norms, strict=True)):
        hidden = norm(convolution(hidden))
        if index == 2:
            hidden = scale[:, None, None] * hidden + shift[:, None, None]
        hidden = hidden.relu()
    torch.testing.assert_close(task(x), model.head(hidden.mean((2, 3))).detach())
    assert phi.any()


def test_a_task_adapts_the_context_alone_and_starts_at_zero():
    learner = CAVIA(network(), nn.MSELoss(), num_context_parameters=4).eval()
    (one,) = tasks(1)
    task = learner.adapt(one.support_x, one.support_y)
    assert {name: tuple(value.shape) for name, value in task.state.items()} == {"context": (4,)}
    before = learner.model.state_dict()
    changed = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.bias"}
    outputs = learner.evaluate(collate_episodes([one]), record=(0, 1)).outputs[0]
    torch.testing.assert_close(outputs[0], learner.model(one.query_x).detach())
    assert not torch.allclose(outputs[1], outputs[0])


def test_a_frozen_model_has_a_learned_context():
    model = network().requires_grad_(False)
    learner = CAVIA(model, nn.MSELoss(), context="film", layers="2", num_context_parameters=3, inner_steps=2)
    batch = tasks()
    torch.testing.assert_close(learner.training_step(collate_episodes(batch), 0).detach(), frozen_loss(learner, batch))
    assert own_maps(learner) == {"context_layers.shift.2", "context_layers.scale.2"}
    task = learner.eval().adapt(batch[0].support_x, batch[0].support_y)
    plain = network()
    plain.load_state_dict(task.state_dict())
    torch.testing.assert_close(plain(batch[0].query_x).detach(), task(batch[0].query_x))


def own_maps(learner):
    return {name for name, p in learner.named_parameters() if p.requires_grad}


def frozen_loss(learner, batch):
    p = dict(learner.named_parameters())

    def forward(p, phi, x):
        hidden = learner.model[1](learner.model[0](x))
        scale = 1 + p["context_layers.scale.2"] @ phi
        hidden = scale * learner.model[2](hidden) + p["context_layers.shift.2"] @ phi
        return learner.model[4](torch.tanh(hidden))

    losses = [
        F.mse_loss(forward(p, adapted(forward, p, one, 3, 1.0, 2, True), one.query_x), one.query_y) for one in batch
    ]
    return torch.stack(losses).mean().detach()


@pytest.mark.parametrize("frozen", [False, True])
def test_captured_steps_are_pythons(frozen):
    options = {"num_context_parameters": 3, "context": "film", "layers": ["layers.0", "layers.2"]}
    model = MLP(3, 2, hidden=[6]).requires_grad_(not frozen)
    plain = CAVIA(model, nn.MSELoss(), compile=False, **options)
    other = CAVIA(copy.deepcopy(model), nn.MSELoss(), **options)
    other.load_state_dict(plain.state_dict())
    for step in range(14):
        batch = tasks()
        if step == 12:
            for learner in (plain, other):
                with torch.no_grad():
                    learner.model.layers[0].weight += 1
        assert_same(own_gradient(other, batch)[1], own_gradient(plain, batch)[1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network, {"context": "video"}, "context='video' is not one of"),
        (network, {"num_context_parameters": 0}, "num_context_parameters=0"),
        (network, {"layers": "1"}, r"layers: '1' is not an nn.Linear with .* suitable are \['0', '2', '4'\]"),
        (network, {"layers": []}, r"layers=\[\] must name at least one"),
        (network, {"layers": ["0", "0"]}, "each once"),
        (network, {"context": "film"}, r"context='film' needs layers=NAME of a linear, convolution or normalization"),
        (Tied, {}, r"with a weight and a bias of its own; suitable are \[\]"),
        (lambda: nn.Linear(3, 2, bias=False), {}, r"suitable are \[\]"),
        (lambda: nn.Sequential(nn.Embedding(4, 2)), {"context": "film", "layers": "0"}, r"suitable are \[\]"),
        (network, {"meta_gradient": Checkpointed(), "compile": True}, "compile=True does not support"),
        (network, {"meta_gradient": Checkpointed(), "first_order": True}, "replaces first_order"),
    ],
)
def test_what_cannot_be_done_is_an_error(model, options, message):
    with pytest.raises(ValueError, match=message):
        CAVIA(model(), nn.MSELoss(), **options)


def test_analyses_of_the_models_parameters_refuse_a_context():
    learner = CAVIA(network(), nn.MSELoss())
    with pytest.raises(ValueError, match="curvature is for learners that adapt parameters of one model .* not CAVIA"):
        curvature(learner, collate_episodes(tasks()))
