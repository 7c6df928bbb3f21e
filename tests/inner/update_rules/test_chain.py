"""Transforms of gradients against torch's own clipping and weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, Episode
from lightning_meta.inner import SGD, Adam, Chain, ClipNorm, Momentum, WeightDecay
from tests.reference import meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.fixture
def batch():
    return Episode(*[torch.randn(3, examples, size) for examples, size in ((6, 2), (6, 1), (5, 2), (5, 1))])


def adapted_by_torch(model, task, optimizer, clip, steps):
    """The model after steps of one of torch's optimizers."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    optimizer = optimizer(list(parameters.values()))
    for _ in range(steps):
        optimizer.zero_grad()
        output = torch.func.functional_call(model, parameters, (task.support_x,))
        nn.functional.mse_loss(output, task.support_y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(list(parameters.values()), clip)
        optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}


@pytest.mark.parametrize(
    ("rule", "optimizer", "clip"),
    [
        (Chain([ClipNorm(0.05)], SGD()), lambda p: torch.optim.SGD(p, lr=0.1), 0.05),
        (Chain([ClipNorm(1e3)], SGD()), lambda p: torch.optim.SGD(p, lr=0.1), 1e3),
        (Chain([ClipNorm(0.05)], Momentum()), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 0.05),
        (Chain([ClipNorm(0.05)], Adam()), lambda p: torch.optim.Adam(p, lr=0.1), 0.05),
        (Chain([WeightDecay(0.3)], SGD()), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3), None),
        (
            Chain([WeightDecay(0.3)], Momentum(0.8)),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.3),
            None,
        ),
        (Chain([WeightDecay(0.3)], Adam()), lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3), None),
        (
            Chain([ClipNorm(0.05), WeightDecay(0.3)], SGD()),
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3),
            0.05,
        ),
        (Chain([], SGD()), lambda p: torch.optim.SGD(p, lr=0.1), None),
    ],
    ids=["clipped", "not clipped", "momentum", "adam", "decay", "momentum, decay", "adam, decay", "both", "neither"],
)
def test_adaptation_is_that_of_torchs_optimizers(rule, optimizer, clip, model, batch):
    learner, task = MAML(model, nn.MSELoss(), 0.1, 5, inner_optimizer=rule), batch.select(0)
    found = learner.adapt(task.support_x, task.support_y).state
    for name, value in adapted_by_torch(model, task, optimizer, clip, 5).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)  # clip_grad_norm_ adds 1e-6 to the norm


def test_the_order_of_transforms_counts():
    gradients, parameters = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([10.0, 0.0])}
    for transforms, expected in (
        ([ClipNorm(1.0), WeightDecay(0.1)], [0.6 + 1.0, 0.8]),
        ([WeightDecay(0.1), ClipNorm(1.0)], [4 / 32**0.5, 4 / 32**0.5]),
    ):
        moved, _ = Chain(transforms, SGD()).update(parameters, gradients, (), {"w": 1.0}, 0)
        torch.testing.assert_close(parameters["w"] - moved["w"], torch.tensor(expected))


def test_the_norm_is_over_all_tensors_and_of_each_task():
    gradients = {"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[4.0], [0.4]])}
    clipped = torch.func.vmap(lambda g: ClipNorm(1.0).transform(g, g))(gradients)
    torch.testing.assert_close(clipped["a"], torch.tensor([[0.6], [0.3]]))
    torch.testing.assert_close(clipped["b"], torch.tensor([[0.8], [0.4]]))


@pytest.mark.parametrize("max_norm", [0.05, 0.5, 100.0])
def test_clipped_steps_have_the_meta_gradient_of_finite_differences(max_norm, model, batch):
    rule = Chain([ClipNorm(max_norm), WeightDecay(0.1)], Momentum(0.7))
    learner = MAML(model, nn.MSELoss(), 0.1, 3, inner_optimizer=rule)
    gradient = meta_gradient(learner, batch)[1]
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    values = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p += shift * direction[name]
        values.append(float(learner.training_step(batch, 0).detach()))
    slope = float(sum((gradient[name] * direction[name]).sum() for name in direction))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_gradient_of_zero_gives_no_nan(first_order, batch):
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    rule = Chain([ClipNorm(0.1)], SGD())
    learner = MAML(model, nn.MSELoss(), 0.1, 2, first_order=first_order, inner_optimizer=rule)
    still = batch._replace(support_y=torch.zeros_like(batch.support_y))  # solved already
    loss, gradient = meta_gradient(learner, still)
    assert torch.isfinite(loss)
    plain = MAML(model, nn.MSELoss(), 0.1, 2, first_order=first_order)
    for name, slope in meta_gradient(plain, still)[1].items():
        torch.testing.assert_close(gradient[name], slope)


def test_a_chain_is_a_rule_inside_a_chain():
    inside = Chain([ClipNorm(1.0)], Chain([WeightDecay(0.1)], Momentum()))
    parameters, gradients = {"w": torch.randn(3)}, {"w": 5 * torch.randn(3)}
    flat = Chain([ClipNorm(1.0), WeightDecay(0.1)], Momentum())
    found = inside.update(parameters, gradients, inside.init(parameters), {"w": 0.1}, 0)
    expected = flat.update(parameters, gradients, flat.init(parameters), {"w": 0.1}, 0)
    assert torch.equal(found[0]["w"], expected[0]["w"])


def test_what_is_no_chain_is_refused():
    with pytest.raises(TypeError, match="not a GradientTransform: pass the update rule as rule"):
        Chain([SGD()], Adam())
    with pytest.raises(TypeError, match="must be an UpdateRule, such as SGD"):
        Chain([ClipNorm(1.0)], WeightDecay(0.1))
    with pytest.raises(ValueError, match="max_norm=0.0 must be a positive number"):
        ClipNorm(0.0)
    with pytest.raises(ValueError, match="decay=-0.1 must be 0 or a positive number"):
        WeightDecay(-0.1)
