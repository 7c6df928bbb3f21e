"""Search for an inner learning rate; Lightning's ``Tuner.lr_find(..., update_attr=False)`` finds an outer one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_meta import arguments
from lightning_meta.episodes.episode import Episode
from lightning_meta.inner import InnerRates
from lightning_meta.learners.task_learner import TaskLearner


def inner_rate_losses(learner: TaskLearner, batch: Episode, rates: Sequence[float]) -> Tensor:
    """Return the mean query loss after adaptation with each inner rate, ``[rates]``; infinite where it diverges.

    Call it with validation tasks, before training or after, and take the rate with the lowest loss. The learner's own
    rate stays as it is.

    Raises:
        ValueError: If a rate is not positive, or the learner's rates are learned.

    Example:
        >>> from lightning_meta import MAML, MLP, SinusoidDataModule
        >>> batch = next(iter(SinusoidDataModule().val_dataloader()))
        >>> inner_rate_losses(MAML(MLP(), torch.nn.MSELoss()), batch, [0.001, 0.01, 0.1]).shape
        torch.Size([3])
    """
    for rate in rates:
        arguments.check_rate("rates", rate)
    modules = [module for module in learner.modules() if isinstance(module, InnerRates)]
    if any(list(module.parameters()) for module in modules):
        raise ValueError("the learner's inner rates are learned: there is none to search for")
    holders: list[Any] = [learner, *modules]
    own = learner.inner_lr
    losses = []
    try:
        for rate in rates:
            for holder in holders:
                holder.inner_lr = rate
            try:
                losses.append(learner.evaluate(batch).loss.mean())
            except FloatingPointError:
                losses.append(torch.tensor(torch.inf))
    finally:
        for holder in holders:
            holder.inner_lr = own
    return torch.stack([loss.cpu() for loss in losses])
