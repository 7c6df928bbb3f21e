"""Episodes over any labelled map-style data set."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, IterableDataset

from lightning_meta import arguments
from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import Split
from lightning_meta.data.labelled import ClassEpisodes, fetcher, labels_of


class EpisodicDataModule(TaskDataModule):
    """N-way K-shot tasks from labelled data sets, one for each split, with classes of their own.

    A data set's items are ``(input, label)``; inputs may be pytrees of tensors. Labels are read from
    ``targets``, ``labels`` or, for a `TensorDataset`, its second tensor; failing these, from all items once. Inputs
    of a `TensorDataset` are fetched a batch at a time, others item by item.

    Args:
        train: Labelled examples of the training classes.
        val: Of the validation classes; None: no validation.
        test: Of the test classes; None: no test.
        ways: Classes in a task.
        shots: Support examples per class.
        query_shots: Query examples per class in training.
        tasks_per_batch: Tasks in a meta-batch, per process.
        eval_query_shots: Query examples per class in validation and test; None: as in training.
        eval_outside_ways: Classes outside each validation and test task, whose examples measure how well
            uncertainty tells them from the task's own.
        train_tasks: Tasks in a training epoch.
        val_tasks: Validation tasks.
        test_tasks: Test and prediction tasks.
        seed: Which tasks.
        num_workers: Processes that make episodes.
        pin_memory: Whether to pin host memory.

    Raises:
        ValueError: If an argument is out of its range, a split has fewer classes than ``ways``, or a class fewer
            examples than ``shots + query_shots``.
        TypeError: If a data set is not map-style.
    """

    def __init__(
        self,
        train: Dataset[Any],
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        ways: int = 5,
        shots: int = 1,
        query_shots: int = 15,
        tasks_per_batch: int = 16,
        eval_query_shots: int | None = None,
        train_tasks: int = 1_600,
        val_tasks: int = 600,
        test_tasks: int = 600,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        eval_outside_ways: int = 0,
    ) -> None:
        super().__init__(tasks_per_batch, train_tasks, val_tasks, test_tasks, seed, num_workers, pin_memory)
        check_task_form(ways, shots, query_shots, eval_query_shots)
        arguments.check_count("eval_outside_ways", eval_outside_ways, least=0)
        self._episodes: dict[Split, ClassEpisodes] = {}
        datasets: dict[Split, Dataset[Any] | None] = {"train": train, "val": val, "test": test}
        for split, dataset in datasets.items():
            if dataset is None:
                self.num_tasks[split] = 0
                continue
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
                raise TypeError(f"{split}={dataset!r} must be a map-style data set: episodes pick examples by number")
            query = query_shots if split == "train" or eval_query_shots is None else eval_query_shots
            labels, fetch = labels_of(dataset), fetcher(dataset)
            outside = 0 if split == "train" else eval_outside_ways
            self._episodes[split] = ClassEpisodes(
                labels, fetch, ways, shots, query, split, self.num_tasks[split], self.seed, outside
            )

    def episodes(self, split: Split) -> ClassEpisodes:
        """Return the tasks of a split."""
        if split not in self._episodes:
            raise ValueError(f"this data module was made with {split}=None: give it a data set of {split} classes")
        return self._episodes[split]


def check_task_form(ways: int, shots: int, query_shots: int, eval_query_shots: int | None) -> None:
    """Raise a ValueError unless these describe a classification task."""
    arguments.check_count("ways", ways, least=2)
    arguments.check_count("shots", shots)
    arguments.check_count("query_shots", query_shots)
    arguments.check_optional_count("eval_query_shots", eval_query_shots)
