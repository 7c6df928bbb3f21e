"""PACOH: the PAC-optimal hyper-posterior over priors, here Gaussian processes.

Paper: Rothfuss, Fortuin, Josifoski, Krause, "PACOH: Bayes-Optimal Meta-Learning with PAC-Guarantees", ICML 2021, arXiv
2002.05551.

A prior φ is a Gaussian process: a mean function, a kernel on learned features, and the noise. Of all distributions over
priors the one with the least PAC-Bayesian bound on the error of new tasks is (proposition 1)

    Q*(φ) ∝ P(φ) exp[λ/(nβ + λ) Σ_i ln Z_β(S_i, φ)]

with the hyper-prior P, n training tasks and, for β the number m of a task's examples, the marginal likelihoods Z. It is
approximated by particles φ_1 ... φ_M that follow Stein variational gradient descent (PACOH-SVGD; algorithm 1). A
single particle goes to the maximum of Q* (PACOH-MAP). With w = 1/λ + 1/(nβ), both climb

    w ln Q*(φ) = mean_i [ln Z(S_i, φ) / m_i] + w ln P(φ) + constant

Every particle is conditioned on a task's support set in closed form, and the mixture of the M processes predicts.

Differences from the paper:
- Only Gaussian processes, for regression; the paper has Bayesian neural networks too.
- The hyper-prior's weight w is an argument. The paper's λ and β set it; its authors tune an equivalent factor.
- Stein's repulsion weighs w as well, because it belongs to the gradient flow of ln Q*. In the authors' code it has the
  weight 1 while the hyper-prior has a small factor, which is a flow to another, wider distribution.
- Kernel and noise are learned by their logarithms, with standard normal hyper-priors; the authors' through a softplus.
- Networks start as layers initialize themselves, kernels and noise as draws of the hyper-prior; the authors draw all.
- A hundred-thousandth of the kernel's mean variance is added to the noise, for single precision.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.execution.functional import call_with
from lightning_meta.inner.names import key_of
from lightning_meta.inner.particles import for_each, initialized_anew
from lightning_meta.inner.solvers.gaussian_process import (
    Kernel,
    condition,
    evidence_and_posterior,
    flat,
    posterior,
    presence,
)
from lightning_meta.inner.solvers.svgd import stein_direction
from lightning_meta.inner.vectors import Vector, times
from lightning_meta.learners import PosteriorLearner, module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples, mean_output
from lightning_meta.models.batch_statistics import check_no_statistics
from lightning_meta.models.features import single_or_double
from lightning_meta.models.kernels import make_kernel

PriorKernel = Literal["linear", "rbf", "cosine"]


class ConditionedProcesses(NamedTuple):
    """Each particle's Gaussian process conditioned on one task's support set.

    Attributes:
        features: The support set's features, ``[particles, support, features]``.
        factor: The Cholesky factor L of ``K + σ² I``, ``[particles, support, support]``.
        whitened: ``L⁻¹ (y − mean)``, ``[particles, support, ...]``, with the shape of a target.
        present: 1 where an example counts, 0 for padding, ``[particles, support]``.
    """

    features: Tensor
    factor: Tensor
    whitened: Tensor
    present: Tensor


class PACOH(PosteriorLearner):
    """PACOH-GP (Rothfuss et al., 2021): particles of Gaussian-process priors, for regression from few tasks.

    Args:
        model: Embeds examples for the kernel, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: ``nn.MSELoss()``, also if None.
        mean_model: The prior's mean function, ``[examples, ...]`` to the shape of targets; None: a learned constant.
        kernel: "linear", "rbf" or "cosine", on the model's features.
        num_particles: M. One particle is PACOH-MAP.
        hyper_prior_weight: w, the weight of hyper-prior and repulsion beside the mean log marginal likelihood of an
            example; the more, the fewer training tasks. The bound's is 1/λ + 1/(n m) for n tasks of m examples, with
            λ between √n and n.
        weight_prior_std: The standard deviation of the hyper-prior on networks' weights.
        bias_prior_std: That on their biases, and on a constant mean.
        **options: As in `PosteriorLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the loss is another one, or ``mean_model`` has batch
            normalization or running statistics.
        TypeError: If the models have layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import PACOH
        >>> learner = PACOH(nn.Linear(3, 8), num_particles=4)
        >>> task = learner.adapt(torch.randn(5, 3), torch.randn(5, 1))
        >>> task.predict(torch.randn(7, 3)).epistemic.shape
        torch.Size([7, 1])
    """

    diagnostic_names = ("nll",)

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        mean_model: nn.Module | None = None,
        kernel: PriorKernel = "rbf",
        num_particles: int = 10,
        hyper_prior_weight: float = 1e-3,
        weight_prior_std: float = 0.5,
        bias_prior_std: float = 3.0,
        **options: Any,
    ) -> None:
        super().__init__(model, nn.MSELoss() if loss_fn is None else loss_fn, **options)
        if self.likelihood != "gaussian":
            raise ValueError(f"loss_fn={loss_fn!r}: PACOH needs real targets and nn.MSELoss(); for classes use DKT")
        arguments.check_choice("kernel", kernel, PriorKernel)
        arguments.check_count("num_particles", num_particles)
        arguments.check_rate("hyper_prior_weight", hyper_prior_weight)
        arguments.check_rate("weight_prior_std", weight_prior_std)
        arguments.check_rate("bias_prior_std", bias_prior_std)
        self.num_particles = num_particles
        self.hyper_prior_weight = hyper_prior_weight
        like = next(model.parameters(), torch.zeros(())).detach()
        self.kernel = make_kernel(kernel, None).to(like)
        if mean_model is not None:
            check_no_statistics(mean_model, "mean_model")
        self.mean_model = mean_model
        self._keep_frozen("mean_model")
        self.mean = nn.Parameter(like.new_zeros(())) if mean_model is None else None
        own = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        self._prior_stds = {
            name: _prior_std(name, value, weight_prior_std, bias_prior_std) for name, value in own.items()
        }
        self.other_particles = nn.ParameterDict(
            {key_of(name): nn.Parameter(value) for name, value in self._new_particles(own).items()}
        )

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of a target."""
        return support.y.shape[2:]

    def adapt_task(self, meta: MetaParameters, support: Support) -> ConditionedProcesses:
        """Return every particle's process conditioned on the support set."""

        def conditioned(particle: Vector) -> ConditionedProcesses:
            features, mean = self._prior(particle, support.x)
            present = presence(features, support.mask)
            residual = self._residual(support.y, mean, present)
            noise = self.noise_variance(particle, mean)
            factor, whitened = condition(self._kernel(particle), features, noise, residual, present)
            return ConditionedProcesses(features, factor, whitened.view_as(support.y), present)

        states: ConditionedProcesses = for_each(conditioned, self.execution.vectorizes, self._particles(meta))
        return states

    def query_samples(self, meta: MetaParameters, state: ConditionedProcesses, x: Any) -> Samples:
        """Return every particle's posterior, ``[particles, query, ...]``."""

        def marginals(particle: Vector, fields: Vector) -> dict[str, Tensor]:
            given = ConditionedProcesses(**fields)
            features, mean = self._prior(particle, x)
            process = given.features, given.factor, flat(given.whitened), given.present
            residual, variance = posterior(self._kernel(particle), *process, features)
            return self._marginals(particle, mean + residual, variance, given.whitened.shape[1:])

        each = for_each(marginals, self.execution.vectorizes, self._particles(meta), state._asdict())
        return Samples(**each)

    def task_gradient(self, meta: MetaParameters, task: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        """Return minus the particles' Stein direction on ``w ln Q*``, and the report.

        The direction is linear in the slopes of ``ln Z``, so that its mean over tasks is that of the whole batch.
        """

        def slope(particle: Vector) -> tuple[Vector, tuple[Tensor, dict[str, Tensor]]]:
            density = grad_and_value(self._log_density, has_aux=True)
            slopes, result = density(particle, task)
            return slopes, result

        particles = self._particles(meta)
        slopes, (densities, marginals) = for_each(slope, self.execution.vectorizes, particles)
        direction = times(stein_direction(particles, slopes), -self.hyper_prior_weight)
        gradient = {name: value[0] for name, value in direction.items()}
        if self.num_particles > 1:
            gradient |= {_others(name): value[1:] for name, value in direction.items()}
        samples = Samples(**marginals)
        nll = self.predictive_nll(samples, task.query_y, task.query_mask)
        loss = -self.hyper_prior_weight * densities.mean()
        output = mean_output(self.likelihood, samples)
        return gradient, TaskResult(loss, output[None], loss.new_zeros(0), diagnostics={"nll": nll})

    def _log_density(self, particle: Vector, task: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ``ln Q*`` up to a constant, as if all tasks were this one, and the queries' posterior.

        The two sets are passed through the model separately, as in evaluation, for batch normalization.
        """
        parts = [self._prior(particle, x) for x in (task.support_x, task.query_x)]
        masks, targets = (task.support_mask, task.query_mask), (task.support_y, task.query_y)
        present = torch.cat([presence(f, mask) for (f, _), mask in zip(parts, masks, strict=True)])
        features, mean = (torch.cat(each) for each in zip(*parts, strict=True))
        residual = self._residual(torch.cat(targets), mean, present)
        size = task.support_y.shape[0]
        noise = self.noise_variance(particle, mean)
        evidence, posterior_residual, variance = evidence_and_posterior(
            self._kernel(particle), features, noise, residual, present, size
        )
        density = evidence.mean() / present.sum() / self.hyper_prior_weight + self._log_hyper_prior(particle)
        marginals = self._marginals(particle, mean[size:] + posterior_residual, variance, task.query_y.shape[1:])
        return density, {name: value.detach() for name, value in marginals.items()}

    def _log_hyper_prior(self, particle: Vector) -> Tensor:
        """Return ``ln P(φ)`` up to a constant."""
        return -0.5 * torch.stack([(v / self._prior_stds[name]).square().sum() for name, v in particle.items()]).sum()

    def _particles(self, meta: MetaParameters) -> Vector:
        """Return all particles, ``[particles, ...]``, named as the first one's parameters in the learner."""
        if self.num_particles == 1:
            return {name: meta[name][None] for name in self._prior_stds}
        return {name: torch.cat([meta[name][None], meta[_others(name)]]) for name in self._prior_stds}

    def _new_particles(self, own: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the other particles' starting points, ``[particles - 1, ...]``."""
        if self.num_particles == 1:
            return {}
        copies = [dict(initialized_anew(self).named_parameters()) for _ in range(self.num_particles - 1)]
        values = {name: torch.stack([each[name].detach() for each in copies]) for name in own}
        drawn = [name for name in own if not name.startswith(("model.", "mean_model."))]
        return values | {name: self._prior_stds[name] * torch.randn_like(values[name]) for name in drawn}

    def _prior(self, particle: Vector, x: Any) -> tuple[Tensor, Tensor]:
        """Return a set's features, ``[examples, features]``, and prior means, ``[examples, outputs]``."""
        features = self.embeddings(particle, x)
        features = features.to(single_or_double(features.dtype))  # half precision cannot be solved in
        if self.mean_model is None:
            return features, particle["mean"].expand(features.shape[0], 1)
        return features, flat(call_with(self.mean_model, module_part(particle, "mean_model"), x)).to(features.dtype)

    def _residual(self, y: Tensor, mean: Tensor, present: Tensor) -> Tensor:
        """Return ``y − mean``, ``[examples, outputs]``, with 0 for padding."""
        targets = flat(y).to(mean.dtype)
        if self.mean_model is not None and mean.shape != targets.shape:
            raise ValueError(
                f"mean_model gives {mean.shape[1]} numbers for an example, and a target has {targets.shape[1]}: give "
                "it as many outputs"
            )
        return (targets - mean) * present[:, None]

    def _marginals(self, particle: Vector, mean: Tensor, variance: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        """Return the fields of one particle's `Samples`, each ``[query, ...]``."""
        output = mean.reshape(-1, *shape)
        spread = variance.reshape(-1, *[1] * len(shape)).expand_as(output)
        return {"outputs": output, "noise": self.noise_variance(particle, output).expand_as(output), "spread": spread}

    def _kernel(self, particle: Vector) -> Kernel:
        return functools.partial(call_with, self.kernel, module_part(particle, "kernel"))


def _others(name: str) -> str:
    """Return the learner's name of the other particles' values of a parameter."""
    return f"other_particles.{key_of(name)}"


def _prior_std(name: str, value: Tensor, weight_std: float, bias_std: float) -> float:
    """Return the hyper-prior's standard deviation: 1 for logarithms of the kernel and the noise."""
    if name.startswith(("kernel.", "noise.")):
        return 1.0
    return weight_std if value.ndim > 1 else bias_std
