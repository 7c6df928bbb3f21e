"""How much of the meta-gradient's variance lies between tasks, and how much between draws of the same task."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.arguments import check_count


def noise_scale(gradients: Tensor) -> float:
    """Return the simple noise scale of meta-gradients, in tasks; NaN if it is undetermined.

    ``B = tr Σ / ‖G‖²`` (McCandlish et al., 2018, equation 2.9) with the mean G and the covariance Σ of the tasks'
    gradients, both estimated without bias: ``‖G‖² ≈ (T ‖ḡ‖² − mean ‖g_i‖²) / (T − 1)`` and
    ``tr Σ ≈ (mean ‖g_i‖² − ‖ḡ‖²) T / (T − 1)``. Late in training ‖G‖² is small beside the noise and its estimate may be
    negative: then B is undetermined. The estimate is a diagnostic, not advice on the number of tasks.

    Args:
        gradients: One gradient for each task, ``[tasks, parameters]``.

    Raises:
        ValueError: If there are fewer than 2 tasks, or a gradient is not finite.

    Example:
        >>> noise_scale(torch.tensor([[1.0, 0.5], [1.0, -0.5]]))
        0.6666666865348816
    """
    _check(gradients, "[tasks, parameters]", 2)
    tasks = gradients.shape[0]
    squares = gradients.square().sum(1).mean()
    mean_square = gradients.mean(0).square().sum()
    signal = (tasks * mean_square - squares) / (tasks - 1)
    noise = (squares - mean_square) * tasks / (tasks - 1)
    return float(noise / signal) if signal > 0 else math.nan


class GradientVariance(NamedTuple):
    """Parts of the mean squared norm of meta-gradients; they add up to ``total``. Estimates may be negative.

    Attributes:
        common: ``‖E g‖²``, the squared norm of the mean gradient.
        between: ``E_τ ‖E[g | τ]‖² − ‖E g‖²``, the variance between tasks: more tasks reduce it.
        within: ``E ‖g‖² − E_τ ‖E[g | τ]‖²``, the variance between draws of the same task: more shots and queries reduce
            it, and more tasks too.
        total: ``E ‖g‖²``.
        p_value: The probability of a variance between tasks as large as this one, if the tasks do not differ.
    """

    common: float
    between: float
    within: float
    total: float
    p_value: float


def gradient_variance(gradients: Tensor, permutations: int = 999, seed: int = 0) -> GradientVariance:
    """Split the variance of meta-gradients into parts between tasks and within tasks.

    The estimates are without bias: ``‖E g‖²`` from products of gradients of different tasks, ``E_τ ‖E[g | τ]‖²`` from
    products of different draws of one task. The test permutes draws among all tasks.

    Args:
        gradients: Gradients from several draws of support and query sets of the same tasks,
            ``[tasks, draws, parameters]``.
        permutations: How many permutations the test takes.
        seed: The seed of the permutations.

    Raises:
        ValueError: If there are fewer than 2 tasks or 2 draws, or a gradient is not finite.
    """
    check_count("permutations", permutations)
    _check(gradients, "[tasks, draws, parameters]", 2, 2)
    tasks, draws, _ = gradients.shape
    flat = gradients.flatten(0, 1).double()
    products = flat @ flat.T  # [tasks · draws, tasks · draws]
    total = products.diagonal().mean()
    task_of = torch.arange(tasks).repeat_interleave(draws).to(products.device)
    pairs = products.sum() - products.diagonal().sum()

    def same_task(labels: Tensor) -> Tensor:
        """The mean product of different draws of one task."""
        same = (labels[:, None] == labels).fill_diagonal_(False)
        return products[same].mean()

    own = same_task(task_of)
    count = tasks * draws
    own_pairs = own * count * (draws - 1)
    common = (pairs - own_pairs) / (count * (count - draws))
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(count, generator=generator).to(products.device) for _ in range(permutations))
    as_large = sum(bool(same_task(task_of[order]) >= own) for order in orders)
    p_value = (1 + as_large) / (1 + permutations)
    return GradientVariance(float(common), float(own - common), float(total - own), float(total), p_value)


def _check(gradients: Tensor, shape: str, *least: int) -> None:
    if gradients.ndim != len(least) + 1 or any(n < m for n, m in zip(gradients.shape, least, strict=False)):
        raise ValueError(
            f"gradients of shape {tuple(gradients.shape)} must be {shape} with at least 2 of each but parameters"
        )
    if not gradients.isfinite().all():
        raise ValueError("gradients has values that are not finite: a task diverges, leave it out or lower the rate")
