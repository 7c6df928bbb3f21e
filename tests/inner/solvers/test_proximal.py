"""Newton steps on the proximal problem."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from lightning_meta import ImplicitMAML

pytestmark = pytest.mark.usefixtures("float64")


def test_newton_steps_decrease_the_objective_where_it_is_not_convex():
    """Start where the support loss of a network has negative curvature that the pull does not outweigh."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    for p in model.parameters():
        nn.init.normal_(p, std=1.5)
    x, y = torch.randn(8, 2), 3 * torch.randn(8, 1)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def objective(p):
        anchored = sum((p[n] - parameters[n]).square().sum() for n in p)
        return nn.MSELoss()(functional_call(model, p, (x,)), y) + 0.005 * anchored

    blocks = jacrev(jacrev(objective))(parameters)
    dense = torch.cat(
        [torch.cat([blocks[a][b].reshape(p.numel(), -1) for b in parameters], 1) for a, p in parameters.items()]
    )
    assert torch.linalg.eigvalsh(dense)[0] < -0.1
    learner = ImplicitMAML(model, nn.MSELoss(), prox_lambda=0.01, inner_solver="hessian_free", cg_steps=20)
    values = [float(objective(learner.adapt(x, y, steps=steps).state)) for steps in (1, 2, 4, 8, 16, 32)]
    assert values[0] < float(objective(parameters))
    assert values == sorted(values, reverse=True)
    found = learner.adapt(x, y, steps=60).state
    slope = torch.func.grad(objective)(found)
    assert max(float(g.abs().max()) for g in slope.values()) < 1e-3


@pytest.mark.parametrize(("lam", "steps"), [(1e-9, 1), (0.2, 4)])
@pytest.mark.parametrize("start", [0.5, 0.9, 0.9998, 0.99993, 1.5, 1.73182, 2.5, 20.0, 40.0])
def test_newton_steps_are_the_longest_with_sufficient_decrease(start, lam, steps):
    """On √(1 + φ²) Newton's step goes from φ to −φ³.

    From 0.9 the decrease is a tenth of what the slope foretells, from 0.99993 only 0.00007 of it. From
    1.73182, just under √3, half the step decreases by 0.0002 of what its slope foretells. From 20 the eighth half
    does, from 40 none.
    """

    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi = nn.Parameter(torch.tensor(start))

        def forward(self, x):
            return self.phi.expand(len(x), 1)

    def objective(phi):
        return (1 + phi**2) ** 0.5 + lam / 2 * (phi - start) ** 2

    phi = start
    for _ in range(steps):
        slope, curvature = phi * (1 + phi**2) ** -0.5 + lam * (phi - start), (1 + phi**2) ** -1.5 + lam
        for length in (0.5**halvings for halvings in range(9)):
            end = phi - length * slope / curvature
            if objective(end) <= objective(phi) - 1e-4 * length * slope**2 / curvature:
                phi = end
                break
    learner = ImplicitMAML(
        Itself(),
        lambda output, target: (1 + output.square()).sqrt().mean(),
        prox_lambda=lam,
        inner_solver="hessian_free",
        inner_steps=steps,
    )
    found = float(learner.adapt(torch.ones(3, 1), torch.zeros(3, 1)).state["phi"])
    assert found == pytest.approx(phi, rel=1e-6)
