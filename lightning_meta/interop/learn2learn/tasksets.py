"""learn2learn's tasks as episodes, and episodes as its tasks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta import arguments
from lightning_meta.data import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset, Split
from lightning_meta.data.labelled import ClassEpisodes
from lightning_meta.data.random_streams import uniforms
from lightning_meta.episodes import Episode, collate_episodes
from lightning_meta.interop.learn2learn.meta_datasets import MetaDatasetExamples
from lightning_meta.interop.learn2learn.splitting import join_task, split_task


class TasksetEpisodes(EpisodeDataset):
    """The tasks of a ``Taskset`` as episodes.

    A taskset draws from the generators of `random`, numpy and torch, and remembers what it drew. Here task ``i`` is
    drawn anew each time, with generators that start from a function of (seed, split, i) and are restored afterwards.
    A taskset of a finite number of tasks has these again after the last one.

    Args:
        taskset: Anything with ``sample_task_description`` and ``get_task``, or else with ``sample``, which then must
            not remember tasks; returns inputs and targets.
        shots: Support examples per class; for regression in all.
        query_shots: Query examples per class, or in all; None: all others.
        ways: Classes in a task; None: any number.
        split: Determines the tasks, together with ``seed``.
        num_tasks: Tasks in an epoch.
        seed: As in `TaskDataModule`.
    """

    def __init__(
        self,
        taskset: Any,
        shots: int,
        query_shots: int | None,
        ways: int | None,
        split: Split,
        num_tasks: int,
        seed: int,
    ) -> None:
        super().__init__(num_tasks)
        self.taskset = taskset
        self.shots, self.query_shots, self.ways = shots, query_shots, ways
        self.split, self.seed = split, seed

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return tasks, ``[indices, ...]``; padded and with masks where their sizes differ."""
        return collate_episodes([self._task(int(i)) for i in indices])

    def distinct_indices(self, count: int) -> NDArray[np.int64]:
        """Return the first indices, of a finite taskset no more than it has tasks."""
        return np.arange(min(count, self.taskset.num_tasks) if _is_finite(self.taskset) else count)

    def _task(self, index: int) -> Episode:
        number = index % self.taskset.num_tasks if _is_finite(self.taskset) else index
        draw = uniforms(self.seed, f"{self.split} taskset", np.array([number]), 1)
        start = int(draw[0, 0] * 2.0**53)
        with _generators_from(start):
            item = _drawn(self.taskset)
        if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[1], Tensor):
            raise TypeError(f"a task of taskset={self.taskset!r} is {item!r:.80}, and must be (data, labels)")
        x, y = item
        return split_task(x, y, self.shots, self.query_shots, self.ways)


def episodes_from(
    source: Any,
    shots: int,
    query_shots: int | None = None,
    ways: int | None = None,
    *,
    split: Split = "train",
    num_tasks: int | None = None,
    seed: int = 0,
) -> EpisodeDataset:
    """Return the tasks of a ``Taskset``, or tasks drawn from a ``MetaDataset``, as episodes.

    Args:
        source: The taskset, whose transforms draw the tasks, or the data set.
        shots: Support examples per class; for regression in all.
        query_shots: Query examples per class, or in all; None: all others of a taskset's task.
        ways: Classes in a task. None: a taskset's own number.
        split: Determines the tasks, together with ``seed`` and their index.
        num_tasks: Tasks in an epoch; None: those of a finite taskset, otherwise 600.
        seed: As in `TaskDataModule`.

    Returns:
        A map-style data set of episodes; `TasksetDataModule` makes batches of it.

    Raises:
        TypeError: If ``source`` is neither.
        ValueError: If an argument is out of its range, or a data set is given without ``ways`` and ``query_shots``.

    Example:
        >>> episodes = episodes_from(taskset, shots=1)  # doctest: +SKIP
        >>> episodes[3].support_x.shape  # doctest: +SKIP
        torch.Size([5, 1, 28, 28])
    """
    arguments.check_count("shots", shots)
    arguments.check_optional_count("query_shots", query_shots)
    arguments.check_optional_count("ways", ways, least=2)
    arguments.check_optional_count("num_tasks", num_tasks)
    arguments.check_seed(seed)
    if hasattr(source, "sample"):
        tasks = num_tasks or (source.num_tasks if _is_finite(source) else 600)
        return TasksetEpisodes(source, shots, query_shots, ways, split, tasks, seed)
    if not hasattr(source, "indices_to_labels"):
        raise TypeError(f"source={source!r} must be a Taskset or a MetaDataset of learn2learn")
    if ways is None or query_shots is None:
        raise ValueError(f"ways={ways} and query_shots={query_shots}: a MetaDataset has no tasks of its own, pass both")
    return ClassEpisodes(MetaDatasetExamples(source), ways, shots, query_shots, split, num_tasks or 600, seed)


