"""Factorized Gaussian distributions over a model's parameters."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from lightning_meta.inner.vectors import Vector


class DiagonalGaussian(NamedTuple):
    """A factorized Gaussian over parameters: means and log standard deviations by name."""

    mean: Vector
    log_std: Vector

    def flatten(self) -> Vector:
        """Means and log standard deviations in one dictionary, as an update rule takes them."""
        return {f"{part}.{name}": value for part in self._fields for name, value in getattr(self, part).items()}

    @classmethod
    def unflatten(cls, flat: Vector) -> Self:
        """The reverse of `flatten`."""
        parts: dict[str, Vector] = {part: {} for part in cls._fields}
        for key, value in flat.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        return cls(**parts)


def gaussian_kl(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    """``KL(q ‖ p)`` summed over all elements, a scalar."""
    parts = []
    for name, mean in q.mean.items():
        difference = q.log_std[name] - p.log_std[name]
        scaled = (mean - p.mean[name]) * (-p.log_std[name]).exp()
        parts.append(0.5 * ((2 * difference).exp() + scaled.square() - 1 - 2 * difference).sum())
    return torch.stack(parts).sum()
