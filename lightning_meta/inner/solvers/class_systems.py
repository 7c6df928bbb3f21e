"""The linear systems of Newton's method for multi-class problems in the dual, where all classes share a kernel."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from lightning_meta.inner.solvers.ridge import factor_or_nan


class ClassSystems(NamedTuple):
    """The factors of systems ``(K + diag(w_k)⁻¹) z_k + ν = r_k``, one for each class k, with ``Σ_k z_k = 0``.

    The multiplier ν of the constraint, one number for each example, couples the classes (Rasmussen, Williams, "Gaussian
    Processes for Machine Learning", MIT Press 2006, algorithm 3.3). Where a weight w is 0, z is 0.

    Attributes:
        inverses: ``(K + diag(w_k)⁻¹)⁻¹``, ``[ways, examples, examples]``.
        factor: The Cholesky factor of their sum over classes, ``[examples, examples]``.
    """

    inverses: Tensor
    factor: Tensor

    @classmethod
    def of(cls, kernel: Tensor, weights: Tensor, real: Tensor) -> Self:
        """Factor the systems.

        Args:
            kernel: K, positive semidefinite, ``[examples, examples]``; 0 for padding.
            weights: w, ``[ways, examples]``, at least 0, and 0 for padding.
            real: ``[examples]``, 1 where an example counts, 0 for padding.
        """
        identity = torch.eye(kernel.shape[0], dtype=kernel.dtype, device=kernel.device)
        root = weights.sqrt()
        system = identity + root[:, :, None] * kernel * root[:, None, :]  # at least the identity
        inverses = root[:, :, None] * torch.cholesky_inverse(factor_or_nan(system)) * root[:, None, :]
        return cls(inverses, factor_or_nan(inverses.sum(0) + torch.diag(1 - real)))  # padding has a row of its own

    def solve(self, right: Tensor) -> Tensor:
        """Return z for r, both ``[ways, examples]``."""
        free = _apply(self.inverses, right)  # without the constraint
        multiplier = torch.cholesky_solve(free.sum(0)[:, None], self.factor)[:, 0]  # [examples]
        return free - _apply(self.inverses, multiplier.expand_as(free))


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Multiply matrices ``[ways, examples, examples]`` and vectors ``[ways, examples]``."""
    return (matrices * vectors[:, None]).sum(2)  # fewer operations than a matrix product
