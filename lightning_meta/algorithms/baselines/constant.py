"""Baselines of regression that do not look at inputs."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.learners import TaskLearner
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.losses import likelihood_of


class ConstantTarget(TaskLearner):
    """Base of predictors that give all queries of a task the same output; a derived class implements `adapt_task`.

    Args:
        loss_fn: The loss to report; None: ``nn.MSELoss()``.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If the loss is one of classification.
    """

    def __init__(self, loss_fn: nn.Module | LossFunction | None = None, **options: Any) -> None:
        super().__init__(nn.Identity(), nn.MSELoss() if loss_fn is None else loss_fn, **options)
        if likelihood_of(self.loss_fn) in ("categorical", "bernoulli"):
            raise ValueError(
                f"loss_fn={loss_fn!r} is one of classes, and {type(self).__name__} predicts real numbers: use a loss "
                "such as nn.MSELoss(), or another baseline"
            )

    @abstractmethod
    def adapt_task(self, meta: MetaParameters, support: Support) -> Tensor:
        """Return the output for every query, of a target's shape."""

    def query_output(self, meta: MetaParameters, state: Tensor, x: Any) -> Tensor:
        """Return the same output for each query, ``[query, ...]``."""
        return state.expand(tree_leaves(x)[0].shape[0], *state.shape)

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of a target."""
        return support.y.shape[2:]


class MeanTarget(ConstantTarget):
    """Predicts the mean of the support set's targets. Arguments as in `ConstantTarget`.

    Example:
        >>> import torch
        >>> from lightning_meta.algorithms.baselines import MeanTarget
        >>> task = MeanTarget().adapt(torch.randn(3, 8), torch.tensor([[1.0], [2.0], [6.0]]))
        >>> task(torch.randn(2, 8))
        tensor([[3.],
                [3.]])
    """

    def adapt_task(self, meta: MetaParameters, support: Support) -> Tensor:
        """Return the mean target, of a target's shape."""
        if support.mask is None:
            return support.y.mean(0)
        counts = support.mask.reshape(-1, *[1] * (support.y.ndim - 1))  # [support, 1, ...]
        return torch.where(counts, support.y, 0).sum(0) / support.mask.sum()


class LastTarget(ConstantTarget):
    """Predicts the last of the support set's targets, for tasks in order of time. Arguments as in `ConstantTarget`."""

    def adapt_task(self, meta: MetaParameters, support: Support) -> Tensor:
        """Return the last target that is no padding, of a target's shape."""
        if support.mask is None:
            return support.y[-1]
        positions = torch.arange(len(support.y), device=support.y.device)
        last = torch.where(support.mask, positions, -1).argmax()
        return support.y.index_select(0, last[None])[0]
