"""The base of the baselines that solve a task on fixed features."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_module, check_rate
from lightning_meta.episodes import MetaParameters
from lightning_meta.learners import TaskLearner
from lightning_meta.likelihoods import LossFunction


class FeatureLearner(TaskLearner):
    """Base of penalized linear models of fixed features.

    Args:
        model: Gives the features; its parameters are frozen, in place. None: the inputs, flattened.
        loss_fn: The loss to report; it does not change the solution.
        penalty: λ, positive.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If the penalty is not positive.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        loss_fn: nn.Module | LossFunction | None = None,
        penalty: float = 1.0,
        **options: Any,
    ) -> None:
        check_rate("penalty", penalty)
        model = nn.Identity() if model is None else model
        check_module("model", model)
        super().__init__(model, loss_fn, **options)
        self.penalty = penalty
        # Afterwards, because checkpoints keep models as they were passed only if these were not frozen.
        model.requires_grad_(False)
        self._frozen = frozenset(f"model.{name}" for name, _ in model.named_parameters())

    def features(self, meta: MetaParameters, x: Any) -> Tensor:
        """Return the model's outputs as real numbers, ``[examples, features]``."""
        output = self.call_model(self.model_parameters(meta), x)
        output = output if output.is_floating_point() else output.to(torch.get_default_dtype())
        return output[:, None] if output.ndim == 1 else output.flatten(1)
