"""Gradient flow of a linear layer, in as many numbers as examples have outputs.

Deleu et al., "Continuous-Time Meta-Learning with Forward Mode Differentiation", ICLR 2022, arXiv 2203.01443.

A layer W of features F, ``[examples, features]``, follows ``dW/dt = −∇L(F Wᵀ) = −G(Z)ᵀ F`` with outputs ``Z = F Wᵀ``
and ``G = ∂L/∂Z``. So it stays in the span of the features: ``W(t) = W(0) − s(t)ᵀ F``, where

    ds/dt = G(Z(t)),        Z(t) = Z(0) − K s(t),        s(0) = 0,        K = F Fᵀ

The derivatives of s by Z(0), K and the time follow equations of the same kind, solved beside it (forward mode): no
step has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class CrossEntropy(NamedTuple):
    """The mean cross-entropy of class scores as a function of them.

    Attributes:
        targets: Class probabilities, ``[examples, classes]``.
        weights: What each example counts in the mean, ``[examples]``; 0 for padding.
    """

    targets: Tensor
    weights: Tensor

    def derivatives(self, outputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return ``∂L/∂Z``, ``[examples, classes]``, and the product of the second derivatives with directions.

        The product is of directions ``[examples, classes, directions]``.
        """
        p = outputs.softmax(1)
        weighted = (self.weights[:, None] * p)[..., None]

        def curved(directions: Tensor) -> Tensor:
            mean = p[:, None, :] @ directions  # [examples, 1, directions]
            return weighted * (directions - mean)

        return self.weights[:, None] * (p - self.targets), curved

    def largest_curvature(self) -> float:
        """Return a bound on the eigenvalues of each example's second derivatives, for a weight of 1."""
        return 0.5


class SquaredError(NamedTuple):
    """The mean squared error of outputs as a function of them.

    Attributes:
        targets: ``[examples, outputs]``.
        weights: What each example counts in the mean, ``[examples]``; 0 for padding.
    """

    targets: Tensor
    weights: Tensor

    def derivatives(self, outputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return ``∂L/∂Z``, ``[examples, outputs]``, and the product of the second derivatives with directions."""
        factor = 2 / outputs.shape[1] * self.weights[:, None]
        return factor * (outputs - self.targets), lambda directions: factor[..., None] * directions

    def largest_curvature(self) -> float:
        """Return the eigenvalue of each example's second derivatives, for a weight of 1."""
        return 2 / self.targets.shape[1]


def gradient_flow(
    loss: CrossEntropy | SquaredError, start: Tensor, gram: Tensor, time: Tensor, steps: int, forward: bool = True
) -> Tensor:
    """Return s(T), by Runge–Kutta steps of fourth order.

    The result can be differentiated once by ``start``, ``gram`` and ``time``; the derivative is that of the Runge–Kutta
    solution, exactly.

    Args:
        loss: L.
        start: Z(0), ``[examples, outputs]``.
        gram: K, ``[examples, examples]``.
        time: T, a positive scalar.
        steps: Runge–Kutta steps; ``T / steps`` times the largest eigenvalue of L's second derivatives must be below
            2.78.
        forward: Whether derivatives are computed beside the solution, in memory that does not grow with ``steps``:
            ``examples² · outputs · (examples + outputs)`` numbers. Otherwise the steps are kept and differentiated:
            about ``40 · steps · examples · outputs`` numbers, and any derivative.

    Returns:
        s(T), ``[examples, outputs]``.
    """
    if not forward:
        return _solution(loss, start, gram, time, steps)
    value, by_time, by_start, by_gram = _with_derivatives(loss, start.detach(), gram.detach(), time.detach(), steps)
    # The differences are 0: these terms add nothing but the derivatives.
    moved = by_start @ (start - start.detach()).flatten() + by_gram @ (gram - gram.detach()).flatten()
    return value + moved + by_time * (time - time.detach())


def _solution(loss: CrossEntropy | SquaredError, start: Tensor, gram: Tensor, time: Tensor, steps: int) -> Tensor:
    def slope(s: Tensor) -> Tensor:
        return time * loss.derivatives(start - gram @ s)[0]

    return _runge_kutta(slope, torch.zeros_like(start), steps)


def _with_derivatives(
    loss: CrossEntropy | SquaredError, start: Tensor, gram: Tensor, time: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s and its derivatives by time, start and gram, each ``[examples, outputs, ...]`` by all entries.

    They are solved for together, as one tensor ``[examples, outputs, 1 + 1 + examples · outputs + examples²]``.
    """
    examples, outputs = start.shape
    sizes = (1, 1, examples * outputs, examples * examples)
    identity = torch.eye(examples, dtype=start.dtype, device=start.device)
    of_start = torch.eye(sizes[2], dtype=start.dtype, device=start.device).reshape(examples, outputs, sizes[2])
    of_others = start.new_zeros(examples, outputs, 2)
    of_gram = -identity[:, None, :, None]

    def slope(flow: Tensor) -> Tensor:
        moved = (gram @ flow.flatten(1)).reshape(flow.shape)
        gradient, curved = loss.derivatives(start - moved[..., 0])
        # A change of K's entry (i, j) changes row i of Z by −s_j.
        changes = torch.cat([of_others, of_start, (of_gram * flow[..., 0].mT[None, :, None, :]).flatten(2)], dim=2)
        slopes = time * curved(changes - moved)
        first = torch.stack([time * gradient, gradient + slopes[..., 1]], dim=2)
        return torch.cat([first, slopes[..., 2:]], dim=2)

    flow = _runge_kutta(slope, start.new_zeros(examples, outputs, sum(sizes)), steps)
    value, by_time, by_start, by_gram = flow.split(sizes, dim=2)
    return value[..., 0], by_time[..., 0], by_start, by_gram


def _runge_kutta(slope: Callable[[Tensor], Tensor], point: Tensor, steps: int) -> Tensor:
    """Solve ``dx/dτ = slope(x)`` for τ from 0 to 1."""
    h = 1 / steps
    for _ in range(steps):
        first = slope(point)
        second = slope(torch.add(point, first, alpha=h / 2))
        third = slope(torch.add(point, second, alpha=h / 2))
        fourth = slope(torch.add(point, third, alpha=h))
        point = torch.add(point, first + fourth + 2 * (second + third), alpha=h / 6)
    return point
