"""COMLN against gradient descent in small steps, and against differences of its own loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import ANIL, COMLN, Episode, collate_episodes
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("float64")


def network(bias=True):
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4, bias=bias))


def task(real=False, support=6):
    def targets(n):
        return torch.randn(n, 4) if real else torch.arange(n) % 4

    return Episode(torch.randn(support, 3), targets(support), torch.randn(5, 3), targets(5))


def own_gradient(learner, batch):
    learner.zero_grad()
    loss = learner.training_step(collate_episodes(batch), 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in learner.named_parameters()}


def small_steps(learner, batch, steps):
    """The loss, and its gradient, of gradient descent of the last layer in small steps, extrapolated to none."""

    def of(steps):
        p = {name: own.detach().clone().requires_grad_() for name, own in learner.named_parameters()}
        model = {name.removeprefix("model."): own for name, own in p.items() if name.startswith("model.")}
        head = [name for name in model if name.startswith("2.")]
        losses = []
        for one in batch:
            values = dict(model)
            for _ in range(steps):
                loss = learner.loss_fn(functional_call(learner.model, values, (one.support_x,)), one.support_y)
                slopes = torch.autograd.grad(loss, [values[name] for name in head], create_graph=True)
                rate = p["log_horizon"].exp() / steps
                values |= {name: values[name] - rate * slope for name, slope in zip(head, slopes, strict=True)}
            losses.append(learner.loss_fn(functional_call(learner.model, values, (one.query_x,)), one.query_y))
        loss = sum(losses) / len(losses)
        return [loss.detach(), *torch.autograd.grad(loss, list(p.values()))]

    coarse, fine = of(steps), of(2 * steps)
    loss, *slopes = [2 * f - c for c, f in zip(coarse, fine, strict=True)]
    return loss, dict(zip([name for name, _ in learner.named_parameters()], slopes, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss()])
def test_it_is_the_limit_of_small_steps(loss_fn, bias):
    learner = COMLN(network(bias), loss_fn, horizon=2.0)
    batch = [task(isinstance(loss_fn, nn.MSELoss))]
    loss, found = own_gradient(learner, batch)
    expected_loss, expected = small_steps(learner, batch, 80)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=1e-4)
    assert_same(found, expected, 1e-3)
    assert all(slope.any() for slope in found.values())


@pytest.mark.parametrize("derivatives", ["forward", "reverse"])
def test_the_meta_gradient_is_that_of_finite_differences(derivatives):
    learner = COMLN(network(), horizon=3.0, solver_steps=6, derivatives=derivatives, compile=False)
    batch = [task(), task()]
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


def test_forward_and_reverse_give_the_same_captured_or_not():
    learners = [COMLN(network(), horizon=3.0, solver_steps=2, derivatives=d) for d in ("forward", "reverse")]
    learners.append(COMLN(network(), horizon=3.0, solver_steps=2, compile=False))
    for other in learners[1:]:
        other.load_state_dict(learners[0].state_dict())
    for _ in range(12):
        batch = [task(), task()]
        found = [own_gradient(learner, batch) for learner in learners]
        for _, slopes in found[:2]:
            assert_same(slopes, found[2][1])


def test_ignored_labels_do_not_count():
    learner = COMLN(network(), horizon=3.0, compile=False)
    one = task(support=8)
    some = torch.tensor([True, True, False, True, True, True, False, True])
    ignored = one._replace(support_y=torch.where(some, one.support_y, -100))
    without = one._replace(support_x=one.support_x[some], support_y=one.support_y[some])
    loss, found = own_gradient(learner, [ignored])
    expected_loss, expected = own_gradient(learner, [without])
    torch.testing.assert_close(loss, expected_loss)
    assert_same(found, expected)


def test_the_last_layer_alone_adapts_and_long_times_fit_the_support_set():
    model = network()
    learner = COMLN(model, horizon=3_000.0, solver_steps=1_000).eval()
    one = task(support=4)
    adapted = learner.adapt(one.support_x, one.support_y)
    assert set(adapted.state) == {"2.weight", "2.bias"}
    assert (adapted(one.support_x).argmax(1) == one.support_y).all()
    plain = network()
    plain.load_state_dict(adapted.state_dict())
    torch.testing.assert_close(plain(one.query_x).detach(), adapted(one.query_x))
    few = ANIL(copy.deepcopy(model), inner_lr=0.01, inner_steps=300).adapt(one.support_x, one.support_y)
    short = COMLN(model, horizon=3.0).adapt(one.support_x, one.support_y)
    torch.testing.assert_close(short(one.query_x), few(one.query_x), rtol=2e-2, atol=5e-3)


def test_the_solvers_step_tells_when_it_is_too_long():
    """Above 2.785 the Runge–Kutta method is unstable. With one feature the bound is the curvature itself."""
    x, y = torch.randn(6, 1), torch.randn(6, 1)
    curvature = 2 * float(x.square().mean())
    for step, stable in ((2.5, True), (4.0, False)):
        learner = COMLN(nn.Linear(1, 1, bias=False), nn.MSELoss(), horizon=step * 40 / curvature, solver_steps=40)
        assert bool(learner.adapt(x, y).state["weight"].abs().max() < 1e3) == stable
        report = learner.map_tasks(
            lambda meta, one, own=learner: own.task_loss(meta, one)[1], collate_episodes([_of(x, y)])
        )
        assert float(report.diagnostics["solver_step"]) == pytest.approx(step)


def _of(x, y):
    return Episode(x, y, x, y)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x):
        return 2 * self.head(self.body(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.second.weight

    def forward(self, x):
        return self.head(self.second(self.first(x)))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network, {"horizon": 0.0}, "horizon=0.0"),
        (network, {"solver_steps": 0}, "solver_steps=0"),
        (network, {"derivatives": "both"}, "derivatives='both' is not one of"),
        (network, {"loss_fn": nn.L1Loss()}, r"loss_fn=L1Loss\(\): COMLN follows the gradient of"),
        (network, {"loss_fn": nn.CrossEntropyLoss(weight=torch.ones(4))}, "without weights"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), {}, "model ends in LayerNorm, and COMLN adapts"),
        (Tied, {}, "model.head shares its parameters"),
        (lambda: nn.Sequential(nn.Linear(3, 4).requires_grad_(False)), {}, "model.0 is frozen"),
    ],
)
def test_what_cannot_be_done_is_an_error(model, options, message):
    with pytest.raises(ValueError, match=message):
        COMLN(model(), **options)


def test_a_model_that_goes_on_after_its_last_layer_is_an_error():
    learner = COMLN(Scaled())
    for _ in range(2):
        with pytest.raises(ValueError, match="does not return the output of model.head .* unchanged"):
            learner.training_step(collate_episodes([task()]), 0)


def test_a_model_with_dropout_is_taken():
    learner = COMLN(nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 4))).train()
    assert learner.training_step(collate_episodes([task()]), 0).detach().isfinite()


def test_half_precision_weights_flow_in_single_precision():
    """Many small steps in half precision would round away; the solution is rounded once."""
    half = COMLN(network().bfloat16(), horizon=100.0, solver_steps=128).eval()
    whole = COMLN(copy.deepcopy(half.model).float(), horizon=100.0, solver_steps=128).eval()
    x, y = torch.randn(6, 3).bfloat16(), torch.arange(6) % 3
    found = half.adapt(x, y).state_dict()
    for name, value in whole.adapt(x.float(), y).state_dict().items():
        error = (found[name].float() - value).norm() / value.norm().clamp(min=1e-3)
        assert error < 0.02, name
