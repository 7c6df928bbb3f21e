"""`BayesianLearner`: the base of the algorithms that adapt a posterior by inner steps."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.episodes.task_result import MetaParameters
from lightning_meta.learners.gradient_learner import GradientLearner
from lightning_meta.learners.posterior_learner import PosteriorLearner
from lightning_meta.likelihoods.losses import LossFunction
from lightning_meta.likelihoods.predictive import log_likelihood


class BayesianLearner(PosteriorLearner, GradientLearner):
    """Base of the algorithms that adapt a distribution over models by inner steps.

    The loss names the likelihood: ``nn.CrossEntropyLoss`` is categorical, ``nn.BCEWithLogitsLoss`` Bernoulli,
    ``nn.MSELoss`` Gaussian with learned or given noise. A new algorithm implements `inner_loop`, `query_samples`, and
    `task_loss` or `task_gradient`.

    Args:
        model: The model.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        observation_std: The standard deviation of a Gaussian likelihood's noise, in the targets' units; None: learned.
        normalize_steps: Whether inner rates are multiplied by the noise's variance and divided by the number of
            examples. ``inner_lr`` is then the rate on the mean cross-entropy, or on half the mean squared error. False:
            steps are taken on the sum of log-likelihoods, as in the papers.
        **options: As in `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If the loss is not one of these.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        observation_std: float | None = None,
        normalize_steps: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, observation_std, **options)
        self.normalize_steps = normalize_steps

    def summed_log_likelihood(self, meta: MetaParameters, output: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Return one model's log-likelihood of a set, summed over the examples that the mask includes."""
        values = log_likelihood(self.likelihood, self.with_noise(meta, output[None]), y)[0]
        return values.sum() if mask is None else torch.where(mask, values, 0).sum()

    def step_size(self, meta: MetaParameters, y: Tensor, mask: Tensor | None) -> Tensor:
        """Return the rate of an inner step on a set with these targets, a scalar; it may depend on learned noise."""
        like = next(self.model.parameters())
        if not self.normalize_steps:
            return like.new_tensor(self.inner_lr)
        examples = y.shape[0] if mask is None else mask.sum()
        return self.inner_lr * self.noise_variance(meta, like) / examples
