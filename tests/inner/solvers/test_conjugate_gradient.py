"""Conjugate gradients against dense linear algebra."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import vmap

from lightning_meta import ImplicitMAML
from lightning_meta.inner.solvers.conjugate_gradient import conjugate_gradient

pytestmark = pytest.mark.usefixtures("float64")


def test_conjugate_gradients_solve_and_tell_their_residual():
    root = torch.randn(4, 6, 6)
    matrices = root @ root.mT + 0.1 * torch.eye(6)
    b = torch.randn(4, 6)

    def solve(steps):
        def one(matrix, b):
            return conjugate_gradient(lambda v: {"v": matrix @ v["v"]}, {"v": b}, steps, fallback={"v": b})

        return vmap(one)(matrices, b)

    exact = torch.linalg.solve(matrices, b)
    torch.testing.assert_close(solve(6).x["v"], exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solve(50).x["v"], exact, rtol=1e-6, atol=1e-6)  # and stay there
    early = solve(3)
    residual = (b - (matrices @ early.x["v"][..., None])[..., 0]).norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(early.relative_residual, residual, rtol=1e-6, atol=1e-9)
    assert not early.negative_curvature.any()


def test_conjugate_gradients_are_exact_to_rounding():
    root = torch.randn(6, 6)
    matrix, b = torch.eye(6) + 0.01 * root @ root.T, torch.randn(6)
    found = conjugate_gradient(lambda v: {"v": matrix @ v["v"]}, {"v": b}, 12, fallback={"v": b})
    torch.testing.assert_close(found.x["v"], torch.linalg.solve(matrix, b), rtol=1e-12, atol=1e-12)
    nothing = conjugate_gradient(lambda v: {"v": matrix @ v["v"]}, {"v": 0 * b}, 12, fallback={"v": b})
    assert not nothing.x["v"].any()
    assert not nothing.negative_curvature
    assert float(nothing.relative_residual) == 0


def test_negative_curvature_ends_the_iteration_and_is_told():
    diagonals = torch.tensor([[3.0, 2.0, 1.0], [3.0, -1.0, 0.5], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    b = torch.tensor([1.0, 1.0, 1.0])

    def one(diagonal, b):
        return conjugate_gradient(lambda v: {"v": diagonal * v["v"]}, {"v": b}, 3, fallback={"v": 7 * b})

    found = vmap(one, in_dims=(0, None))(diagonals, b)
    assert found.negative_curvature.tolist() == [False, True, True, True]
    torch.testing.assert_close(found.x["v"][0], b / diagonals[0])
    step = 3 / diagonals[1].sum()  # the first direction, b, still curves upward; the second does not
    torch.testing.assert_close(found.x["v"][1], step * b)
    torch.testing.assert_close(found.x["v"][2:], (7 * b).expand(2, 3))


def test_a_direction_that_is_not_finite_is_told():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.phi.norm().expand(len(x), 1)

    learner = ImplicitMAML(Root(), nn.MSELoss(), inner_solver="hessian_free", inner_steps=3)
    with pytest.raises(FloatingPointError, match="task 0"):
        learner.adapt(torch.ones(4, 1), torch.ones(4, 1))
