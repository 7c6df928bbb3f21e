"""The conjugate gradient method (Hestenes and Stiefel, 1952), written to be vectorized over tasks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.inner.vectors import Vector, add, dot


class Solution(NamedTuple):
    """An approximate solution of ``A x = b``.

    Attributes:
        x: The last iterate.
        relative_residual: ``‖b − A x‖ / ‖b‖`` by the recurrence; 1 for the fallback.
        negative_curvature: Whether a search direction with ``pᵀAp ≤ 0`` ended the iteration.
    """

    x: Vector
    relative_residual: Tensor
    negative_curvature: Tensor


class Iterate(NamedTuple):
    """The state of the method after a step.

    Attributes:
        x: The iterate.
        squared: ``‖b − A x‖²`` by the recurrence.
        negative_curvature: Whether a search direction so far had ``pᵀAp ≤ 0``.
    """

    x: Vector
    squared: Tensor
    negative_curvature: Tensor


def conjugate_gradient(
    apply: Callable[[Vector], Vector], b: Vector, steps: int, fallback: Vector, start: Vector | None = None
) -> Solution:
    """Solve ``A x = b`` for a symmetric ``A`` by ``steps`` products with it.

    If ``A`` is not positive definite, the iteration ends at the first direction of negative curvature. All steps are
    computed for all tasks; a task that is done keeps its iterate.

    Args:
        apply: The product with ``A``.
        b: The right-hand side.
        steps: The number of steps, one product each; an exact solution needs one for each distinct eigenvalue.
        fallback: The result if the first direction has negative curvature and there is no ``start``.
        start: The first iterate, for one more product; None: zero.
    """
    for iterate in conjugate_gradient_iterates(apply, b, steps, fallback, start):  # noqa: B007 (the last one)
        pass
    size = dot(b, b)
    relative = torch.where(size > 0, (iterate.squared / torch.where(size > 0, size, 1)).sqrt(), 0)
    return Solution(iterate.x, relative, iterate.negative_curvature)


def conjugate_gradient_iterates(
    apply: Callable[[Vector], Vector], b: Vector, steps: int, fallback: Vector, start: Vector | None = None
) -> Iterator[Iterate]:
    """Yield the state after 1, 2, ..., ``steps`` steps; arguments as in `conjugate_gradient`."""
    size = dot(b, b)
    # Below this the recurrence consists of rounding errors.
    negligible = size * torch.finfo(size.dtype).eps ** 2
    x = {name: torch.zeros_like(value) for name, value in b.items()} if start is None else start
    residual = b if start is None else add(b, apply(start), -1.0)
    direction = residual
    squared = dot(residual, residual)
    going = squared > negligible
    negative = torch.zeros_like(going)
    for step in range(steps):
        product = apply(direction)
        curvature = dot(direction, product)
        negative = negative | (going & (curvature <= 0))
        going = going & (curvature > 0) & (squared > negligible)
        length = torch.where(going, squared / torch.where(going, curvature, 1), 0)
        x = add(x, direction, length)
        if step == 0 and start is None:
            x = {name: torch.where(negative, fallback[name], value) for name, value in x.items()}
        residual = add(residual, product, -length)
        before, squared = squared, dot(residual, residual)
        yield Iterate(x, squared, negative)
        direction = add(residual, direction, torch.where(going, squared / torch.where(going, before, 1), 0))
