"""A model adapted to one task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_meta.attention import differentiable_attention
from lightning_meta.episode import Support
from lightning_meta.losses import likelihood_of
from lightning_meta.predictive import Likelihood, Prediction, Samples, mean_output, predict
from lightning_meta.task import MetaParameters

if TYPE_CHECKING:
    from lightning_meta.learner import MetaLearner


class AdaptedTask:
    """What `MetaLearner.adapt` returns: call it on inputs.

    Attributes:
        state: What was adapted, in the algorithm's own form; for MAML a dictionary of parameters.
    """

    def __init__(self, learner: MetaLearner, meta: MetaParameters, state: Any, support: Support) -> None:
        self.state = state
        self._learner = learner
        self._meta = meta
        self._support = support

    def __call__(self, x: Any) -> Tensor:
        """Return logits or regression output ``[query, ...]`` for inputs ``[query, ...]``.

        A Bayesian learner returns the posterior-predictive mean: the logarithm of mean probabilities, or the
        mean output.
        """
        return mean_output(self._likelihood, self.samples(x))

    def predict(self, x: Any) -> Prediction:
        """Return the predictive mean and its uncertainty for inputs ``[query, ...]``."""
        samples = self.samples(x)
        likelihood = self._likelihood
        if likelihood is None and _are_labels(self._support.y, samples.outputs[0]):
            likelihood = "categorical"
        return predict(likelihood, samples, self._learner.draws_together)

    def samples(self, x: Any) -> Samples:
        """Return draws from the posterior over models, as their outputs on inputs ``[query, ...]``."""
        with torch.no_grad(), differentiable_attention():
            return self._learner.evaluation_samples(self._meta, self.state, self._support, x)

    @property
    def _likelihood(self) -> Likelihood | None:
        return likelihood_of(self._learner.loss_fn)


def _are_labels(targets: Any, output: Tensor) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point() and output.ndim == targets.ndim + 1
