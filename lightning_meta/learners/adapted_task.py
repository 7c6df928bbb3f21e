"""A model adapted to one task."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_meta.likelihoods.losses import LossFunction, likelihood_of
from lightning_meta.likelihoods.predictive import Likelihood, Prediction, Samples, mean_output, predict


class AdaptedTask:
    """What `TaskLearner.adapt` returns: call it on inputs.

    Attributes:
        state: The adapted state, in the algorithm's own form; for MAML a dictionary of parameters.
        samples: Returns draws from the posterior over models, as their outputs on inputs ``[query, ...]``.

    Args:
        state: See above.
        samples: See above.
        loss_fn: The learner's loss.
        support_y: The support set's targets.
        draws_together: As `TaskLearner.draws_together`.
    """

    def __init__(
        self,
        state: Any,
        samples: Callable[[Any], Samples],
        loss_fn: LossFunction,
        support_y: Any,
        draws_together: int = 1,
    ) -> None:
        self.state = state
        self.samples = samples
        self._loss_fn = loss_fn
        self._support_y = support_y
        self._draws_together = draws_together

    def __call__(self, x: Any) -> Tensor:
        """Return logits or regression outputs ``[query, ...]`` for inputs ``[query, ...]``.

        For Bayesian learners the posterior-predictive mean: the logarithm of mean probabilities, or the mean output.
        """
        return mean_output(likelihood_of(self._loss_fn), self.samples(x))

    def predict(self, x: Any) -> Prediction:
        """Return the predictive mean and its uncertainty for inputs ``[query, ...]``."""
        samples = self.samples(x)
        likelihood: Likelihood | None = likelihood_of(self._loss_fn)
        if likelihood is None and _are_labels(self._support_y, samples.outputs[0]):
            likelihood = "categorical"
        return predict(likelihood, samples, self._draws_together)


def _are_labels(targets: Any, output: Tensor) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point() and output.ndim == targets.ndim + 1
