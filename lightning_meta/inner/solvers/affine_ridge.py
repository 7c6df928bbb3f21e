"""Ridge regression with an intercept, on the examples that a mask includes."""

import torch
from torch import Tensor

from lightning_meta.inner.solvers.ridge import full_precision, ridge
from lightning_meta.models.features import single_or_double


def affine_ridge(features: Tensor, targets: Tensor, mask: Tensor | None, penalty: float) -> tuple[Tensor, Tensor]:
    """Minimize ``Σ ‖y − xᵀW − b‖² + λ ‖W‖²`` over W and b; the intercept has no penalty.

    The best b given W is ``ȳ − x̄ᵀW``, so that W is the ridge solution of centered examples.

    Args:
        features: ``[examples, features]``.
        targets: ``[examples, outputs]``.
        mask: ``[examples]``, True where an example counts; None where all do.
        penalty: λ, positive.

    Returns:
        W, ``[features, outputs]``, and b, ``[outputs]``.
    """
    dtype = single_or_double(features.dtype)  # half precision cannot be solved in
    with full_precision(features.device):
        (x, center), (y, mean) = (centered(values.to(dtype), mask) for values in (features, targets))
        weight = ridge(x, y, x.new_tensor(penalty), x.new_zeros(x.shape[1], y.shape[1])).weight
        bias = mean - center @ weight
    return weight.to(features.dtype), bias.to(features.dtype)


def centered(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return values ``[examples, ...]`` minus their mean over the mask, 0 elsewhere, and the mean, ``[...]``."""
    if mask is None:
        mean = values.mean(0)
        return values - mean, mean
    counts = mask[:, None]
    mean = torch.where(counts, values, 0).sum(0) / mask.sum()
    return torch.where(counts, values - mean, 0), mean
