"""Gradient flow of a linear layer, in as many numbers as examples have outputs.

Deleu et al., "Continuous-Time Meta-Learning with Forward Mode Differentiation", ICLR 2022, arXiv 2203.01443, section 4.

A layer W of features F, ``[examples, features]``, follows ``dW/dt = −∇L(F Wᵀ) = −G(Z)ᵀ F`` with outputs ``Z = F Wᵀ``
and ``G = ∂L/∂Z``. So it stays in the span of the features: ``W(t) = W(0) − s(t)ᵀ F``, where

    ds/dt = G(Z(t)),        Z(t) = Z(0) − K s(t),        s(0) = 0,        K = F Fᵀ

The derivatives of s by Z(0), K and the time follow equations of the same kind, solved beside it (forward mode; section
4.2): no step has to be kept.
"""

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

    def gradient(self, outputs: Tensor) -> Tensor:
        """Return ``∂L/∂Z``, ``[examples, classes]``."""
        return self.weights[:, None] * (outputs.softmax(1) - self.targets)

    def curvature(self, outputs: Tensor) -> Tensor:
        """Return each example's second derivatives, ``[examples, classes, classes]``."""
        p = outputs.softmax(1)
        return self.weights[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])

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

    def gradient(self, outputs: Tensor) -> Tensor:
        """Return ``∂L/∂Z``, ``[examples, outputs]``."""
        return self.weights[:, None] * (2 / outputs.shape[1]) * (outputs - self.targets)

    def curvature(self, outputs: Tensor) -> Tensor:
        """Return each example's second derivatives, ``[examples, outputs, outputs]``."""
        size = outputs.shape[1]
        identity = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
        return self.weights[:, None, None] * (2 / size) * identity

    def largest_curvature(self) -> float:
        """Return a bound on the eigenvalues of each example's second derivatives, for a weight of 1."""
        return 2 / self.targets.shape[1]


class _Flow(NamedTuple):
    """s and its derivatives at one time.

    Attributes:
        value: s, ``[examples, outputs]``.
        by_start: Its derivative by Z(0), ``[examples, outputs, examples · outputs]``.
        by_gram: By K, ``[examples, outputs, examples · examples]``.
        by_time: By the time T, ``[examples, outputs]``.
    """

    value: Tensor
    by_start: Tensor
    by_gram: Tensor
    by_time: Tensor

    def plus(self, slope: "_Flow", factor: float) -> "_Flow":
        return _Flow(*(own + factor * change for own, change in zip(self, slope, strict=True)))


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
    flow = _with_derivatives(loss, start.detach(), gram.detach(), time.detach(), steps)
    # The differences are 0: these terms add nothing but the derivatives.
    by_start = flow.by_start @ (start - start.detach()).flatten()
    by_gram = flow.by_gram @ (gram - gram.detach()).flatten()
    return flow.value + by_start + by_gram + flow.by_time * (time - time.detach())


def _solution(loss: CrossEntropy | SquaredError, start: Tensor, gram: Tensor, time: Tensor, steps: int) -> Tensor:
    def slope(s: Tensor) -> Tensor:
        return time * loss.gradient(start - gram @ s)

    s, h = torch.zeros_like(start), 1 / steps
    for _ in range(steps):
        first = slope(s)
        second = slope(s + h / 2 * first)
        third = slope(s + h / 2 * second)
        fourth = slope(s + h * third)
        s = s + h / 6 * (first + 2 * second + 2 * third + fourth)
    return s


def _with_derivatives(
    loss: CrossEntropy | SquaredError, start: Tensor, gram: Tensor, time: Tensor, steps: int
) -> _Flow:
    """Solve for s and its derivatives by the inputs together, in the time τ = t / T from 0 to 1."""
    examples, outputs = start.shape
    identity = torch.eye(examples, dtype=start.dtype, device=start.device)
    each = torch.eye(examples * outputs, dtype=start.dtype, device=start.device)
    directions = each.reshape(examples, outputs, examples * outputs)

    def slope(flow: _Flow) -> _Flow:
        z = start - gram @ flow.value
        gradient, curvature = loss.gradient(z), time * loss.curvature(z)
        # A change of K's entry (i, j) changes row i of Z by −s_j.
        moved = -identity[:, None, :, None] * flow.value.mT[None, :, None, :]  # [examples, outputs, examples, examples]
        return _Flow(
            time * gradient,
            curvature @ (directions - _rows(gram, flow.by_start)),
            curvature @ (moved.flatten(2) - _rows(gram, flow.by_gram)),
            gradient - (curvature @ _rows(gram, flow.by_time[..., None]))[..., 0],
        )

    s = torch.zeros_like(start)
    flow = _Flow(s, torch.zeros_like(directions), s.new_zeros(examples, outputs, examples * examples), s)
    h = 1 / steps
    for _ in range(steps):
        first = slope(flow)
        second = slope(flow.plus(first, h / 2))
        third = slope(flow.plus(second, h / 2))
        fourth = slope(flow.plus(third, h))
        flow = flow.plus(first, h / 6).plus(second, h / 3).plus(third, h / 3).plus(fourth, h / 6)
    return flow


def _rows(gram: Tensor, derivative: Tensor) -> Tensor:
    """Multiply K and a derivative of s, ``[examples, outputs, directions]``."""
    return (gram @ derivative.flatten(1)).reshape(derivative.shape)
