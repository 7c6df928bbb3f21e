"""Kernels of Gaussian processes: covariances of two sets of feature vectors.

All map ``[..., first, features]`` and ``[..., second, features]`` to ``[..., first, second]``, with positive parameters
learned by their logarithms.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_meta.models.features import unit_length

KernelName = Literal["linear", "rbf", "cosine", "bn_cosine", "spectral_mixture"]

_MIXTURES = 4


class LinearKernel(nn.Module):
    """``s² aᵀb``, with s² = 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the covariances, ``[..., first, second]``."""
        return self.log_variance.exp() * (first @ second.mT)


class RBFKernel(nn.Module):
    """``s² exp(−‖a − b‖² / (2 l²))``, with s = l = 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.log_length = nn.Parameter(torch.zeros(()))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the covariances, ``[..., first, second]``."""
        # By differences, whose lengths are exact near 0.
        squared = (first[..., :, None, :] - second[..., None, :, :]).square().sum(-1)
        return (self.log_variance - 0.5 * squared * (-2 * self.log_length).exp()).exp()


class CosineKernel(nn.Module):
    """``s² aᵀb / (‖a‖ ‖b‖)``, with s² = 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the covariances, ``[..., first, second]``."""
        return self.log_variance.exp() * (unit_length(first) @ unit_length(second).mT)


class SpectralMixtureKernel(nn.Module):
    """``Σ_q w_q Π_d exp(−2π² τ_d² v_qd²) cos(2π τ_d μ_qd)``, τ = a − b (Wilson and Adams, ICML 2013, equation 12).

    Args:
        features: The size of a feature vector.
        mixtures: The number of components q.
    """

    def __init__(self, features: int, mixtures: int = _MIXTURES) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.full((mixtures,), -math.log(mixtures)))
        # Low frequencies: with many features a product of cosines of high ones is 0 but at τ = 0.
        width = 0.1 / features**0.5
        self.log_means = nn.Parameter(math.log(width) + 0.5 * torch.randn(mixtures, features))
        self.log_deviations = nn.Parameter(math.log(width) + 0.5 * torch.randn(mixtures, features))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the covariances, ``[..., first, second]``."""
        angles = 2 * math.pi * (first[..., :, None, None, :] - second[..., None, :, None, :])
        decay = -0.5 * (angles * self.log_deviations.exp()).square().sum(-1)  # [..., first, second, mixtures]
        waves = (angles * self.log_means.exp()).cos().prod(-1)
        return ((self.log_weights + decay).exp() * waves).sum(-1)


def make_kernel(name: KernelName, features: int | None) -> nn.Module:
    """Return a kernel by name; the spectral mixture needs the number of features. "bn_cosine" is the cosine's."""
    if name == "spectral_mixture":
        assert features is not None
        return SpectralMixtureKernel(features)
    kinds: dict[str, type[nn.Module]] = {"linear": LinearKernel, "rbf": RBFKernel}
    return kinds.get(name, CosineKernel)()
