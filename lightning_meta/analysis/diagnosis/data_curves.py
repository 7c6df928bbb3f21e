"""Results on new tasks against the number of training tasks, and against the number of support examples.

The curves are shown as they are, without a fitted law: extrapolations of such laws were wrong by more than the
differences of interest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from lightning_meta.analysis.diagnosis.scores import Scores, evaluating, scores_of
from lightning_meta.analysis.fresh_model import fresh_learner
from lightning_meta.analysis.intervals import Interval, mean_interval
from lightning_meta.analysis.short_training import train_for
from lightning_meta.analysis.tasks import take
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode
from lightning_meta.learners.task_learner import TaskLearner

Curve = dict[int, Scores]
"""Results of the same tasks, ``[tasks]``, by size."""


def task_curve(
    learner: TaskLearner,
    distinct: Callable[[int], EpisodeDataset],
    sizes: Sequence[int],
    steps: int,
    tasks_per_batch: int,
    new: Episode,
    seed: int = 0,
) -> Curve:
    """Train copies of a learner from the same new random values with few and with many distinct training tasks.

    Args:
        learner: The learner, which does not change.
        distinct: Returns a data set that serves so many distinct tasks over and over.
        sizes: The numbers of distinct tasks.
        steps: Outer steps of each training.
        tasks_per_batch: Tasks in a meta-batch.
        new: The tasks of the results.
        seed: The seed of the new values.

    Raises:
        ValueError: If the learner cannot be given new random values.
    """
    curve = {}
    for size in sorted(sizes):
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            trained = fresh_learner(learner, "leave out train_sizes")
            train_for(trained, distinct(size), steps, tasks_per_batch)
        with evaluating(trained):
            curve[size] = scores_of(trained, new)
    return curve


def shot_curve(learner: TaskLearner, tasks: EpisodeDataset, shots: Sequence[int], num_tasks: int) -> Curve:
    """Return a learner's results on the same tasks with other numbers of support examples, without training.

    Raises:
        TypeError: If the data set cannot change the number of support examples.
        ValueError: If there are too few examples.
    """
    with evaluating(learner):
        return {
            count: scores_of(learner, take(tasks.with_shots(count), num_tasks, learner.device))
            for count in sorted(shots)
        }


def gains(curve: Curve) -> dict[tuple[int, int], Interval]:
    """Return for neighbouring sizes how much lower the score of the larger is, with paired intervals over tasks."""
    sizes = sorted(curve)
    return {(less, more): mean_interval(curve[less].score - curve[more].score) for less, more in pairwise(sizes)}


def compare_gains(tasks: Curve, shots: Curve, current_shots: int) -> str:
    """Return a sentence on which measured gain is larger, that of more tasks or that of more shots.

    Compared are the last two numbers of tasks with the step from the current number of shots to the next larger one.
    """
    by_tasks = gains(tasks)
    larger = [(pair, gain) for pair, gain in gains(shots).items() if pair[0] >= current_shots]
    if not by_tasks or not larger:
        return ""
    (less, more), of_tasks = list(by_tasks.items())[-1]
    (few, many), of_shots = larger[0]
    said = (
        f"from {less} to {more} training tasks the score fell by {of_tasks}, from {few} to {many} shots by {of_shots}"
    )
    if of_tasks.low > of_shots.high:
        return f"More training tasks brought more than more shots: {said}."
    if of_shots.low > of_tasks.high:
        return f"More shots brought more than more training tasks: {said}."
    return f"Cannot tell whether more training tasks or more shots bring more, as the intervals overlap: {said}."
