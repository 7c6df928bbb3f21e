"""Ridge regression in closed form, as a layer and as Bayesian linear regression."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class RidgeSolution(NamedTuple):
    """A linear layer fitted to examples.

    Attributes:
        weight: ``[features, outputs]``.
        root: R, ``[rank, features]``: ``(XᵀX + λI)⁻¹`` is ``(I − RᵀR) / λ`` in the dual, ``RᵀR`` in the primal.
        penalty: λ.
        dual: Whether ``root`` is that of the dual.
    """

    weight: Tensor
    root: Tensor
    penalty: Tensor
    dual: bool

    def variance(self, features: Tensor) -> Tensor:
        """Return ``xᵀ (XᵀX + λI)⁻¹ x``, ``[query]``, for features ``[query, features]``, in units of noise variance."""
        with full_precision(features.device):
            return self._variance(features)

    def _variance(self, features: Tensor) -> Tensor:
        projected = (features @ self.root.mT).square().sum(1)
        if not self.dual:
            return projected
        return (features.square().sum(1) - projected).clamp(min=0) / self.penalty


def ridge(features: Tensor, targets: Tensor, penalty: Tensor, prior: Tensor) -> RidgeSolution:
    """Minimize ``‖Y − XW‖² + λ ‖W − W₀‖²``.

    It is solved in the dual for fewer examples than features (Woodbury; Bertinetto, Henriques, Torr, Vedaldi, ICLR
    2019, equation 6): ``W = W₀ + Xᵀ (XXᵀ + λI)⁻¹ (Y − X W₀)``; otherwise in the primal. As Bayesian linear regression
    with noise σ² and a prior ``N(W₀, σ²/λ)`` on weights, ``W`` is the posterior mean, and the predictive variance of an
    output is ``σ² (1 + variance(x))`` (Harrison, Sharma, Pavone, 2018, arXiv 1807.08912, section 3).

    Args:
        features: X, ``[examples, features]``.
        targets: Y, ``[examples, outputs]``.
        penalty: λ, a positive scalar.
        prior: W₀, ``[features, outputs]``.

    Returns:
        The solution, which is NaN if the features or the penalty are not finite.
    """
    with full_precision(features.device):
        return _solve(features, targets, penalty, prior)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switch off autocast inside the block, as half precision cannot be solved in.

    Where it is off the block does nothing, because an exported program would have a part of its own for it.
    """
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def factor_or_nan(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factors ``[..., n, n]``; NaN where there is none: an error could not name the task."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where(failed[..., None, None] == 0, factor, torch.nan)


def _solve(features: Tensor, targets: Tensor, penalty: Tensor, prior: Tensor) -> RidgeSolution:
    examples, size = features.shape
    residual = targets - features @ prior
    dual = examples <= size
    gram = features @ features.mT if dual else features.mT @ features
    identity = torch.eye(len(gram), dtype=features.dtype, device=features.device)
    factor = factor_or_nan(gram + penalty * identity)
    root = torch.linalg.solve_triangular(factor, features if dual else identity, upper=False)
    if dual:
        correction = root.mT @ torch.linalg.solve_triangular(factor, residual, upper=False)
    else:
        correction = root.mT @ (root @ (features.mT @ residual))
    return RidgeSolution(prior + correction, root, penalty, dual)
