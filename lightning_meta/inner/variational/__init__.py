"""Variational distributions over parameters, and models drawn from them."""

from lightning_meta.inner.variational.gaussian import DiagonalGaussian, gaussian_kl
from lightning_meta.inner.variational.random_parameters import call_with_random_parameters, linear_layers

__all__ = ["DiagonalGaussian", "call_with_random_parameters", "gaussian_kl", "linear_layers"]
