"""Extreme eigenvalues and spectral density of a symmetric matrix, from products with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the tridiagonal matrix of the Lanczos method, with full reorthogonalization; can be vectorized.

    If the Krylov space is exhausted early, the remaining diagonal repeats the first entry, which lies between the
    extreme eigenvalues, so that they stay as they are.

    Args:
        product: The product with the matrix, ``[n]`` to ``[n]``.
        start: The first vector, ``[n]``, not zero.
        steps: The number of products.

    Returns:
        Its diagonal ``[steps]`` and the entries beside it, ``[steps - 1]``.
    """
    vector = start / start.norm()
    basis = vector[None]  # [step, n]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    alive = torch.ones_like(vector[0], dtype=torch.bool)
    for step in range(steps):
        image = product(vector)
        entry = vector @ image
        diagonal.append(torch.where(alive, entry, diagonal[0] if diagonal else entry))
        if step == steps - 1:
            break
        rest = image
        for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, section 6.9)
            rest = rest - basis.T @ (basis @ rest)
        size = rest.norm()
        alive = alive & (size > 10 * torch.finfo(size.dtype).eps * image.norm())
        beside.append(torch.where(alive, size, 0))
        vector = torch.where(alive, rest / torch.where(alive, size, 1), 0)
        basis = torch.cat([basis, vector[None]])
    off = torch.stack(beside) if beside else vector.new_zeros(0)
    return torch.stack(diagonal), off


def ritz(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of tridiagonal matrices and their weights in the spectral density.

    Args:
        diagonal: ``[..., steps]``.
        beside: ``[..., steps - 1]``.

    Returns:
        Values in ascending order and weights, which add up to 1, both ``[..., steps]``, in double precision.
    """
    matrix = torch.diag_embed(diagonal.double())
    matrix = matrix + torch.diag_embed(beside.double(), 1) + torch.diag_embed(beside.double(), -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors[..., 0, :].square()
