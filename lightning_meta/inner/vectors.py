"""Dictionaries of tensors as vectors."""

from collections.abc import Mapping

import torch
from torch import Tensor

Vector = dict[str, Tensor]


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The inner product, a scalar."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Mapping[str, Tensor]) -> Tensor:
    """The Euclidean norm, a scalar."""
    return dot(a, a).sqrt()


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: Tensor | float = 1.0) -> Vector:
    """``a + scale · b``."""
    return {name: value + scale * b[name] for name, value in a.items()}


def times(a: Mapping[str, Tensor], factor: Tensor | float) -> Vector:
    """``factor · a``."""
    return {name: factor * value for name, value in a.items()}


def elementwise(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Vector:
    """``a ∘ b``; the entries of ``b`` may be scalars."""
    return {name: value * b[name] for name, value in a.items()}


def where(condition: Tensor, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Vector:
    """``a`` if the scalar condition holds, else ``b``; can be vectorized over tasks."""
    return {name: torch.where(condition, value, b[name]) for name, value in a.items()}
