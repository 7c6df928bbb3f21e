"""Tasks as map-style data sets, and the loaders that serve them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_meta.episodes.episode import Episode

Split = Literal["train", "val", "test"]


class EpisodeDataset(Dataset[Episode], ABC):
    """Task ``i`` as a pure function of ``i``.

    Indices have no upper bound, since training takes fresh ones each epoch; the length is the number of tasks in an
    epoch.
    """

    def __init__(self, num_tasks: int) -> None:
        self.num_tasks = num_tasks

    @abstractmethod
    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return a batch of the tasks with these indices, ``[indices, ...]``."""

    def redrawn(self, indices: NDArray[np.integer], draws: NDArray[np.integer]) -> Episode:
        """Return the same tasks with other examples, ``[indices, ...]``; may be overridden.

        Args:
            indices: The tasks.
            draws: For each task the number of a draw of its examples, ``[indices]``; draw 0 is that of `make`.

        Raises:
            TypeError: If this data set cannot draw a task's examples anew.
        """
        raise TypeError(f"{type(self).__name__} cannot draw a task's examples anew: implement redrawn")

    def distinct_indices(self, count: int) -> NDArray[np.int64]:
        """Return the indices of so many distinct tasks, ``[count]``, or of all if there are fewer; may be overridden.

        As it stands, all tasks are distinct.
        """
        return np.arange(count)

    def disjoint(self) -> EpisodeDataset:
        """Return independent tasks that share no classes, as many as there can be; may be overridden.

        Raises:
            TypeError: If this data set does not know its classes.
        """
        raise TypeError(f"{type(self).__name__} cannot make tasks of disjoint classes: implement disjoint")

    def with_shots(self, shots: int) -> EpisodeDataset:
        """Return the same tasks with another number of support examples; may be overridden.

        Raises:
            TypeError: If this data set has a given number.
            ValueError: If there are too few examples.
        """
        raise TypeError(f"{type(self).__name__} cannot change the number of support examples: implement with_shots")

    def __len__(self) -> int:
        return self.num_tasks

    def __getitem__(self, index: int) -> Episode:
        """Return one task, without a task dimension."""
        return self.make(np.array([index])).select(0)

    def __iter__(self) -> Iterator[Episode]:
        """Yield the tasks of an epoch, one at a time."""
        return (self[index] for index in range(len(self)))  # by `__getitem__` alone it would never end

    def __getitems__(self, indices: Sequence[int]) -> Episode:
        """Return a batch of tasks; torch's loader calls this instead of `__getitem__`."""
        return self.make(np.asarray(indices))


class EpisodeSampler(DistributedSampler[int]):
    """Shares the tasks between processes without overlap.

    Training (``fresh``) takes new tasks in every epoch, and gives every process the same number of them, rounded up,
    because processes wait for each other at every step. Evaluation takes the same tasks every time, each once.

    Lightning calls ``set_epoch`` and, because this is a `DistributedSampler`, does not replace it on several devices.
    The number of processes is read from ``torch.distributed`` when the indices are needed, not at construction.
    """

    def __init__(self, dataset: EpisodeDataset, fresh: bool) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
        self.fresh = fresh
        self.num_tasks = len(dataset)
        self.skipped = 0

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices()[self.skipped :])

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> range:
        started = dist.is_available() and dist.is_initialized()
        processes, own = (dist.get_world_size(), dist.get_rank()) if started else (1, 0)
        if self.num_tasks < processes and not self.fresh:
            raise ValueError(f"{self.num_tasks} tasks cannot be shared by {processes} processes: make more tasks")
        tasks = -(-self.num_tasks // processes) * processes if self.fresh else self.num_tasks
        start = self.epoch * tasks if self.fresh else 0
        return range(start + own, start + tasks, processes)


class EpisodeLoader(DataLoader[Episode]):
    """A loader that continues where it was when a run is resumed in the middle of an epoch."""

    batches_done: Callable[[], int] = staticmethod(lambda: 0)
    """Returns how many batches of the epoch were already taken."""

    def __iter__(self) -> Any:  # a generator, so that nothing starts before Lightning has set epoch and progress
        done = self.batches_done()
        if isinstance(self.sampler, EpisodeSampler):
            self.sampler.skipped = done * (self.batch_size or 1)
            yield from super().__iter__()
        else:  # in prediction, and with overfit_batches, Lightning replaces the sampler
            yield from islice(super().__iter__(), done, None)

    def state_dict(self) -> dict[str, int]:
        """Return nothing; Lightning takes a loader with this method for one that can be resumed."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing: the trainer's progress gives the position."""
