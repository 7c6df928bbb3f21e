"""Where a learner loses between its training examples and new tasks."""

from __future__ import annotations

from typing import NamedTuple

from lightning_meta.analysis.diagnosis.scores import Scores, scores_of
from lightning_meta.analysis.intervals import Interval, difference_of_means, mean_interval
from lightning_meta.episodes import Episode
from lightning_meta.learners.task_learner import TaskLearner


class Gaps(NamedTuple):
    """Differences of mean scores, with 95 % intervals over tasks; positive where the first is worse.

    Attributes:
        points: New examples of training tasks minus the very training examples, paired by task; None where tasks
            cannot be drawn anew. Where a class or a group has a finite number of examples, training may have seen the
            new ones in other tasks, and the gap is smaller than that to unseen examples.
        tasks: New tasks minus new examples of training tasks; None where tasks cannot be drawn anew.
        both: New tasks minus the very training examples, the sum of ``points`` and ``tasks``: an upper bound on what
            more training tasks can bring to this learner, as with more tasks it fits each of them less.
        adaptation: Query minus support examples of new tasks, after adaptation, paired by task.
    """

    points: Interval | None
    tasks: Interval | None
    both: Interval
    adaptation: Interval


def generalization_gaps(
    learner: TaskLearner, trained: Episode, redrawn: Episode | None, new: Episode, new_scores: Scores | None = None
) -> Gaps:
    """Return the gaps between training examples, new examples of training tasks, and new tasks.

    Args:
        learner: The learner.
        trained: Training tasks with the examples of the training. Where training takes fresh tasks in every epoch,
            those of the first epoch.
        redrawn: The same tasks with other examples; None: there are none.
        new: New tasks.
        new_scores: The learner's query results on them, if known.
    """
    on_trained = scores_of(learner, trained).score
    on_new = (scores_of(learner, new) if new_scores is None else new_scores).score
    on_support = scores_of(learner, with_support_as_query(new)).score
    points = tasks = None
    if redrawn is not None:
        on_redrawn = scores_of(learner, redrawn).score
        points = mean_interval(on_redrawn - on_trained)
        tasks = difference_of_means(on_new, on_redrawn)
    return Gaps(points, tasks, difference_of_means(on_new, on_trained), mean_interval(on_new - on_support))


def with_support_as_query(batch: Episode) -> Episode:
    """Return tasks whose queries are their support examples."""
    return batch._replace(query_x=batch.support_x, query_y=batch.support_y, query_mask=batch.support_mask)
