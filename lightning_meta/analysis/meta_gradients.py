"""Meta-gradients of single tasks, several draws of their examples each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.analysis.held_out import evaluation_mode
from lightning_meta.arguments import check_count
from lightning_meta.data.distinct_tasks import FIRST_RESERVED_DRAW
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode, MetaParameters, TaskResult
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.learners.randomness import reproducible_draws
from lightning_meta.learners.task_learner import TaskLearner

_MOST_NUMBERS = 2**28
_TASKS_AT_ONCE = 16


def meta_gradient_products(
    learner: TaskLearner,
    tasks: EpisodeDataset,
    num_tasks: int = 32,
    draws: int = 2,
    seed: int = 0,
    most_numbers: int = _MOST_NUMBERS,
) -> Tensor:
    """Return the inner products of meta-gradients of tasks, in several draws of support and query sets each.

    Gradients are those of training steps, but in evaluation mode, without dropout. The learner is left as it was.

    Args:
        learner: The learner.
        tasks: The tasks; ``redrawn`` gives the draws, of numbers that training does not reach.
        num_tasks: How many tasks; fewer if there are not as many distinct ones.
        draws: Draws of each task.
        seed: The seed of random numbers in the learner.
        most_numbers: How many numbers of gradients to hold at once, twice. If there are more, gradients are computed
            again for each pair of blocks.

    Returns:
        ``[tasks, draws, tasks, draws]`` in double precision, on the CPU.

    Raises:
        ValueError: If there are fewer than 2 distinct tasks, or ``draws`` is less than 2.
        TypeError: If the data cannot draw a task's examples anew.
        FloatingPointError: If the meta-gradient of a task is not finite.
    """
    check_count("num_tasks", num_tasks, least=2)
    check_count("draws", draws, least=2)
    indices = tasks.distinct_indices(num_tasks)
    if len(indices) < 2:
        raise ValueError(f"there are {len(indices)} distinct tasks: the variance between tasks needs at least 2")
    own = np.repeat(indices, draws)
    draw = np.tile(FIRST_RESERVED_DRAW + np.arange(draws), len(indices))
    size = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    block = max(1, most_numbers // max(size, 1))
    starts = range(0, len(own), block)
    products = torch.zeros(len(own), len(own), dtype=torch.double)

    def gradients(start: int) -> Tensor:
        part = slice(start, start + block)
        return _gradients(learner, tasks, own[part], draw[part], seed, start)

    with evaluation_mode(learner):
        for first in starts:
            left = gradients(first)
            for second in range(first, len(own), block):
                right = left if second == first else gradients(second)
                found = (left.double() @ right.double().T).cpu()
                products[first : first + len(left), second : second + len(right)] = found
                products[second : second + len(right), first : first + len(left)] = found.T
    return products.reshape(len(indices), draws, len(indices), draws)


def _gradients(
    learner: TaskLearner,
    tasks: EpisodeDataset,
    indices: NDArray[np.integer],
    draws: NDArray[np.integer],
    seed: int,
    start: int,
) -> Tensor:
    """Return meta-gradients of tasks, ``[tasks, parameters]``."""

    def gradient(meta: MetaParameters, task: Episode) -> TaskResult:
        slopes, result = learner.task_gradient(meta, task)
        flat = torch.cat([slopes[name].flatten() for name in meta])
        return result._replace(diagnostics={"gradient": flat}, samples={}, novelty={}, carried=())

    def moved(leaf: Tensor) -> Tensor:
        return leaf.to(learner.device)

    found = []
    for first in range(0, len(indices), _TASKS_AT_ONCE):
        part = slice(first, first + _TASKS_AT_ONCE)
        batch = map_leaves(moved, tasks.redrawn(indices[part], draws[part]))
        with reproducible_draws(seed, 0, start + first, learner.device):
            found.append(learner.map_tasks(gradient, batch).diagnostics["gradient"])
    gradients = torch.cat(found)
    broken = (~gradients.isfinite().all(1)).nonzero()[:, 0]
    if len(broken):
        raise FloatingPointError(
            f"the meta-gradient of task {int(indices[int(broken[0])])} is not finite{learner.rates_in_errors()}: the "
            "task diverges, lower the rate or take fewer inner steps"
        )
    return gradients
