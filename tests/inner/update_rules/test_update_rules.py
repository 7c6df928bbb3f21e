from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, Episode
from lightning_meta.inner import SGD, Adam, Momentum, update_rule

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (SGD(), lambda p: torch.optim.SGD(p, lr=0.1)),
        (Momentum(0.8), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
        (Adam(0.9, 0.99), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.99))),
        (Adam(0.0, 0.999), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.999))),
    ],
)
def test_rules_take_the_steps_of_torch_optim(rule, optimizer):
    reference = torch.randn(4).requires_grad_()
    target = torch.randn(4)
    ours = {"w": reference.detach().clone()}
    optimizer, state = optimizer([reference]), rule.init(ours)
    for step in range(6):
        optimizer.zero_grad()
        ((reference - target) ** 4).sum().backward()
        ours, state = rule.update(ours, {"w": 4 * (ours["w"] - target) ** 3}, state, {"w": 0.1}, step)
        optimizer.step()
        torch.testing.assert_close(ours["w"], reference.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_adams_guard_is_inside_the_root(eps):
    """After one step both moments are unbiased: φ − α g / √(g² + ε²)."""
    rule, p, g = Adam(eps=eps), torch.randn(4), torch.tensor([0.0, 1e-3, -0.4, 2.0])
    found, _ = rule.update({"w": p}, {"w": g}, rule.init({"w": p}), {"w": 0.1}, 0)
    torch.testing.assert_close(found["w"], p - 0.1 * g / (g**2 + eps**2).sqrt())


@pytest.mark.parametrize("inner_optimizer", ["momentum", "adam"])
def test_stateful_rules_have_the_meta_gradient_of_finite_differences(inner_optimizer):
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    batch = Episode(torch.randn(3, 6, 2), torch.randn(3, 6, 1), torch.randn(3, 6, 2), torch.randn(3, 6, 1))
    learner = MAML(model, nn.MSELoss(), inner_lr=0.05, inner_steps=3, inner_optimizer=inner_optimizer)
    learner.training_step(batch, 0).backward()
    direction = [torch.randn_like(p) for p in model.parameters()]
    analytic = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction, strict=True))

    def loss_at(epsilon):
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction, strict=True):
                p.add_(epsilon * d)
        loss = learner.training_step(batch, 0).detach()
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction, strict=True):
                p.sub_(epsilon * d)
        return loss

    torch.testing.assert_close(analytic, (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5, rtol=1e-5, atol=1e-8)


def test_adam_is_differentiable_where_a_unit_is_dead():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].bias[0] = -100.0  # this unit never fires: its gradient is exactly zero
    batch = Episode(torch.randn(2, 6, 2), torch.randn(2, 6, 1), torch.randn(2, 6, 2), torch.randn(2, 6, 1))
    MAML(model, nn.MSELoss(), inner_lr=0.01, inner_steps=2, inner_optimizer="adam").training_step(batch, 0).backward()
    for name, p in model.named_parameters():
        assert torch.isfinite(p.grad).all(), name


def test_unknown_rule_and_bad_settings_are_refused():
    with pytest.raises(ValueError, match="inner_optimizer='lion' is not one of"):
        update_rule("lion")
    with pytest.raises(ValueError, match=r"beta=1.0 must lie in \[0, 1\)"):
        Momentum(1.0)
    for wrong in ({"beta1": 1.0}, {"beta2": -0.1}):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            Adam(**wrong)
    with pytest.raises(ValueError, match="eps=0 must be positive"):
        Adam(eps=0)
