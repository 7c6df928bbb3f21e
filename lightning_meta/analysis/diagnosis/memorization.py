"""Whether a learner ignores the support set.

Paper: Yin, Tucker, Zhou, Levine, Finn, "Meta-Learning without Memorization", ICLR 2020, arXiv 1912.03820: where one
function solves all training tasks without their support sets, a learner may memorize it. It then does as well with
support sets of other tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_meta.analysis.diagnosis.scores import Scores, scores_of
from lightning_meta.analysis.intervals import Interval, ratio_of_means
from lightning_meta.episodes import Episode
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.learners.task_learner import TaskLearner


class Memorization(NamedTuple):
    """The query results of the same tasks, ``[tasks]``, with different support sets.

    Attributes:
        own: With the task's own support set.
        permuted: With its labels permuted among its examples. Some examples keep their label by chance.
        other: With another task's support set.
        constant: Of a constant predictor.
        ratio: The memorization index ``(other − own) / (constant − own)``, of mean scores, with an interval from
            bootstrap over tasks: about 1 or more for a learner that needs the support set, about 0 for one that
            ignores it. NaN where the learner is not better than the constant predictor.
    """

    own: Scores
    permuted: Scores
    other: Scores
    constant: Scores
    ratio: Interval


def memorization(learner: TaskLearner, batch: Episode, constant: Scores, seed: int = 0) -> Memorization:
    """Compare the query results with own, permuted and other tasks' support sets.

    Args:
        learner: The learner.
        batch: At least 2 tasks.
        constant: A constant predictor's results on these tasks.
        seed: The seed of permutations and bootstrap.

    Raises:
        ValueError: If there is one task only.
    """
    if batch.num_tasks < 2:
        raise ValueError("one task has no other task's support set: take at least 2 tasks")
    own = scores_of(learner, batch)
    permuted = scores_of(learner, with_permuted_labels(batch, seed))
    other = scores_of(learner, with_other_support(batch))
    ratio = ratio_of_means(other.score - own.score, constant.score - own.score, seed=seed)
    return Memorization(own, permuted, other, constant, ratio)


def with_other_support(batch: Episode) -> Episode:
    """Return tasks with the support set of the next task of the batch, the last with that of the first."""
    support = map_leaves(lambda leaf: leaf.roll(-1, 0), batch.support)
    return batch._replace(support_x=support.x, support_y=support.y, support_mask=support.mask)


def with_permuted_labels(batch: Episode, seed: int = 0) -> Episode:
    """Return tasks whose support targets are permuted among the support examples that count."""
    generator = torch.Generator().manual_seed(seed)
    size = tree_leaves(batch.support_x)[0].shape[1]
    orders = []
    for task in range(batch.num_tasks):
        order = torch.arange(size)
        counts = torch.ones(size).bool() if batch.support_mask is None else batch.support_mask[task].cpu()
        own = order[counts]
        order[counts] = own[torch.randperm(len(own), generator=generator)]
        orders.append(order)
    rows = torch.stack(orders)  # [tasks, support]

    def permuted(leaf: Tensor) -> Tensor:
        return leaf[torch.arange(len(rows), device=leaf.device)[:, None], rows.to(leaf.device)]

    return batch._replace(support_y=map_leaves(permuted, batch.support_y))
