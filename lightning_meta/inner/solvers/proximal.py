"""Solvers of implicit MAML's inner problem: minimize ``L_S(φ) + ½ (φ − θ)ᵀ Λ (φ − θ)``.

Λ is diagonal with one value λ a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp

from lightning_meta.inner.solvers.conjugate_gradient import conjugate_gradient
from lightning_meta.inner.vectors import Vector, add, dot, elementwise, times, where

# Backtracking tries the Newton step times 1, 1/2, ..., 2⁻⁸.
_HALVINGS = 8
_SUFFICIENT_DECREASE = 1e-4  # Armijo's constant (Nocedal and Wright, section 3.1)


class ProximalProblem(NamedTuple):
    """One task's inner problem.

    Attributes:
        loss: The support loss as a function of the adapted parameters.
        anchor: θ, by name.
        strength: λ of each tensor, scalars by name.
    """

    loss: Callable[[Vector], Tensor]
    anchor: Vector
    strength: dict[str, Tensor]

    def pull(self, point: Vector) -> Vector:
        """Return ``Λ (φ − θ)``, the gradient of the proximal term."""
        return elementwise(add(point, self.anchor, -1.0), self.strength)

    def objective(self, point: Vector) -> Tensor:
        """Return the regularized support loss at a point."""
        return self.loss(point) + 0.5 * dot(self.pull(point), add(point, self.anchor, -1.0))

    def gradient(self, point: Vector) -> tuple[Vector, Tensor]:
        """Return ``∇L_S(φ) + Λ (φ − θ)`` and the support loss."""
        gradient, loss = grad_and_value(self.loss)(point)
        return add(gradient, self.pull(point)), loss

    def curvature(self, point: Vector, damping: float = 0.0) -> tuple[Vector, Tensor, Callable[[Vector], Vector]]:
        """Return `gradient`'s values and the product with ``H_S(φ) + Λ + damping · I``, whose graph is built once."""
        gradient, pull_back, loss = vjp(grad_and_value(self.loss), point, has_aux=True)  # type: ignore[misc]

        def apply(vector: Vector) -> Vector:
            (product,) = pull_back(vector)
            return {name: product[name] + (self.strength[name] + damping) * v for name, v in vector.items()}

        return add(gradient, self.pull(point)), loss, apply


def newton_step(problem: ProximalProblem, point: Vector, cg_steps: int) -> tuple[Vector, Tensor]:
    """One Hessian-free Newton step; returns the new point and the old support loss.

    The direction comes from conjugate gradients, the length from backtracking until Armijo's condition holds (Nocedal
    and Wright, algorithms 7.1 and 3.1). All lengths are computed for all tasks, for vectorization. If none satisfies
    the condition, the point does not change.
    """
    gradient, loss, apply = problem.curvature(point)
    downhill = times(gradient, -1.0)
    direction = conjugate_gradient(apply, downhill, cg_steps, fallback=downhill).x
    before = loss + 0.5 * dot(problem.pull(point), add(point, problem.anchor, -1.0))
    slope = dot(gradient, direction)
    chosen, found = point, torch.zeros_like(before, dtype=torch.bool)
    for halvings in range(_HALVINGS + 1):
        length = 0.5**halvings
        candidate = add(point, direction, length)
        enough = problem.objective(candidate) <= before + _SUFFICIENT_DECREASE * length * slope
        chosen = where(enough & ~found, candidate, chosen)
        found = found | enough
    # A direction that is not finite satisfies the condition at no length: report NaN in place of an unchanged point.
    return chosen, torch.where(slope.isfinite(), loss, torch.nan)
