"""Losses of a trained learner on held-out tasks, diverged ones included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.analysis.tasks import check_available, take
from lightning_meta.arguments import check_count
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode
from lightning_meta.learners.randomness import reproducible_draws
from lightning_meta.learners.task_learner import TaskLearner


class HeldOutLosses(NamedTuple):
    """Losses on held-out tasks; those of tasks that diverged are infinite.

    Attributes:
        adapted: The losses of the adapted learner, ``[tasks]``.
        unadapted: The losses without inner steps, ``[tasks]``; None for learners without an inner loop.
        kind: "error", the share of queries in a wrong class, or "loss", the learner's loss.
    """

    adapted: Tensor
    unadapted: Tensor | None
    kind: str


def held_out_losses(
    learner: TaskLearner, tasks: EpisodeDataset, count: int | None = None, tasks_at_once: int = 16, seed: int = 0
) -> HeldOutLosses:
    """Return the loss of each of the first tasks of a data set: for classes the error, otherwise the learner's loss.

    The learner is evaluated as in ``eval()`` and is left as it was.

    Args:
        learner: The learner.
        tasks: The tasks.
        count: How many; None: all.
        tasks_at_once: Tasks in a batch.
        seed: The seed of random draws.

    Raises:
        ValueError: If there are fewer tasks.
    """
    count = len(tasks) if count is None else count
    check_count("count", count)
    check_available(tasks, count)
    adapted, unadapted, kind = [], [], "loss"
    steps = learner.eval_inner_steps
    with evaluation_mode(learner):
        for first in range(0, count, tasks_at_once):
            batch = take(tasks, min(tasks_at_once, count - first), learner.device, first)
            with reproducible_draws(seed, 0, first, learner.device):
                result = learner.evaluate(batch, record=(0, steps) if steps else None, diverged="keep")
            kind, losses = _losses(learner, batch, result.outputs[:, -1])
            losses = result.loss if losses is None else losses
            adapted.append(losses.double().masked_fill(result.loss.isinf(), math.inf).cpu())
            if steps:
                before = _losses(learner, batch, result.outputs[:, 0])[1]
                before = _own_losses(learner, batch, result.outputs[:, 0]) if before is None else before
                unadapted.append(before.double().cpu())
    return HeldOutLosses(torch.cat(adapted), torch.cat(unadapted) if unadapted else None, kind)


@contextmanager
def evaluation_mode(learner: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in learner.modules()]
    learner.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _losses(learner: TaskLearner, batch: Episode, outputs: Tensor) -> tuple[str, Tensor | None]:
    metrics = learner.task_metrics(outputs, batch.query_y, batch.query_mask)
    return ("error", 1 - metrics["acc"].double()) if "acc" in metrics else ("loss", None)


def _own_losses(learner: TaskLearner, batch: Episode, outputs: Tensor) -> Tensor:
    """The learner's loss of outputs ``[tasks, query, ...]``."""
    each = (batch.select(task) for task in range(batch.num_tasks))
    losses = [learner.loss(output, task.query_y, task.query_mask) for output, task in zip(outputs, each, strict=True)]
    return torch.stack(losses)
