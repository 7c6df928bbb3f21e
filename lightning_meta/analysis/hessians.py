"""The curvature of tasks' support losses at the initialization."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from lightning_meta.analysis.inner_problem import check_adapts_a_model, flattened, support_loss
from lightning_meta.analysis.lanczos import lanczos, ritz
from lightning_meta.arguments import check_count
from lightning_meta.episodes import Episode, MetaParameters, TaskResult
from lightning_meta.learners.task_learner import TaskLearner

_ROUNDING = 1e-5


class Curvature(NamedTuple):
    """The spectra of the Hessians of tasks' support losses in the adapted parameters, at the initialization.

    Attributes:
        values: Ritz values of each task and probe in ascending order, ``[tasks, probes, steps]``.
        weights: Their weights in the spectral density, which add up to 1 for each probe, ``[tasks, probes, steps]``.
    """

    values: Tensor
    weights: Tensor

    @property
    def largest(self) -> Tensor:
        """The largest eigenvalues, ``[tasks]``; Lanczos' estimates are never above them."""
        return self.values.amax((1, 2))

    @property
    def smallest(self) -> Tensor:
        """The smallest eigenvalues, ``[tasks]``; Lanczos' estimates are never below them."""
        return self.values.amin((1, 2))

    @property
    def stability_limit(self) -> Tensor:
        """The inner rates ``2 / λ_max``, above which gradient descent diverges on a quadratic, ``[tasks]``.

        Infinite for a task without positive curvature. The limit is a diagnostic: the inner rates that learn best may
        be far from it, and training with a rate moves the limit towards that rate.
        """
        return 2 / self.largest.clamp(min=0)

    @property
    def is_convex(self) -> Tensor:
        """Whether no eigenvalue is negative beyond rounding, as far as Lanczos shows, ``[tasks]``.

        In single precision an eigenvalue of zero comes out as up to about 1e-6 of the largest, of either sign.
        """
        return self.smallest >= -_ROUNDING * self.values.abs().amax((1, 2))

    @property
    def negative_share(self) -> Tensor:
        """``Σ_{λ<0} |λ| / Σ |λ|`` over eigenvalues, an estimate by stochastic Lanczos quadrature, ``[tasks]``.

        Not the share of eigenvalues below zero: most are near zero, where rounding decides their sign.
        """
        size = (self.weights * self.values.abs()).mean(1)  # [tasks, steps]
        return torch.where(self.values < 0, self.weights * self.values.abs(), 0).mean(1).sum(1) / size.sum(1)

    def density(self, points: Tensor, width: float, scale: float) -> Tensor:
        """Return the spectral density by stochastic Lanczos quadrature, smoothed, ``[tasks, points]``.

        Eigenvalues span many orders of magnitude and both signs, so that the density is that of ``asinh(λ / scale)``,
        which is linear in λ near zero and logarithmic far from it. It is a sum of Gaussians, the mean over probes.

        Args:
            points: Where to evaluate it, in ``asinh(λ / scale)``, ``[points]``.
            width: The standard deviation of the Gaussians, in the same units.
            scale: Where the linear part ends.
        """
        centers = torch.asinh(self.values / scale)[..., None]  # [tasks, probes, steps, 1]
        bells = torch.exp(-0.5 * ((points - centers) / width).square()) / (width * math.sqrt(2 * math.pi))
        return (self.weights[..., None] * bells).sum(2).mean(1)

    def condition_number(self, prox_lambda: float) -> Tensor:
        """The condition number ``(λ_max + λ) / (λ_min + λ)`` of implicit MAML's linear system, ``[tasks]``.

        NaN where the system is not positive definite, ``λ ≤ −λ_min``.
        """
        lowest = self.smallest + prox_lambda
        return torch.where(lowest > 0, (self.largest + prox_lambda) / lowest, torch.nan)


def curvature(learner: TaskLearner, batch: Episode, steps: int = 20, probes: int = 1, seed: int = 0) -> Curvature:
    """Return the curvature of each task's support loss at the initialization, by the Lanczos method.

    With ``batch_statistics="batch"`` the Hessian is that of the loss with the support set's own statistics. Networks
    with ReLU are not twice differentiable everywhere: the Hessian is that of the linear pieces around the point.

    Args:
        learner: A learner that adapts parameters of one model by gradient steps.
        batch: The tasks.
        steps: Products with the Hessian for each probe; 10 to 30 suffice for the extreme eigenvalues.
        probes: Random start vectors; more make the spectral density smoother.
        seed: The seed of the start vectors.

    Raises:
        ValueError: If the learner adapts in another way, or a task's curvature is not finite.

    Example:
        >>> from torch import nn
        >>> from lightning_meta import MAML, Episode
        >>> batch = Episode(*(torch.ones(2, 4, 1) for _ in range(4)))
        >>> found = curvature(MAML(nn.Linear(1, 1, bias=False), nn.MSELoss()), batch)
        >>> found.largest
        tensor([2., 2.], dtype=torch.float64)
    """
    adapting = check_adapts_a_model(learner, "curvature")
    check_count("steps", steps)
    check_count("probes", probes)
    generator = torch.Generator().manual_seed(seed)

    def task_spectrum(meta: MetaParameters, task: Episode) -> TaskResult:
        point, loss = support_loss(adapting, meta, task.support)
        _, pull_back = vjp(grad(loss), point)  # type: ignore[misc]
        product = flattened(lambda vector: pull_back(vector)[0], point)
        count = min(steps, size)
        diagonals, besides = zip(*(lanczos(product, start.to(value_like), count) for start in starts), strict=True)
        found = {"diagonal": torch.stack(diagonals), "beside": torch.stack(besides)}
        empty = found["diagonal"].new_zeros(())
        return TaskResult(empty, empty.expand(1, queries), empty.new_zeros(0), diagnostics=found)

    first = next(iter(learner.model.parameters()))
    value_like = first.detach()
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    point, _ = support_loss(adapting, meta, batch.select(0).support)  # for its size alone
    size = sum(leaf.numel() for leaf in point.values())
    starts = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(probes)]
    queries = batch.query_y.shape[1]
    found = learner.map_tasks(task_spectrum, batch).diagnostics
    if not all(bool(leaf.isfinite().all()) for leaf in found.values()):
        raise ValueError("the support loss of a task has no finite curvature: it diverges at the initialization")
    return Curvature(*ritz(found["diagonal"].cpu(), found["beside"].cpu()))


def cg_error_bound(condition: float, steps: int) -> float:
    """Return the bound on conjugate gradients' relative error in the energy norm, ``2 ((√κ − 1) / (√κ + 1))^k``.

    Example:
        >>> round(cg_error_bound(9.0, 3), 6)
        0.25
    """
    root = math.sqrt(condition)
    return 2 * ((root - 1) / (root + 1)) ** steps


def cg_steps_for(condition: float, tolerance: float) -> int:
    """Return the number of conjugate gradient steps whose error bound is at most ``tolerance``.

    Example:
        >>> cg_steps_for(9.0, 0.25)
        3
    """
    if condition <= 1:
        return 1
    per_step = math.log1p(2 / (math.sqrt(condition) - 1))  # of (√κ + 1) / (√κ − 1), which may round to 1
    return max(1, math.ceil(math.log(2 / tolerance) / per_step - 1e-9))
