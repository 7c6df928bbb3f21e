"""Stein variational gradient descent (Liu and Wang, NeurIPS 2016, arXiv 1608.04471), and its derivative.

Particles are dictionaries of tensors ``[particles, ...]``. Time and memory grow linearly with their number, except for
the kernel matrix ``[particles, particles]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp
from torch.utils._pytree import tree_map

from lightning_meta.inner.particles import for_each
from lightning_meta.inner.update_rules.rule import UpdateRule
from lightning_meta.inner.vectors import Vector, add, times

# (a particle, parameters that all particles share) to a scalar
LogDensity = Callable[[Vector, Mapping[str, Tensor]], Tensor]


def stein_direction(particles: Vector, slopes: Vector, bandwidth: float | None = None) -> Vector:
    """Return each particle's direction of steepest descent of the divergence from the target (Liu and Wang, eq. 8).

    ``(1/M) Σ_j [k(x_j, x_i) ∇log p(x_j) + ∇_{x_j} k(x_j, x_i)]`` with ``k = exp(−‖x − x'‖² / h)``, and ``h`` the
    median of the squared distances between particles over ``log M``, a constant for derivatives. For one particle it is
    the gradient of the log-density.

    Args:
        particles: ``[particles, ...]``.
        slopes: ``∇log p`` at each, same shapes.
        bandwidth: A fixed ``h``; None: the median's.
    """
    # Subtract the mean first, because differences are small beside the particles.
    count = next(iter(particles.values())).shape[0]
    flat = {name: (value - value.mean(0)).reshape(count, -1) for name, value in particles.items()}
    if count == 1:
        return slopes
    squared = _squared_distances(flat)
    h = _bandwidth(squared, count) if bandwidth is None else bandwidth
    kernel = (-squared / h).exp()
    weights = kernel.sum(1, keepdim=True)
    direction = {}
    for name, own in flat.items():
        repulsion = 2 / h * (weights * own - kernel @ own)
        direction[name] = ((kernel @ slopes[name].reshape(count, -1) + repulsion) / count).view_as(particles[name])
    return direction


class SteinStep(NamedTuple):
    """One step.

    Attributes:
        start: The particles before it.
        slopes: The log-density's gradients there.
        before: The update rule's state before it.
        end: The particles after it.
        after: The update rule's state after it.
        log_densities: Before the step, ``[particles]``.
    """

    start: Vector
    slopes: Vector
    before: Any
    end: Vector
    after: Any
    log_densities: Tensor


def svgd_step(
    log_density: LogDensity,
    particles: Vector,
    shared: Mapping[str, Tensor],
    rate: Tensor | float,
    vectorize: bool,
    rule: UpdateRule,
    state: Any,
    step: int,
) -> SteinStep:
    """Take one step.

    Args:
        log_density: The target, up to a constant.
        particles: ``[particles, ...]``.
        shared: The other parameters of the density.
        rate: The step's rate.
        vectorize: Whether to vectorize over particles.
        rule: Takes the step along the direction, for all particles together.
        state: The rule's state.
        step: The number of steps taken before this one.
    """
    slopes, logs = for_each(lambda particle: grad_and_value(log_density)(particle, shared), vectorize, particles)
    end, after = _moved(rule, particles, stein_direction(particles, slopes), state, rate, step)
    return SteinStep(particles, slopes, state, end, after, logs)


def pull_back_svgd(
    log_density: LogDensity,
    taken: list[SteinStep],
    shared: Mapping[str, Tensor],
    rate: Tensor,
    adjoint: Vector,
    vectorize: bool,
    rule: UpdateRule,
) -> tuple[Vector, Vector, Tensor]:
    """Return gradients at the start of some steps from the gradient at their end: reverse mode, written out.

    It is written out because derivatives of a vectorized function are wrong for some layers. Here second derivatives
    are those of one particle at a time, inside of vectorization.

    Args:
        log_density: As in `svgd_step`.
        taken: The steps.
        shared: The other parameters of the density.
        rate: The steps' rate.
        adjoint: The gradient with respect to the particles after the last step.
        vectorize: Whether to vectorize over particles.
        rule: The steps' update rule.

    Returns:
        The gradients with respect to the first particles, to ``shared``, and to ``rate``.
    """
    rate_adjoint = torch.zeros_like(taken[0].log_densities[0])
    shared_adjoint = {name: torch.zeros_like(value) for name, value in shared.items()}
    state_adjoint = tree_map(torch.zeros_like, taken[-1].after)
    for step, (particles, slopes, state, *_) in reversed(list(enumerate(taken))):

        def moved(values: tuple[Vector, Vector, Any, Tensor], step: int = step) -> tuple[Vector, Any]:
            return _moved(rule, *values, step)

        direction = stein_direction(particles, slopes)
        pull_back = vjp(moved, (particles, direction, state, rate))[1]
        ((adjoint, direction_adjoint, state_adjoint, by_rate),) = pull_back((adjoint, state_adjoint))
        rate_adjoint = rate_adjoint + by_rate
        direct, slope_adjoint = vjp(stein_direction, particles, slopes)[1](direction_adjoint)

        def curved(particle: Vector, cotangent: Vector) -> tuple[Vector, Vector]:
            def slope(particle: Vector, shared: Mapping[str, Tensor]) -> Vector:
                return grad_and_value(log_density)(particle, shared)[0]

            pulled: tuple[Vector, Vector] = vjp(slope, particle, dict(shared))[1](cotangent)
            return pulled

        through_slopes, by_particle = for_each(curved, vectorize, particles, slope_adjoint)
        adjoint = add(add(adjoint, direct), through_slopes)
        shared_adjoint = {name: value + by_particle[name].sum(0) for name, value in shared_adjoint.items()}
    return adjoint, shared_adjoint, rate_adjoint


def _moved(
    rule: UpdateRule, particles: Vector, direction: Vector, state: Any, rate: Tensor | float, step: int
) -> tuple[Vector, Any]:
    """Particles and the rule's state after a step uphill."""
    return rule.update(particles, times(direction, -1.0), state, dict.fromkeys(particles, rate), step)


def _squared_distances(flat: Vector) -> Tensor:
    total = torch.zeros((), dtype=next(iter(flat.values())).dtype, device=next(iter(flat.values())).device)
    for value in flat.values():
        gram = value @ value.mT
        norms = gram.diagonal()
        total = total + norms[:, None] + norms[None] - 2 * gram
    return total.clamp(min=0)


def _bandwidth(squared: Tensor, count: int) -> Tensor:
    rows, columns = torch.triu_indices(count, count, offset=1, device=squared.device)
    ordered = squared.detach()[rows, columns].sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return median.clamp(min=torch.finfo(squared.dtype).tiny ** 0.5) / math.log(count)
