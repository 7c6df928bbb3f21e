"""How much of the meta-gradient's variance lies between tasks, and how much between draws of the same task."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.arguments import check_count

_ROUNDING = 1e-9


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
    _check(gradients, "[tasks, draws, parameters]", 2, 2)
    flat = gradients.double()
    return variance_of_products(torch.einsum("adp,bep->adbe", flat, flat), permutations, seed)


def variance_of_products(products: Tensor, permutations: int = 999, seed: int = 0) -> GradientVariance:
    """Return what `gradient_variance` does, from inner products of gradients, ``[tasks, draws, tasks, draws]``."""
    check_count("permutations", permutations)
    tasks, draws = products.shape[:2]
    common, own, total = _means(products, torch.ones(1, tasks, dtype=torch.double, device=products.device))[:, 0]
    flat = products.double().reshape(tasks * draws, tasks * draws)
    squares = flat.diagonal().sum()

    def same_task(order: Tensor) -> Tensor:
        """The mean product of different draws of one task, of draws in this order."""
        groups = order.reshape(tasks, draws)
        return (flat[groups[:, :, None], groups[:, None]].sum() - squares) / (tasks * draws * (draws - 1))

    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(flat), generator=generator).to(products.device) for _ in range(permutations))
    least = same_task(torch.arange(len(flat), device=products.device)) - _ROUNDING * total
    as_large = sum(bool(same_task(order) >= least) for order in orders)
    p_value = (1 + as_large) / (1 + permutations)
    return GradientVariance(float(common), float(own - common), float(total - own), float(total), p_value)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class NoiseIntervals(NamedTuple):
    """Parts of the variance of meta-gradients, and how sure they are; intervals are of the bootstrap over tasks.

    Attributes:
        within_share: The share of the variance ``between + within`` that lies within tasks, at most 1: what would go
            if tasks had examples without end, as far as these do not change the mean gradient.
        share_interval: Its interval.
        common_interval: That of ``common``.
        between_interval: That of ``between``.
        within_interval: That of ``within``.
        noise_scale: As `noise_scale`, from all draws: ``(between + within) / common``, in tasks of one draw; NaN,
            undetermined, if the interval of ``common`` holds 0.
    """

    within_share: float
    share_interval: Interval
    common_interval: Interval
    between_interval: Interval
    within_interval: Interval
    noise_scale: float


def noise_intervals(products: Tensor, resamples: int = 2_000, seed: int = 0) -> NoiseIntervals:
    """Return how much of meta-gradients' variance lies within tasks, with intervals.

    Resampled tasks that are copies of one task make no pair of different tasks. The intervals are approximate: those of
    few tasks are somewhat too narrow.

    Args:
        products: Inner products of gradients, ``[tasks, draws, tasks, draws]``.
        resamples: Bootstrap samples of the tasks.
        seed: The seed of the bootstrap.
    """
    check_count("resamples", resamples)
    tasks = products.shape[0]
    drawn = torch.randint(tasks, (resamples, tasks), generator=torch.Generator().manual_seed(seed))
    counts = torch.nn.functional.one_hot(drawn, tasks).sum(1).double()
    counts = counts[(counts > 0).sum(1) > 1]  # else there is no pair of different tasks
    weights = torch.cat([torch.ones(1, tasks, dtype=torch.double), counts]).to(products.device)
    common, own, total = _means(products, weights)
    between, within = own - common, total - own
    shares = (within / (total - common)).nan_to_num(nan=0.0).clamp(0, 1)

    def interval(values: Tensor) -> Interval:
        levels = torch.tensor([0.025, 0.975], dtype=values.dtype, device=values.device)
        return Interval(*values[1:].quantile(levels).tolist())

    of_common = interval(common)
    scale = float((between + within)[0] / common[0]) if of_common.low > 0 else math.nan
    return NoiseIntervals(float(shares[0]), interval(shares), of_common, interval(between), interval(within), scale)


def _means(products: Tensor, weights: Tensor) -> Tensor:
    """Return the mean products of different tasks, of different draws of one task, and of gradients with themselves.

    Args:
        products: ``[tasks, draws, tasks, draws]``.
        weights: How often each task counts, ``[samples, tasks]``.

    Returns:
        ``[3, samples]``.
    """
    tasks, draws = products.shape[:2]
    sums = products.double().sum((1, 3))  # [tasks, tasks]
    squares = products.double().reshape(tasks * draws, -1).diagonal().reshape(tasks, draws).sum(1)
    alone = sums.diagonal()
    total = weights @ squares / draws / weights.sum(1)
    own = weights @ (alone - squares) / (draws * (draws - 1)) / weights.sum(1)
    pairs = weights.sum(1).square() - weights.square().sum(1)
    across = torch.einsum("st,tu,su->s", weights, sums, weights) - weights.square() @ alone
    return torch.stack([across / pairs / draws**2, own, total])


def _check(gradients: Tensor, shape: str, *least: int) -> None:
    if gradients.ndim != len(least) + 1 or any(n < m for n, m in zip(gradients.shape, least, strict=False)):
        raise ValueError(
            f"gradients of shape {tuple(gradients.shape)} must be {shape} with at least 2 of each but parameters"
        )
    if not gradients.isfinite().all():
        raise ValueError("gradients has values that are not finite: a task diverges, leave it out or lower the rate")
