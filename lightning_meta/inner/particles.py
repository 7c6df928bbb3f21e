"""Particles: several values of the same parameters, stacked along a first dimension."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from lightning_meta.inner.vectors import Vector


def for_each(function: Callable[..., Any], vectorize: bool, *stacked: Vector) -> Any:
    """Apply a function to each particle; its results, trees of tensors, get a leading particle dimension.

    Args:
        function: Takes one entry of each vector.
        vectorize: Whether to vectorize over particles.
        *stacked: Vectors of tensors ``[particles, ...]``.
    """
    if vectorize:
        return vmap(function, randomness="different")(*stacked)
    results = [function(*one) for one in zip(*map(unstacked, stacked), strict=True)]
    return tree_map(lambda *leaves: torch.stack(leaves), *results)


def unstacked(particles: Vector) -> list[Vector]:
    """Return the particles one by one."""
    count = next(iter(particles.values())).shape[0]
    return [{name: value[i] for name, value in particles.items()} for i in range(count)]


def initialized_anew(module: nn.Module) -> nn.Module:
    """Return a copy whose layers with a ``reset_parameters()`` have been initialized again."""
    other = copy.deepcopy(module)
    for layer in other.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
    return other
