"""N-way K-shot tasks over labelled data sets."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from lightning_meta import arguments
from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset, Split
from lightning_meta.data.joint import JointBatches
from lightning_meta.data.labelled import ClassEpisodes


class NWayDataModule(TaskDataModule):
    """Base of the data modules of N-way K-shot tasks; a derived class implements `datasets`, and may download before.

    Args:
        ways: Classes in a task.
        shots: Support examples per class.
        query_shots: Query examples per class in training.
        eval_query_shots: Query examples per class in validation and test; None: as in training.
        eval_outside_ways: Classes outside each validation and test task, whose examples measure how well
            uncertainty tells them from the task's own.
        joint_batch_size: Examples, per process, in a training batch of ordinary classification over all training
            classes at once, as `Baseline`, `BaselinePlusPlus` and `SimpleShot` train; an epoch goes through all
            training examples once, whatever ``train_tasks`` and ``tasks_per_batch``. Validation and test have tasks as
            ever. None: training has tasks, too.
        **options: As in `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, two contradict each other, a split has fewer classes than
            ``ways``, or a class fewer examples than ``shots + query_shots``.
        TypeError: If a data set is not map-style.
    """

    interval_scope = "over tasks of these classes"

    def __init__(
        self,
        ways: int = 5,
        shots: int = 1,
        query_shots: int = 15,
        eval_query_shots: int | None = None,
        eval_outside_ways: int = 0,
        joint_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        arguments.check_count("ways", ways, least=2)
        arguments.check_count("shots", shots)
        arguments.check_count("query_shots", query_shots)
        arguments.check_optional_count("eval_query_shots", eval_query_shots)
        arguments.check_count("eval_outside_ways", eval_outside_ways, least=0)
        arguments.check_optional_count("joint_batch_size", joint_batch_size)
        if joint_batch_size is not None and self.distinct_train_tasks is not None:
            raise ValueError(
                f"joint_batch_size={joint_batch_size} trains on examples of all classes at once, and "
                f"distinct_train_tasks={self.distinct_train_tasks} on tasks: leave one of them out"
            )
        self.ways = ways
        self.shots = shots
        self.query_shots = query_shots
        self.eval_query_shots = query_shots if eval_query_shots is None else eval_query_shots
        self.eval_outside_ways = eval_outside_ways
        self.joint_batch_size = joint_batch_size
        self._episodes: dict[Split, ClassEpisodes] = {}

    @abstractmethod
    def datasets(self) -> Mapping[Split, Dataset[Any] | None]:
        """Return labelled examples for each split, as in `EpisodicDataModule`; None: no such tasks."""

    def setup(self, stage: str) -> None:
        """Load the examples, and check that tasks can be drawn from every split."""
        if self._episodes:
            return
        datasets, made = self.datasets(), {}
        for split in self.num_tasks:
            dataset = datasets.get(split)
            if dataset is None:
                self.num_tasks[split] = 0
                continue
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
                raise TypeError(f"{split}={dataset!r} must be a map-style data set: episodes pick examples by number")
            query, ood = (self.eval_query_shots, self.eval_outside_ways) if split != "train" else (self.query_shots, 0)
            made[split] = ClassEpisodes(
                dataset, self.ways, self.shots, query, split, self.num_tasks[split], self.seed, ood
            )
        self._episodes = made

    def episodes(self, split: Split) -> ClassEpisodes:
        """Return the tasks of a split."""
        self.setup("fit")
        if split not in self._episodes:
            raise ValueError(f"this data module was made with {split}=None: give it a data set of {split} classes")
        return self._episodes[split]

    @property
    def num_train_classes(self) -> int:
        """The number of training classes; reads the data if that is not done."""
        return len(self.episodes("train").classes)

    def joint_batches(self, batch_size: int | None = None) -> JointBatches:
        """Return batches of the training examples of all classes at once.

        Args:
            batch_size: Examples in a batch; None: ``joint_batch_size``.

        Raises:
            ValueError: If both are None.
        """
        size = self.joint_batch_size if batch_size is None else batch_size
        if size is None:
            raise ValueError("this data module was made with joint_batch_size=None: set it, or pass batch_size")
        tasks = self.episodes("train")
        return JointBatches(tasks.dataset, size, self.seed, tasks.labels)

    def served_in_training(self) -> tuple[EpisodeDataset, int]:
        """Return batches of all training classes with ``joint_batch_size``, otherwise the training tasks."""
        return super().served_in_training() if self.joint_batch_size is None else (self.joint_batches(), 1)


class EpisodicDataModule(NWayDataModule):
    """N-way K-shot tasks from labelled data sets, one for each split, with classes of their own.

    A data set's items are ``(input, label)``; inputs may be pytrees of tensors. Labels are read from
    ``targets``, ``labels`` or, for a `TensorDataset`, its second tensor; failing these, from all items once. Inputs
    of a `TensorDataset` are fetched a batch at a time, others item by item.

    Args:
        train: Labelled examples of the training classes.
        val: Of the validation classes; None: no validation.
        test: Of the test classes; None: no test.
        **options: As in `NWayDataModule` and `TaskDataModule`.

    Example:
        >>> import torch
        >>> examples = torch.utils.data.TensorDataset(torch.randn(60, 8), torch.arange(60) % 6)
        >>> data = EpisodicDataModule(train=examples, ways=3, shots=2, query_shots=4)
        >>> data.episodes("train")[0].query_x.shape  # one task
        torch.Size([12, 8])
    """

    def __init__(
        self, train: Dataset[Any], val: Dataset[Any] | None = None, test: Dataset[Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._given: dict[Split, Dataset[Any] | None] = {"train": train, "val": val, "test": test}
        self.setup("fit")

    def datasets(self) -> Mapping[Split, Dataset[Any] | None]:
        """Return the data sets that were given."""
        return self._given