class TasksetDataModule(TaskDataModule):
    """Batches of learn2learn's tasks, such as ``TasksetDataModule(*tasksets, shots=1)`` of its benchmarks.

    Validation and test have no more tasks than a finite taskset, as its tasks would come twice.

    Args:
        train: The training tasks, a taskset or data set as in `episodes_from`.
        val: The validation tasks; None: no validation.
        test: The test tasks; None: no test.
        shots: Support examples per class; for regression in all.
        query_shots: Query examples per class, or in all; None: all others of a taskset's task.
        ways: Classes in a task; None: a taskset's own number.
        **options: As in `TaskDataModule`.

    Raises:
        TypeError: As `episodes_from`.
        ValueError: As `episodes_from`.
    """

    interval_scope = "over tasks of these data sets"

    def __init__(
        self,
        train: Any,
        val: Any = None,
        test: Any = None,
        shots: int = 1,
        query_shots: int | None = None,
        ways: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        sources: dict[Split, Any] = {"train": train, "val": val, "test": test}
        self._episodes: dict[Split, EpisodeDataset] = {}
        for split, source in sources.items():
            if source is None:
                self.num_tasks[split] = 0
                continue
            if split != "train" and _is_finite(source):
                self.num_tasks[split] = min(self.num_tasks[split], source.num_tasks)
            tasks = self.num_tasks[split]
            self._episodes[split] = episodes_from(
                source, shots, query_shots, ways, split=split, num_tasks=tasks, seed=self.seed
            )

    def episodes(self, split: Split) -> EpisodeDataset:
        """Return the tasks of a split."""
        if split not in self._episodes:
            raise ValueError(f"this data module was made with {split}=None: give it tasks")
        return self._episodes[split]


class EpisodeTasks:
    """Episodes in the place of a ``Taskset``: items are (data, labels), a class's support examples before its queries.

    So loops that choose support examples by position, as learn2learn's examples and Lightning modules do, choose those
    of the episode.

    Args:
        episodes: A split of a data module, such as ``data.episodes("train")``.

    Example:
        >>> from lightning_meta import SinusoidDataModule
        >>> tasks = EpisodeTasks(SinusoidDataModule(shots=5, query_shots=10).episodes("train"))
        >>> data, labels = tasks.sample()
        >>> data.shape
        torch.Size([15, 1])
    """

    def __init__(self, episodes: EpisodeDataset) -> None:
        self.episodes = episodes

    def sample(self) -> tuple[Any, Tensor]:
        """Return one of the epoch's tasks, drawn by `random` as a taskset's are."""
        return self[random.randrange(len(self))]

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return join_task(self.episodes[index])

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return (self[index] for index in range(len(self)))


def _is_finite(source: Any) -> bool:
    return getattr(source, "num_tasks", -1) > 0


@contextmanager
def _generators_from(start: int) -> Iterator[None]:
    """Let the generators of `random`, numpy and torch (on the CPU) start from a number, and restore them at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(start)
        np.random.seed(start % 2**32)
        torch.default_generator.manual_seed(start)  # torch.manual_seed would change the generators of devices, too
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _drawn(taskset: Any) -> Any:
    if hasattr(taskset, "sample_task_description"):  # `sample` would remember a finite taskset's tasks
        return taskset.get_task(taskset.sample_task_description())
    return taskset.sample()
