"""`PosteriorLearner`: the base of the algorithms that predict from a distribution over models."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.episodes.task_result import MetaParameters
from lightning_meta.learners.per_task import module_part
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import LossFunction, required_likelihood
from lightning_meta.likelihoods.noise import ObservationNoise
from lightning_meta.likelihoods.predictive import Samples, mean_output, mixture_log_likelihood


class PosteriorLearner(TaskLearner):
    """Base of the algorithms that adapt a distribution over models or functions; `BayesianLearner` adds inner steps.

    The loss names the likelihood: ``nn.CrossEntropyLoss`` is categorical, ``nn.BCEWithLogitsLoss`` Bernoulli,
    ``nn.MSELoss`` Gaussian with learned or given noise. A new algorithm implements `adapt_task` and `query_samples`,
    and may override `task_loss`.

    Args:
        model: The model.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        observation_std: The standard deviation of a Gaussian likelihood's noise, in the targets' units; None: learned.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If the loss is not one of these.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        observation_std: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        self.likelihood = required_likelihood(self.loss_fn)
        self.noise = ObservationNoise(
            self.likelihood, next(model.parameters(), torch.zeros(())).detach(), observation_std
        )

    ignores_labels = False
    has_noise = True

    @abstractmethod
    def query_samples(self, meta: MetaParameters, state: Any, x: Any) -> Samples:
        """Return draws from the task's posterior, as their outputs on inputs ``[query, ...]``."""

    def query_output(self, meta: MetaParameters, state: Any, x: Any) -> Tensor:
        """Return the posterior-predictive mean ``[query, ...]`` on inputs ``[query, ...]``."""
        return mean_output(self.likelihood, self.query_samples(meta, state, x))

    def noise_variance(self, meta: MetaParameters, like: Tensor) -> Tensor:
        """Return the noise's variance, a scalar; 1 for likelihoods without noise."""
        return self.noise.variance(module_part(meta, "noise"), like)

    def with_noise(self, meta: MetaParameters, outputs: Tensor, spread: Tensor | None = None) -> Samples:
        """Return draws ``[samples, query, ...]`` with this learner's noise."""
        if self.likelihood != "gaussian":
            return Samples(outputs)
        return Samples(outputs, self.noise_variance(meta, outputs).expand_as(outputs), spread)

    def predictive_nll(self, samples: Samples, y: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean negative log-likelihood of the predictive distribution."""
        values = -mixture_log_likelihood(self.likelihood, samples, y)
        return values.mean() if mask is None else torch.where(mask, values, 0).sum() / mask.sum()
