"""Probabilistic MAML (PLATIPUS).

Paper: Finn, Xu, Levine, "Probabilistic Model-Agnostic Meta-Learning", NeurIPS 2018, arXiv 1806.02817.

Meta-learns a Gaussian over initializations θ. In tests (algorithm 2) a task's initializations are drawn from a prior
that has seen the support set S, and each takes K gradient steps on S:

    p(θ | S) = N(μ − γ_p ∘ ∇L_S(μ), σ²),        θ ~ p(θ | S),        φ = θ − α ∇L_S(θ)

In training (algorithm 1) they are drawn from an approximate posterior that has seen the query set Q:

    q(θ | Q) = N(μ − γ_q ∘ ∇L_Q(μ), v_q),       θ ~ q(θ | Q),        φ = θ − α ∇L_S(θ)

The meta-loss is the negative of the bound on the query set's likelihood, divided by the number of queries. Its gradient
in μ, σ², v_q, γ_p and γ_q goes through the inner steps and both means:

    mean over queries of −E_q log p(y | x, φ)  +  (w / |Q|) KL(q(θ | Q) ‖ p(θ | S))

Differences from the paper:
- The divergence has a weight w, and the paper's bound has w = 1. For networks it is far below 1: their thousands of
  parameters would otherwise drown a few queries, and no draw would carry what they tell.
- A part of the parameters can be random and adapt (``adapt``); tasks share the others, which are meta-learned.
- σ and v_q are learned by their logarithms. γ_p and γ_q are vectors, start at one number, and are unconstrained.
- For regressions the noise of the likelihood is learned, and inner steps are taken on half the mean squared error.
- What is reported as "before adaptation" are draws from N(μ, σ²), which has not seen the support set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner import InnerRates, adapted_names
from lightning_meta.inner.inner_loop import InnerStep, run_through
from lightning_meta.inner.names import key_of
from lightning_meta.inner.variational import DiagonalGaussian, gaussian_kl
from lightning_meta.inner.vectors import Vector, add
from lightning_meta.learners import BayesianLearner, module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples, mean_output


class PLATIPUS(BayesianLearner):
    """Probabilistic MAML: gradient steps from a random initialization (PLATIPUS; Finn, Xu and Levine, 2018).

    The model's own parameters are the means μ.

    Args:
        model: The model, whose distribution of initializations is meta-learned.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        inner_lr: α.
        inner_steps: K.
        num_samples: Draws of the initialization in training.
        eval_num_samples: Draws of the initialization in `adapt` and evaluation.
        kl_weight: w, the weight of the divergence; 1 is the paper's bound.
        initial_log_std: The initial value of log σ and of half the logarithm of v_q.
        prior_lr: The initial value of γ_p; None: ``inner_lr``.
        posterior_lr: The initial value of γ_q; None: ``inner_lr``.
        adapt: The parameters that are random and adapt: "all", "head", "body" or name patterns, as in `MAML`.
        normalize_steps: Whether steps, those of γ_p and γ_q too, are taken on mean losses; see `BayesianLearner`.
        **options: As in `BayesianLearner`, `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, a pattern matches no parameter, or the loss is not a likelihood.
        TypeError: If an argument is unknown, or the model has layers that cannot run per task.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import PLATIPUS
        >>> learner = PLATIPUS(nn.Linear(3, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=3)
        >>> task = learner.adapt(torch.randn(5, 3), torch.randn(5, 1))  # five labelled examples
        >>> task.predict(torch.randn(7, 3)).epistemic.shape  # the variance among the draws
        torch.Size([7, 1])
    """

    is_stochastic = True

    diagnostic_names = ("nll", "kl")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        num_samples: int = 1,
        eval_num_samples: int = 10,
        kl_weight: float = 0.01,
        initial_log_std: float = -4.0,
        prior_lr: float | None = None,
        posterior_lr: float | None = None,
        adapt: str | Sequence[str] = "all",
        normalize_steps: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            model, loss_fn, normalize_steps=normalize_steps, inner_lr=inner_lr, inner_steps=inner_steps, **options
        )
        arguments.check_count("num_samples", num_samples)
        arguments.check_count("eval_num_samples", eval_num_samples)
        arguments.check_rate("kl_weight", kl_weight)
        rates = {"prior_lr": prior_lr, "posterior_lr": posterior_lr}
        for name, rate in rates.items():
            if rate is not None:
                arguments.check_rate(name, rate)
        self.num_samples = num_samples
        self.eval_num_samples = eval_num_samples
        self.kl_weight = kl_weight
        self.adapted_names = adapted_names(model, adapt)
        parameters = dict(model.named_parameters())
        adapted = {name: parameters[name] for name in self.adapted_names}

        def log_stds() -> nn.ParameterDict:
            return nn.ParameterDict(
                {key_of(name): nn.Parameter(torch.full_like(p, initial_log_std)) for name, p in adapted.items()}
            )

        self.prior_log_std = log_stds()
        self.posterior_log_std = log_stds()
        self.prior_rates, self.posterior_rates = (
            InnerRates(adapted, inner_lr if rate is None else rate, 1, "element") for rate in rates.values()
        )

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the task's models in evaluation: draws from N(μ, σ²), then draws from p(θ | S) after 1, 2, ... steps.

        Their states are lists of ``eval_num_samples`` dictionaries of parameters, and differ by adaptation alone.
        """
        prior, means = self.prior(meta, support), self._means(meta)
        starts = [_drawn(prior) for _ in range(self.eval_num_samples)]
        unseen = {name: means[name] - mean for name, mean in prior.mean.items()}
        yield InnerStep([add(start, unseen) for start in starts], None)
        for together in zip(*(self._steps(meta, start, support, steps) for start in starts), strict=True):
            states, losses = zip(*together, strict=True)
            yield InnerStep(list(states), torch.stack(losses).mean())

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the negative bound on the queries' likelihood under q, per query, and the report."""
        queries = Support(task.query_x, task.query_y, task.query_mask)
        prior, posterior = self.prior(meta, task.support), self.posterior(meta, queries)
        states, support_losses = [], []
        for _ in range(self.num_samples):
            state, losses = run_through(self._steps(meta, _drawn(posterior), task.support, self.inner_steps))
            states.append(state)
            support_losses.append(losses)
        samples = self.query_samples(meta, states, task.query_x)
        count = task.query_y.shape[0] if task.query_mask is None else task.query_mask.sum()
        logs = [self.summed_log_likelihood(meta, each, task.query_y, task.query_mask) for each in samples.outputs]
        divergence = gaussian_kl(posterior, prior)
        loss = (self.kl_weight * divergence - torch.stack(logs).mean()) / count
        diagnostics = {
            "nll": self.predictive_nll(samples, task.query_y, task.query_mask),
            "kl": divergence,
        }
        output = mean_output(self.likelihood, samples)
        return loss, TaskResult(loss, output[None], torch.stack(support_losses).mean(0), diagnostics=diagnostics)

    def query_samples(self, meta: MetaParameters, state: list[Vector], x: Any) -> Samples:
        """Return every drawn model's output, ``[draws, query, ...]``."""
        # In a loop, because derivatives of a vectorized model are wrong for some layers.
        shared = self.model_parameters(meta)
        return self.with_noise(meta, torch.stack([self.call_model({**shared, **drawn}, x) for drawn in state]))

    def prior(self, meta: MetaParameters, support: Support) -> DiagonalGaussian:
        """Return p(θ | S), the distribution of the initialization given the support set."""
        return self._conditioned(meta, "prior", self.prior_rates, support)

    def posterior(self, meta: MetaParameters, queries: Support) -> DiagonalGaussian:
        """Return q(θ | Q), from which training draws the initialization."""
        return self._conditioned(meta, "posterior", self.posterior_rates, queries)

    def _conditioned(self, meta: MetaParameters, part: str, learned: InnerRates, examples: Support) -> DiagonalGaussian:
        means, log_std = self._means(meta), module_part(meta, f"{part}_log_std")
        slopes = grad(lambda means: self._steps_loss(meta, means, examples))(means)
        rates = learned.at(0, self.adapted_names, module_part(meta, f"{part}_rates"))
        shifted = {name: mean - rates[name] * slopes[name] for name, mean in means.items()}
        return DiagonalGaussian(shifted, {name: log_std[key_of(name)] for name in means})

    def _means(self, meta: MetaParameters) -> Vector:
        return {name: meta[f"model.{name}"] for name in self.adapted_names}

    def _steps_loss(self, meta: MetaParameters, adapted: Vector, examples: Support) -> Tensor:
        """Return the loss on whose gradient steps are taken with their rates as they are."""
        output = self.call_model({**self.model_parameters(meta), **adapted}, examples.x)
        scale = self.step_size(meta, examples.y, examples.mask) / self.inner_lr
        return -scale * self.summed_log_likelihood(meta, output, examples.y, examples.mask)

    def _steps(self, meta: MetaParameters, start: Vector, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the parameters after 1, 2, ..., ``steps`` inner steps, and the support loss before each."""
        adapted, state = start, self.inner_optimizer.init(start)
        rates = dict.fromkeys(start, self.inner_lr)
        for step in range(steps):
            slopes, loss = grad_and_value(lambda at: self._steps_loss(meta, at, support))(adapted)
            adapted, state = self.inner_optimizer.update(adapted, slopes, state, rates, step)
            yield InnerStep(adapted, loss)


def _drawn(distribution: DiagonalGaussian) -> Vector:
    mean, log_std = distribution
    return {name: value + log_std[name].exp() * torch.randn_like(value) for name, value in mean.items()}
