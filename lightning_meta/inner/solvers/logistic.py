"""Multinomial logistic regression by Newton's method in the dual.

Rasmussen, Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, section 3.5, algorithm 3.3: the mode of
a multi-class Gaussian process is a kernel logistic regression. With a linear kernel it is the L2-penalized linear one,
whose weights are combinations of the examples, so that all is computed in numbers of examples, not of features.
"""

import torch
from torch import Tensor

from lightning_meta.inner.solvers.affine_ridge import centered
from lightning_meta.inner.solvers.class_systems import ClassSystems
from lightning_meta.inner.solvers.ridge import full_precision

# The constant feature of the intercept, whose penalty is by its square lower than that of weights.
_CONSTANT = 10.0

# Newton steps, and how often the longest of the tried step sizes is halved. After 20 steps the gradient was below 1e-8
# of the features' norm for features of size 1 to 100, 2 to 20 classes, separable or not, and penalties from 0.01.
_STEPS = 20
_HALVINGS = 12


def logistic_regression(
    features: Tensor, one_hot: Tensor, mask: Tensor | None, penalty: float
) -> tuple[Tensor, Tensor]:
    """Minimize ``Σ cross-entropy(Wᵀ(x − x̄) + b, y) + ½ λ (‖W‖² + ‖b‖² / 100)``, summed over examples.

    The penalty of the intercept, a hundredth of that of weights, makes the solution unique. A class without examples
    gets a score of 0, and does not count in the others' probabilities. Computed in double precision where the device
    has it, by 20 Newton steps, each with the best of 13 step sizes.

    Args:
        features: x, ``[examples, features]``.
        one_hot: Labels as one-hot rows, ``[examples, ways]``; the rows of padding are 0.
        mask: ``[examples]``, True where an example counts; None where all do.
        penalty: λ, positive.

    Returns:
        The weight ``[features, ways]``, and the bias ``[ways]`` of scores ``xᵀ weight + bias`` (without centering).
    """
    dtype = torch.float32 if features.device.type == "mps" else torch.float64
    with full_precision(features.device):
        x, center = centered(features.to(dtype), mask)
        real = x.new_ones(x.shape[0]) if mask is None else mask.to(dtype)  # [examples]
        kernel = (x @ x.mT + _CONSTANT**2 * real[:, None] * real) / penalty  # [examples, examples]
        dual = _newton(kernel, one_hot.to(dtype).mT, real) / penalty  # [ways, examples]
        weight = (dual @ x).mT  # [features, ways]
        bias = _CONSTANT**2 * dual.sum(1) - center @ weight  # [ways]
    return weight.to(features.dtype), bias.to(features.dtype)


def _newton(kernel: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Return the dual solution ``[ways, examples]``, which is equal to ``targets − probabilities``."""
    present = targets.sum(1, keepdim=True) > 0  # [ways, 1]
    sizes = 0.5 ** torch.arange(_HALVINGS + 1, dtype=kernel.dtype, device=kernel.device)
    dual = torch.zeros_like(targets)
    for _ in range(_STEPS):
        scores = dual @ kernel  # [ways, examples]
        probabilities = torch.where(present, scores, -torch.inf).softmax(0) * real
        # The step from the residual, not the point it leads to: its rounding errors vanish with the residual.
        step = _newton_step(kernel, probabilities, targets - probabilities - dual, real)
        # Both are linear in the step's size: all sizes are tried at once.
        duals = dual + sizes[:, None, None] * step  # [sizes, ways, examples]
        losses = _objective(duals, scores + sizes[:, None, None] * (step @ kernel), targets, present, real)
        dual = duals.index_select(0, losses.argmin()[None])[0]
    return dual


def _newton_step(kernel: Tensor, probabilities: Tensor, residual: Tensor, real: Tensor) -> Tensor:
    """Return ``(I + W K)⁻¹ residual``, ``[ways, examples]``, W the curvature of the losses."""
    return residual - ClassSystems.of(kernel, probabilities, real).solve(residual @ kernel)


def _objective(duals: Tensor, scores: Tensor, targets: Tensor, present: Tensor, real: Tensor) -> Tensor:
    """Return the objective of duals and their scores, ``[sizes, ways, examples]``, as ``[sizes]``."""
    normalizer = torch.where(present, scores, -torch.inf).logsumexp(1) * real  # [sizes, examples]
    return normalizer.sum(1) - (targets * scores).sum((1, 2)) + 0.5 * (duals * scores).sum((1, 2))
