"""Exact inference in Gaussian processes, for sets with padding."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_meta.inner.solvers.ridge import factor_or_nan, full_precision

# Features ``[..., first, features]`` and ``[..., second, features]`` to covariances ``[..., first, second]``
Kernel = Callable[[Tensor, Tensor], Tensor]

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


def condition(
    kernel: Kernel, features: Tensor, noise: Tensor, residual: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the factor L of a support set's ``K + σ² I``, and ``L⁻¹ r``; arguments as in `factorize` and `whiten`."""
    with full_precision(features.device):
        factor = factorize(kernel(features, features), noise, present)
        return factor, whiten(factor, residual)


def posterior(
    kernel: Kernel, features: Tensor, factor: Tensor, whitened: Tensor, present: Tensor, query: Tensor
) -> tuple[Tensor, Tensor]:
    """Return means ``[query, outputs]`` and variances ``[query]`` at query features, given what `condition` returned.

    Args:
        kernel: The kernel.
        features: The support set's, ``[support, features]``.
        factor: L, ``[support, support]``.
        whitened: ``L⁻¹ r``, ``[support, outputs]``.
        present: As in `factorize`.
        query: ``[query, features]``.
    """
    with full_precision(query.device):
        across = whiten(factor, kernel(features, query) * present[:, None]).mT
        return predict(across, whitened, kernel(query[:, None], query[:, None])[:, 0, 0])


def evidence_and_posterior(
    kernel: Kernel, features: Tensor, noise: Tensor, residual: Tensor, present: Tensor, support: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log evidence of both sets, ``[outputs]``, and the queries' means and variances given the support set.

    Args:
        kernel: The kernel.
        features: Of the support set and then the queries, ``[examples, features]``.
        noise: σ², a scalar.
        residual: Of both sets, 0 for padding, ``[examples, outputs]``.
        present: As in `factorize`, ``[examples]``.
        support: The size of the support set.
    """
    with full_precision(features.device):
        covariance = kernel(features, features)
        factor = factorize(covariance, noise, present)
        whitened = whiten(factor, residual)
        # The first rows and columns are the support set's own factor, up to the jitter, which is of both sets.
        mean, variance = predict(factor[support:, :support], whitened[:support], covariance.diagonal()[support:])
        return log_evidence(factor, whitened, present), mean, variance


def flat(values: Tensor) -> Tensor:
    """Return targets or outputs ``[examples, ...]`` as ``[examples, outputs]``."""
    return values.reshape(values.shape[0], -1)


def presence(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return 1 where an example counts, 0 for padding, ``[examples]``, in the type of the features."""
    return features.new_ones(features.shape[0]) if mask is None else mask.to(features.dtype)
