"""Amortized Bayesian meta-learning by gradient descent.

Paper: Ravi, Beatson, "Amortized Bayesian Meta-Learning", ICLR 2019.

θ = (μ, σ) is a factorized Gaussian over the model's parameters. It is the prior of each task's parameters φ and the
initialization of the task's variational parameters λ = (m, log σ_q). On a task, K gradient steps from λ = θ minimize
the support set's negative evidence lower bound (algorithm 1)

    −E_{q_λ} log p(S | φ) + w KL(q_λ ‖ p_θ)

The meta-loss, differentiated through the steps, is

    −E_{q_λ^K} log p(S ∪ Q | φ) + w KL(q_λ^K ‖ p_θ) − (1/T) log p(θ),    p(θ) = N(μ; 0, I) Π Gamma(1/σ²; a₀, b₀)

with T training tasks, a₀ = 1, b₀ = 0.01 as in the paper. Expectations are means over draws of outputs (linear layers:
local reparameterization) or weights (other layers).

Differences from the paper:
- A convolution draws one set of weights for all examples; the paper uses Flipout, which draws signs for each example.
- w is one weight for both divergences.
- Steps can be normalized by noise and set size (``normalize_steps``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner.inner_loop import InnerStep, run_through
from lightning_meta.inner.names import key_of
from lightning_meta.inner.variational import (
    DiagonalGaussian,
    call_with_random_parameters,
    gaussian_kl,
    linear_layers,
)
from lightning_meta.learners import BayesianLearner, module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples, mean_output

_GAMMA_SHAPE, _GAMMA_RATE = 1.0, 0.01


class ABML(BayesianLearner):
    """Amortized Bayesian meta-learning (ABML; Ravi and Beatson, 2019): gradient-amortized variational inference.

    The model's own parameters are the prior's means μ.

    Args:
        model: The model whose prior is meta-learned.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        num_samples: Draws for each expectation in training.
        eval_num_samples: Draws of the predictive distribution in evaluation.
        kl_weight: w, the weight of the divergences; well under 1 for networks.
        initial_log_std: The initial value of the prior's log σ.
        num_tasks: T, the weight of the data beside the hyper-prior.
        inner_steps: K.
        **options: As in `BayesianLearner`, `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, or the loss is not a likelihood.
        TypeError: If an argument is unknown, or the model has layers that cannot run per task.
    """

    is_stochastic = True

    diagnostic_names = ("nll", "kl")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        num_samples: int = 2,
        eval_num_samples: int = 10,
        kl_weight: float = 0.01,
        initial_log_std: float = -4.0,
        num_tasks: int = 100_000,
        inner_steps: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, inner_steps=inner_steps, **options)
        arguments.check_count("num_samples", num_samples)
        arguments.check_count("eval_num_samples", eval_num_samples)
        arguments.check_count("num_tasks", num_tasks)
        arguments.check_rate("kl_weight", kl_weight)
        self.num_samples = num_samples
        self.eval_num_samples = eval_num_samples
        self.kl_weight = kl_weight
        self.num_tasks = num_tasks
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.log_std = nn.ParameterDict(
            {key_of(name): nn.Parameter(torch.full_like(p, initial_log_std)) for name, p in trainable.items()}
        )
        self._local = linear_layers(model)

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the task's `DiagonalGaussian` after 0, 1, ..., ``steps`` steps on the support set's evidence bound."""
        prior = self._prior(meta)
        posterior = prior
        rate = self.step_size(meta, support.y, support.mask)

        def bound(posterior: DiagonalGaussian) -> Tensor:
            return self._negative_bound(meta, prior, posterior, support)

        yield InnerStep(posterior, None)
        point = posterior.flatten()
        state, rates = self.inner_optimizer.init(point), dict.fromkeys(point, rate)
        for step in range(steps):
            slopes, loss = grad_and_value(bound)(posterior)
            point, state = self.inner_optimizer.update(point, slopes.flatten(), state, rates, step)
            posterior = DiagonalGaussian.unflatten(point)
            yield InnerStep(posterior, loss)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the negative evidence bound of support and query sets together, and the report.

        The two sets are passed through the model separately, as in evaluation, for batch normalization.
        """
        posterior, losses = run_through(self.inner_loop(meta, task.support, self.inner_steps))
        prior = self._prior(meta)
        divergence = gaussian_kl(posterior, prior)
        samples = self._draw(meta, posterior, task.query_x, self.num_samples)
        bound = self._negative_bound(meta, prior, posterior, task.support) - self._expected(
            meta, samples.outputs, Support(task.query_x, task.query_y, task.query_mask)
        )
        loss = bound - _log_hyper_prior(prior) / self.num_tasks
        diagnostics = {
            "nll": self.predictive_nll(samples, task.query_y, task.query_mask),
            "kl": divergence,
        }
        output = mean_output(self.likelihood, samples)
        return loss, TaskResult(loss, output[None], losses, diagnostics=diagnostics)

    def query_samples(self, meta: MetaParameters, state: DiagonalGaussian, x: object) -> Samples:
        """Return outputs of models drawn from the posterior, ``[eval_num_samples, query, ...]``."""
        return self._draw(meta, state, x, self.eval_num_samples)

    def _prior(self, meta: MetaParameters) -> DiagonalGaussian:
        mean, log_std = self.model_parameters(meta), module_part(meta, "log_std")
        return DiagonalGaussian(mean, {name: log_std[key_of(name)] for name in mean})

    def _draw(self, meta: MetaParameters, posterior: DiagonalGaussian, x: object, count: int) -> Samples:
        # In a loop, because derivatives of a vectorized model are wrong for some layers.
        outputs = [call_with_random_parameters(self.call_model, posterior, self._local, x) for _ in range(count)]
        return self.with_noise(meta, torch.stack(outputs))

    def _negative_bound(
        self, meta: MetaParameters, prior: DiagonalGaussian, posterior: DiagonalGaussian, examples: Support
    ) -> Tensor:
        drawn = self._draw(meta, posterior, examples.x, self.num_samples).outputs
        return self.kl_weight * gaussian_kl(posterior, prior) - self._expected(meta, drawn, examples)

    def _expected(self, meta: MetaParameters, drawn: Tensor, examples: Support) -> Tensor:
        """Return the mean over draws ``[samples, examples, ...]`` of the summed log-likelihood."""
        sums = [self.summed_log_likelihood(meta, output, examples.y, examples.mask) for output in drawn]
        return torch.stack(sums).mean()


def _log_hyper_prior(prior: DiagonalGaussian) -> Tensor:
    """Return the log-density of θ: standard normal means, Gamma precisions."""
    total = []
    for mean, log_std in zip(prior.mean.values(), prior.log_std.values(), strict=True):
        total.append(-0.5 * (mean.square() + math.log(2 * math.pi)).sum())
        log_precision = -2 * log_std
        normalizer = _GAMMA_SHAPE * math.log(_GAMMA_RATE) - math.lgamma(_GAMMA_SHAPE)
        gamma = normalizer + (_GAMMA_SHAPE - 1) * log_precision - _GAMMA_RATE * log_precision.exp()
        total.append(gamma.sum())
    return torch.stack(total).sum()
