"""The losses and accuracies of tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.analysis.held_out import evaluation_mode
from lightning_meta.episodes import Episode, MetaParameters, TaskResult
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import likelihood_of
from lightning_meta.likelihoods.predictive import mean_output

_TOGETHER = 25  # Tasks that are evaluated at once, which bounds the memory.


class Scores(NamedTuple):
    """The results of tasks; lower scores are better.

    Attributes:
        loss: ``[..., tasks]``.
        accuracy: In classification, ``[..., tasks]``; None in regression.
    """

    loss: Tensor
    accuracy: Tensor | None

    @property
    def score(self) -> Tensor:
        """The error rate in classification, the loss in regression, ``[..., tasks]``."""
        return self.loss if self.accuracy is None else 1 - self.accuracy

    def at(self, index: int) -> Scores:
        """Return the results at one position of the first dimension."""
        return Scores(self.loss[index], None if self.accuracy is None else self.accuracy[index])


def scores_of(learner: TaskLearner, batch: Episode, steps: int | None = None) -> Scores:
    """Return the query results after adaptation, ``[tasks]``; ``steps`` None: as many as in evaluation."""
    steps = learner.eval_inner_steps if steps is None else steps
    return scores_by_step(learner, batch, (steps,)).at(0)


def scores_by_step(learner: TaskLearner, batch: Episode, record: Sequence[int]) -> Scores:
    """Return the query results after each recorded number of inner steps, ``[recorded, tasks]``.

    Tasks whose adaptation diverges have an infinite loss and the accuracy 0.
    """

    def recorded(meta: MetaParameters, task: Episode) -> TaskResult:
        outputs = []
        for step, (state, _) in enumerate(learner.adaptation(meta, task.support, max(record))):
            if step in record:
                samples = learner.evaluation_samples(meta, state, task.support, task.query_x)
                outputs.append(mean_output(likelihood_of(learner.loss_fn), samples))
        zero = outputs[0].new_zeros(())
        return TaskResult(zero, torch.stack(outputs), zero[None])

    parts = []
    for start in range(0, batch.num_tasks, _TOGETHER):
        some = batch.select(slice(start, start + _TOGETHER))
        parts.append(output_scores(learner, learner.map_tasks(recorded, some).outputs, some))
    accuracies = [part.accuracy for part in parts if part.accuracy is not None]
    return Scores(torch.cat([part.loss for part in parts], 1), torch.cat(accuracies, 1) if accuracies else None)


def output_scores(learner: TaskLearner, outputs: Tensor, batch: Episode) -> Scores:
    """Return the results of outputs ``[tasks, recorded, query, ...]`` on the query sets, ``[recorded, tasks]``."""
    losses, accuracies = [], []
    for step in range(outputs.shape[1]):
        own = outputs[:, step]
        tasks = [batch.select(index) for index in range(batch.num_tasks)]
        each = [learner.loss(output, task.query_y, task.query_mask) for output, task in zip(own, tasks, strict=True)]
        losses.append(torch.stack(each))
        metrics = learner.task_metrics(own, batch.query_y, batch.query_mask)
        accuracies += [metrics["acc"]] if "acc" in metrics else []
    loss = torch.stack(losses).cpu()
    diverged = loss.isnan()
    loss = loss.masked_fill(diverged, torch.inf)
    return Scores(loss, torch.stack(accuracies).cpu().masked_fill(diverged, 0) if accuracies else None)


def has_classes(learner: TaskLearner, batch: Episode) -> bool:
    """Whether the targets are classes."""
    return not torch.is_floating_point(batch.query_y) or isinstance(learner.loss_fn, nn.BCEWithLogitsLoss)


@contextmanager
def evaluating(learner: TaskLearner) -> Iterator[None]:
    """Set evaluation mode, without gradients, inside the block."""
    with evaluation_mode(learner), torch.no_grad():
        yield
