"""Losses of given inner rates; Lightning's ``Tuner.lr_find(..., update_attr=False)`` finds an outer rate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_meta import arguments
from lightning_meta.analysis.task_losses import check_has_rate, losses_by_step
from lightning_meta.episodes.episode import Episode
from lightning_meta.learners.task_learner import TaskLearner


def inner_rate_losses(learner: TaskLearner, batch: Episode, rates: Sequence[float]) -> Tensor:
    """Return the mean query loss after adaptation with each inner rate, ``[rates]``; infinite where a task diverges.

    For a learner whose rates are learned, ``rates`` are factors on them. The learner's own rate stays as it is.
    `search_rate` chooses rates and tasks itself.

    Raises:
        ValueError: If a rate is not positive, or the learner has none.

    Example:
        >>> from lightning_meta import MAML, MLP, SinusoidDataModule
        >>> batch = next(iter(SinusoidDataModule().val_dataloader()))
        >>> inner_rate_losses(MAML(MLP(), torch.nn.MSELoss()), batch, [0.001, 0.01, 0.1]).shape
        torch.Size([3])
    """
    for rate in rates:
        arguments.check_rate("rates", rate)
    steps = (check_has_rate(learner).eval_inner_steps,)
    losses = [losses_by_step(learner, batch, steps, rate).mean() for rate in rates]
    return torch.stack(losses).to(torch.get_default_dtype()).cpu()
