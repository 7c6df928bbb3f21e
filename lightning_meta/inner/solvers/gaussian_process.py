"""Exact inference in Gaussian processes, for sets with padding."""

import math

import torch
from torch import Tensor

from lightning_meta.inner.solvers.ridge import factor_or_nan

_JITTER = 1e-5  # of the mean prior variance, so that single precision can factorize where the noise is tiny


def factorize(covariance: Tensor, noise: Tensor, present: Tensor) -> Tensor:
    """Return the lower Cholesky factor of ``K + σ² I``, ``[examples, examples]``; NaN where there is none.

    Padded examples become independent of all others, with unit variance: they add nothing to a determinant, nor, with
    a residual of 0, to a quadratic form. A hundred-thousandth of the mean prior variance is added to σ².

    Args:
        covariance: K, ``[examples, examples]``.
        noise: σ², a scalar.
        present: 1 where an example counts, 0 for padding, ``[examples]``.
    """
    jitter = _JITTER * (covariance.diagonal() * present).sum() / present.sum()
    masked = covariance * present[:, None] * present
    return factor_or_nan(masked + torch.diag(torch.where(present > 0, noise + jitter, 1)))


def whiten(factor: Tensor, residual: Tensor) -> Tensor:
    """Return ``L⁻¹ r``, ``[examples, outputs]``."""
    return torch.linalg.solve_triangular(factor, residual, upper=False)


def log_evidence(factor: Tensor, whitened: Tensor, present: Tensor) -> Tensor:
    """Return the logarithm of the marginal likelihood of each output, ``[outputs]``.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning", equation 2.30:
    ``−½ rᵀ (K + σ² I)⁻¹ r − ½ log |K + σ² I| − n/2 log 2π``.

    Args:
        factor: L, the Cholesky factor of ``K + σ² I``.
        whitened: ``L⁻¹ r`` for residuals r that are 0 for padding, ``[examples, outputs]``.
        present: As in `factorize`.
    """
    constant = factor.diagonal().log().sum() + 0.5 * math.log(2 * math.pi) * present.sum()
    return -0.5 * whitened.square().sum(0) - constant


def predict(across: Tensor, whitened: Tensor, prior_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posterior means of the residuals ``[query, outputs]`` and the variances ``[query]``, without noise.

    Args:
        across: ``K_QS L⁻ᵀ``, ``[query, support]``, with 0 for padded support examples.
        whitened: ``L⁻¹ r`` of the support set, ``[support, outputs]``.
        prior_variance: The diagonal of ``K_QQ``, ``[query]``.
    """
    return across @ whitened, (prior_variance - across.square().sum(1)).clamp(min=0)


def flat(values: Tensor) -> Tensor:
    """Return targets or outputs ``[examples, ...]`` as ``[examples, outputs]``."""
    return values.reshape(values.shape[0], -1)


def presence(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return 1 where an example counts, 0 for padding, ``[examples]``, in the type of the features."""
    return features.new_ones(features.shape[0]) if mask is None else mask.to(features.dtype)
