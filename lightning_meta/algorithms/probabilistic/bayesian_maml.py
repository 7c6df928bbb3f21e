"""Bayesian MAML.

Paper: Yoon, Kim, Dia, Kim, Bengio, Ahn, "Bayesian Model-Agnostic Meta-Learning", NeurIPS 2018, arXiv 1806.03836.

Meta-learns M particles θ^m, the starting points of each task's particles. After n steps of Stein variational gradient
descent on ``log p(S | φ) + log p(φ)`` (equation 5) these approximate the task's posterior.

In the hierarchical model tasks share a prior, ``p(θ | D) ∝ p(θ) Π_τ ∫ p(φ_τ | θ) exp(−L_τ(φ_τ)) dφ_τ``. The adapted
particles φ_τ^m approximate samples of a task's posterior ``p(φ_τ | S_τ, θ)`` and replace the integral over φ_τ in
predictions. The initial particles θ^m are not samples of ``p(θ | D)``. They are parameters that minimize the meta-loss,
as MAML's initialization is, and their spread depends on initialization and training. Uncertainty about θ is not
inferred.

Two meta-losses (section 3.2):

    "chaser":  Σ_m ‖φ_m^n − stop_gradient(φ_m^{n+s})‖²,  the leader φ^{n+s} going on from the chaser φ^n on S ∪ Q
    "nll":     −log mean_m p(Q | φ_m^n), per query

Time and memory are linear in M, except for the M² numbers of the kernel matrix.

Differences from the paper:
- The first particle is the given model; the others are new initializations of it.
- The chaser loss has no gradient in learned noise through the particles, because more noise would shrink each step and
  with it the loss. The noise is learned by the queries' negative log-likelihood, added with the particles held fixed.
- Steps can be normalized by noise and set size (``normalize_steps``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vjp

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult, joined_sets
from lightning_meta.inner import adapted_names
from lightning_meta.inner.inner_loop import InnerStep
from lightning_meta.inner.names import key_of
from lightning_meta.inner.particles import for_each, initialized_anew
from lightning_meta.inner.solvers.svgd import SteinStep, pull_back_svgd, svgd_step
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import BayesianLearner
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples, mean_output

MetaLoss = Literal["chaser", "nll"]


class BayesianMAML(BayesianLearner):
    """MAML of M particles that approximate each task's posterior (BMAML; Yoon et al., 2018).

    The meta-learned starting points are point estimates, not samples of ``p(θ | D)``. The adapted particles approximate
    the task's posterior. A few particles spread less than the posterior, and the more parameters, the less. Epistemic
    uncertainty treats them as independent draws (see `predict`), which compensates for a part of that.

    Args:
        model: The model whose initializations are meta-learned.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        num_particles: M. One particle is gradient ascent on the log-posterior.
        leader_steps: s, how many steps further the leader goes.
        meta_loss: "chaser" or "nll".
        prior_precision: The precision of the Gaussian prior around 0 on every adapted parameter; 0 is a flat one.
        learned_prior_precision: Whether it is learned, by its logarithm; needs the meta-loss "nll".
        particle_noise: The standard deviation of noise that makes the other particles from the model; None: they are
            new initializations, by ``reset_parameters`` of the model's layers that have it.
        adapt: The parameters that particles consist of: "all", "head" (as in the paper's few-shot experiments), "body"
            or name patterns, as in `MAML`. All tasks and particles share the others.
        **options: As in `BayesianLearner`, `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, a pattern matches no parameter, or the loss is not a likelihood.
        TypeError: If an argument is unknown, or the model has layers that cannot run per task.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        num_particles: int = 5,
        leader_steps: int = 1,
        meta_loss: MetaLoss = "chaser",
        prior_precision: float = 1e-3,
        learned_prior_precision: bool = False,
        particle_noise: float | None = None,
        adapt: str | Sequence[str] = "all",
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        arguments.check_count("num_particles", num_particles)
        arguments.check_count("leader_steps", leader_steps)
        if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules()):
            raise ValueError(
                "model has dropout, and its masks would differ between a particle's loss and its gradient: set p to 0"
            )
        arguments.check_choice("meta_loss", meta_loss, MetaLoss)
        arguments.check_nonnegative("prior_precision", prior_precision)
        if learned_prior_precision and (meta_loss != "nll" or prior_precision == 0):
            raise ValueError(
                f"learned_prior_precision=True with meta_loss={meta_loss!r} and prior_precision={prior_precision}: it "
                "needs meta_loss='nll', because a sharper prior shrinks the chaser loss, and prior_precision > 0"
            )
        if particle_noise is not None:
            arguments.check_rate("particle_noise", particle_noise)
        self.num_particles = num_particles
        self.leader_steps = leader_steps
        self.meta_loss = meta_loss
        self.prior_precision = prior_precision
        self.adapted_names = adapted_names(model, adapt)
        self.other_particles = nn.ParameterDict(
            _other_particles(model, self.adapted_names, num_particles - 1, particle_noise)
        )
        like = next(model.parameters())
        start = like.new_tensor(math.log(prior_precision)) if learned_prior_precision else None
        self.log_prior_precision = None if start is None else nn.Parameter(start)

    @property
    def diagnostic_names(self) -> tuple[str, ...]:
        """What the chaser loss logs besides the loss."""
        return ("nll", "chaser_loss") if self.meta_loss == "chaser" else ()

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the particles, by name ``[particles, ...]``, after 0, 1, ..., ``steps`` steps on the support set."""
        particles, shared = self._parted(meta)
        yield InnerStep(particles, None)
        for step in self._steps(particles, self.inner_optimizer.init(particles), shared, support, range(steps)):
            yield InnerStep(step.end, -step.log_densities.mean())

    def task_gradient(self, meta: MetaParameters, task: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        """Return the meta-loss's gradient, through the Stein steps, and the report."""
        start, shared = self._parted(meta)
        state = self.inner_optimizer.init(start)
        taken = list(self._steps(start, state, shared, task.support, range(self.inner_steps)))
        chaser = taken[-1].end
        if self.meta_loss == "chaser":
            # Only the noise learns from the likelihood here; shared parameters learn through the particles.
            direct, _, loss, samples = self._nll_slopes(chaser, shared, task)
            further = range(self.inner_steps, self.inner_steps + self.leader_steps)
            *_, last = self._steps(chaser, taken[-1].after, shared, joined_sets(task), further)
            leader = last.end
            gap = {name: chaser[name] - leader[name] for name in chaser}
            adjoint = {name: 2 * value for name, value in gap.items()}
            chased = torch.stack([value.square().sum() for value in gap.values()]).sum()
            diagnostics = {"nll": loss, "chaser_loss": chased}
            loss = chased + (loss if self.noise.log_std is not None else 0)
        else:
            direct, adjoint, loss, samples = self._nll_gradient(chaser, shared, task)
            diagnostics = {}
        rate = self.step_size(meta, task.support_y, task.support_mask)
        start_gradient, through, by_rate = pull_back_svgd(
            lambda particle, shared: self._log_posterior(particle, shared, task.support),
            taken,
            shared,
            rate,
            adjoint,
            self._vectorize,
            self.inner_optimizer,
        )
        if self.normalize_steps and "noise.log_std" in shared:  # the rate is proportional to the noise's variance
            through["noise.log_std"] = through["noise.log_std"] + 2 * rate * by_rate
        if self.meta_loss == "chaser":
            through = {n: torch.zeros_like(g) if n.startswith("noise.") else g for n, g in through.items()}
        gradient = {name: direct[name] + through[name] for name in shared} | self._joined(start_gradient)
        output = mean_output(self.likelihood, samples)
        losses = torch.stack([-step.log_densities.mean() for step in taken])
        return gradient, TaskResult(loss, output[None], losses, diagnostics=diagnostics)

    def query_samples(self, meta: MetaParameters, state: Any, x: Any) -> Samples:
        """Return every particle's output, ``[particles, query, ...]``; ``state`` are the particles."""
        _, shared = self._parted(meta)
        return self.with_noise(shared, self._outputs(state, shared, x))

    @property
    def _vectorize(self) -> bool:
        return self.execution.vectorizes

    def _parted(self, meta: MetaParameters) -> tuple[Vector, dict[str, Tensor]]:
        """Return the particles, named as in the model, and the other meta-parameters, named as in the learner."""
        particles = {}
        for name in self.adapted_names:
            first = meta[f"model.{name}"][None]
            others = meta.get(f"other_particles.{key_of(name)}")
            particles[name] = first if others is None else torch.cat([first, others])
        taken = {f"model.{name}" for name in self.adapted_names}
        taken |= {f"other_particles.{key_of(name)}" for name in self.adapted_names}
        return particles, {name: value for name, value in meta.items() if name not in taken}

    def _joined(self, particles: Vector) -> dict[str, Tensor]:
        """The reverse of `_parted` for gradients of particles."""
        gradient = {f"model.{name}": value[0] for name, value in particles.items()}
        if self.num_particles > 1:
            gradient |= {f"other_particles.{key_of(name)}": value[1:] for name, value in particles.items()}
        return gradient

    def _one_output(self, particle: Vector, shared: Mapping[str, Tensor], x: Any) -> Tensor:
        return self.call_model({**self.model_parameters(shared), **particle}, x)

    def _outputs(self, particles: Vector, shared: Mapping[str, Tensor], x: Any) -> Tensor:
        outputs: Tensor = for_each(lambda one: self._one_output(one, shared, x), self._vectorize, particles)
        return outputs

    def _log_posterior(self, particle: Vector, shared: Mapping[str, Tensor], examples: Support) -> Tensor:
        output = self._one_output(particle, shared, examples.x)
        log_likelihood = self.summed_log_likelihood(shared, output, examples.y, examples.mask)
        squares = torch.stack([value.square().sum() for value in particle.values()]).sum()
        if self.log_prior_precision is None:
            return log_likelihood - 0.5 * self.prior_precision * squares
        logarithm = shared["log_prior_precision"]
        size = sum(value.numel() for value in particle.values())
        return log_likelihood - 0.5 * logarithm.exp() * squares + 0.5 * size * logarithm

    def _steps(
        self, particles: Vector, state: Any, shared: Mapping[str, Tensor], examples: Support, steps: range
    ) -> Iterator[SteinStep]:
        rate = self.step_size(shared, examples.y, examples.mask)
        for number in steps:
            step = svgd_step(
                lambda particle, shared: self._log_posterior(particle, shared, examples),
                particles,
                shared,
                rate,
                self._vectorize,
                self.inner_optimizer,
                state,
                number,
            )
            particles, state = step.end, step.after
            yield step

    def _nll_slopes(
        self, particles: Vector, shared: dict[str, Tensor], task: Episode
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Samples]:
        """Return the queries' negative log-likelihood as a function of noise and outputs, with its gradients.

        Returns:
            The gradients in ``shared`` (0 except for the noise) and in the outputs, the value, and the outputs.
        """
        outputs = self._outputs(particles, shared, task.query_x)

        def nll(outputs: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
            return self.predictive_nll(self.with_noise(shared, outputs), task.query_y, task.query_mask)

        (by_output, direct), loss = grad_and_value(nll, argnums=(0, 1))(outputs, shared)
        return direct, by_output, loss, self.with_noise(shared, outputs)

    def _nll_gradient(
        self, particles: Vector, shared: dict[str, Tensor], task: Episode
    ) -> tuple[dict[str, Tensor], Vector, Tensor, Samples]:
        """Return the queries' negative log-likelihood with its gradients in ``shared`` and in the particles.

        As in `pull_back_svgd`, models are differentiated one particle at a time, inside of vectorization.
        """
        direct, by_output, loss, samples = self._nll_slopes(particles, shared, task)

        def pulled(particle: Vector, cotangent: Vector) -> tuple[Vector, dict[str, Tensor]]:
            def output(particle: Vector, shared: Mapping[str, Tensor]) -> Tensor:
                return self._one_output(particle, shared, task.query_x)

            gradients: tuple[Vector, dict[str, Tensor]] = vjp(output, particle, shared)[1](cotangent["output"])
            return gradients

        adjoint, by_particle = for_each(pulled, self._vectorize, particles, {"output": by_output})
        return (
            {name: direct[name] + by_particle[name].sum(0) for name in shared},
            adjoint,
            loss,
            samples,
        )


def _other_particles(
    model: nn.Module, names: tuple[str, ...], count: int, noise: float | None
) -> dict[str, nn.Parameter]:
    if count == 0:
        return {}
    own = dict(model.named_parameters())
    if noise is not None:
        return {key_of(n): nn.Parameter(_spread(own[n].detach(), count, noise)) for n in names}
    copies = [initialized_anew(model) for _ in range(count)]
    stacked = {name: torch.stack([dict(other.named_parameters())[name].detach() for other in copies]) for name in names}
    together = {name: torch.cat([own[name].detach()[None], value]) for name, value in stacked.items()}

    def alike(one: int, other: int) -> bool:
        return all(torch.equal(value[one], value[other]) for value in together.values())

    if alike(0, 1) or (count > 1 and alike(1, 2)):
        raise ValueError(
            "particles would start with equal values: no layer with an adapted parameter has a random "
            "reset_parameters(); pass particle_noise, such as particle_noise=0.1"
        )
    return {key_of(name): nn.Parameter(value) for name, value in stacked.items()}


def _spread(value: Tensor, count: int, noise: float) -> Tensor:
    return value + noise * torch.randn_like(value.expand(count, *value.shape))
