"""A model adapted to one task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.attention import differentiable_attention
from lightning_meta.episode import Support
from lightning_meta.losses import takes_class_labels
from lightning_meta.task import MetaParameters

if TYPE_CHECKING:
    from lightning_meta.learner import MetaLearner


class Prediction(NamedTuple):
    """A prediction with its uncertainty, split where the learner can tell the parts.

    Attributes:
        mean: Class probabilities ``[query, classes]`` (for binary cross-entropy, of the positive class), or the
            regression output.
        total: Uncertainty of the prediction: entropy in nats ``[query]``, or variance. None for a regression
            learner without a noise model.
        aleatoric: The part that more support examples would not remove.
        epistemic: The part that they would; None (absent, not zero) for learners of a single point.
    """

    mean: Tensor
    total: Tensor | None
    aleatoric: Tensor | None
    epistemic: Tensor | None


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
        """Return logits or regression output ``[query, ...]`` for inputs ``[query, ...]``."""
        with torch.no_grad(), differentiable_attention():
            return self._learner.evaluation_output(self._meta, self.state, self._support, x)

    def predict(self, x: Any) -> Prediction:
        """Return the predictive mean and its uncertainty for inputs ``[query, ...]``."""
        output = self(x)
        if isinstance(self._learner.loss_fn, nn.BCEWithLogitsLoss):
            probabilities = output.sigmoid()
            entropy = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
        elif takes_class_labels(self._learner.loss_fn) or _are_labels(self._support.y, output):
            probabilities = output.softmax(1)
            entropy = torch.special.entr(probabilities).sum(1)
        else:
            return Prediction(output, None, None, None)
        return Prediction(probabilities, entropy, entropy, None)


def _are_labels(targets: Any, output: Tensor) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point() and output.ndim == targets.ndim + 1
