"""A finite number of training tasks, which return again and again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes.episode import Episode

FIRST_RESERVED_DRAW = 2**40
"""Training reaches no draw of a task from this number on.

So sinusoids have new points there. The examples of a class and the rows of a group are finite: such a draw puts them
together anew, but training may have seen each of them.
"""


class DistinctTasks(EpisodeDataset):
    """A number of distinct tasks again and again: task ``i`` is the ``i % count``-th of them.

    Args:
        tasks: The tasks from which they are taken.
        count: How many.
        redraw: Whether a task has other examples each time it returns: on its visit ``i // count`` those of the draw
            of this number. If not, it always has the same ones.

    Raises:
        ValueError: If there are fewer tasks.
        TypeError: If ``redraw`` is True, and the tasks' examples cannot be drawn anew.
    """

    def __init__(self, tasks: EpisodeDataset, count: int, redraw: bool) -> None:
        super().__init__(len(tasks))
        self.tasks = tasks
        self.redraw = redraw
        self._indices = tasks.distinct_indices(count)  # [count]
        if len(self._indices) < count:
            raise ValueError(
                f"distinct_train_tasks={count}, but there are {len(self._indices)} distinct training tasks: set it to "
                f"{len(self._indices)} or less"
            )
        if redraw:
            try:
                tasks.redrawn(self._indices[:1], np.ones(1, np.int64))
            except TypeError as error:
                raise TypeError(f"redraw_examples=True, but {error}; or set redraw_examples=False") from error

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return the tasks of these visits."""
        if self.redraw:
            return self.redrawn(indices, np.zeros_like(indices))
        return self.tasks.make(self._own(indices))

    def redrawn(self, indices: NDArray[np.integer], draws: NDArray[np.integer]) -> Episode:
        """Return the same tasks with other examples; draws from `FIRST_RESERVED_DRAW` on are never those of a visit."""
        visits = indices // len(self._indices) if self.redraw else np.zeros_like(indices)
        return self.tasks.redrawn(self._own(indices), visits + draws)

    def distinct_indices(self, count: int) -> NDArray[np.int64]:
        """Return the indices of the first visits."""
        return np.arange(min(count, len(self._indices)))

    def with_shots(self, shots: int) -> DistinctTasks:
        """Return the same tasks with another number of support examples."""
        return DistinctTasks(self.tasks.with_shots(shots), len(self._indices), self.redraw)

    def _own(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        return self._indices[indices % len(self._indices)]


def first_distinct(keys_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """Return the first indices whose tasks differ from all before, ``[count]``.

    Args:
        keys_of: Returns what tells tasks apart, ``[indices]`` or ``[indices, ...]``.
        count: How many; there must be so many.
    """
    looked_at = count
    while True:
        firsts = np.unique(keys_of(np.arange(looked_at)), axis=0, return_index=True)[1]
        if len(firsts) >= count:
            return np.sort(firsts)[:count]
        looked_at *= 2
