"""`BayesianLearner`: what the learners of a task's posterior have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.episodes.task_result import MetaParameters
from lightning_meta.learners.gradient_learner import GradientLearner
from lightning_meta.learners.per_task import module_part
from lightning_meta.likelihoods.losses import LossFunction, required_likelihood
from lightning_meta.likelihoods.noise import ObservationNoise
from lightning_meta.likelihoods.predictive import Samples, log_likelihood, mean_output, mixture_log_likelihood


class BayesianLearner(GradientLearner):
    """Base of the algorithms that adapt a distribution: the loss names the likelihood, outputs come as draws.

    ``nn.CrossEntropyLoss`` is a categorical likelihood, ``nn.BCEWithLogitsLoss`` a Bernoulli one, ``nn.MSELoss`` a
    Gaussian one with learned or given noise. A derived class implements `inner_loop`, `task_loss` and `query_samples`.

    Args:
        model: The model.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        observation_std: The standard deviation of a Gaussian likelihood's noise, in the targets' units; None: learned.
        normalize_steps: Whether inner rates are multiplied by the noise's variance and divided by the number of
            examples: ``inner_lr`` is then the rate on the mean cross-entropy, or on half the squared error of an
            example, whatever the noise; otherwise steps are taken on the sum of log-likelihoods, as in the papers.
        **options: As in `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If the loss is no negative log-likelihood.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        observation_std: float | None = None,
        normalize_steps: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        self.likelihood = required_likelihood(self.loss_fn)
        self.normalize_steps = normalize_steps
        self.noise = ObservationNoise(self.likelihood, next(model.parameters()).detach(), observation_std)

    ignores_labels = False

    @abstractmethod
    def query_samples(self, meta: MetaParameters, state: Any, x: Any) -> Samples:
        """Return draws from the task's posterior, as their outputs on inputs ``[query, ...]``."""

    def query_output(self, meta: MetaParameters, state: Any, x: Any) -> Tensor:
        """Return the posterior-predictive mean ``[query, ...]`` on inputs ``[query, ...]``."""
        return mean_output(self.likelihood, self.query_samples(meta, state, x))

    def noise_variance(self, meta: MetaParameters, like: Tensor) -> Tensor:
        """The noise's variance, a scalar; 1 where the likelihood has none."""
        return self.noise.variance(module_part(meta, "noise"), like)

    def with_noise(self, meta: MetaParameters, outputs: Tensor, spread: Tensor | None = None) -> Samples:
        """Draws ``[samples, query, ...]`` with this learner's noise."""
        if self.likelihood != "gaussian":
            return Samples(outputs)
        return Samples(outputs, self.noise_variance(meta, outputs).expand_as(outputs), spread)

    def summed_log_likelihood(self, meta: MetaParameters, output: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """One model's log-likelihood of a set, summed over the examples that count."""
        values = log_likelihood(self.likelihood, self.with_noise(meta, output[None]), y)[0]
        return values.sum() if mask is None else torch.where(mask, values, 0).sum()

    def predictive_nll(self, samples: Samples, y: Tensor, mask: Tensor | None) -> Tensor:
        """The mean negative log-likelihood of the predictive distribution."""
        values = -mixture_log_likelihood(self.likelihood, samples, y)
        return values.mean() if mask is None else torch.where(mask, values, 0).sum() / mask.sum()

    def step_size(self, meta: MetaParameters, y: Tensor, mask: Tensor | None) -> Tensor:
        """The rate of an inner step on a set with these targets, a scalar; it may depend on learned noise."""
        like = next(self.model.parameters())
        if not self.normalize_steps:
            return like.new_tensor(self.inner_lr)
        examples = y.shape[0] if mask is None else mask.sum()
        return self.inner_lr * self.noise_variance(meta, like) / examples
