"""`ScaledScores`: the base of classifiers whose scores are similarities times a number."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_rate
from lightning_meta.episodes import MetaParameters
from lightning_meta.learners import SupportClassLearner
from lightning_meta.likelihoods import LossFunction


class ScaledScores(SupportClassLearner):
    """Base of classifiers whose scores are similarities times a scale, the inverse of the softmax's temperature.

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        scale: What similarities are multiplied by, positive.
        learn_scale: Whether the scale is learned with the model, by its logarithm, starting at ``scale``.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        scale: float = 1.0,
        learn_scale: bool = False,
        **options: Any,
    ) -> None:
        check_rate("scale", scale)
        super().__init__(model, loss_fn, **options)
        self.scale = scale
        like = next(model.parameters(), torch.empty(0))
        self.log_scale = nn.Parameter(like.new_tensor(math.log(scale))) if learn_scale else None

    def scaled(self, meta: MetaParameters, similarities: Tensor) -> Tensor:
        """Return similarities ``[query, ...]`` times the scale."""
        return similarities * (self.scale if self.log_scale is None else meta["log_scale"].exp())
