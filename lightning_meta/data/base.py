"""The base of all data modules of tasks."""

from abc import ABC, abstractmethod
from pathlib import PurePath
from typing import Any, ClassVar, Self

import lightning as L
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import nn
from torch.utils.data import DataLoader

from lightning_meta import arguments
from lightning_meta.checkpoints.checked_io import Source
from lightning_meta.checkpoints.loading import Allowed, load_data_module
from lightning_meta.data.distinct_tasks import DistinctTasks
from lightning_meta.data.episodes import EpisodeDataset, EpisodeLoader, EpisodeSampler, Split
from lightning_meta.data.preparation import Preparation
from lightning_meta.episodes.episode import Episode, collate_episodes


class TaskDataModule(L.LightningDataModule, ABC):
    """Serves the tasks of three splits; a derived class implements `episodes`.

    Every task is a function of (seed, split, index). Training draws fresh tasks each epoch; validation and test
    always see the same ones. On several devices each process takes its own share of the tasks.
    With ``distinct_train_tasks=D`` task ``i`` of training is the ``i % D``-th of D distinct ones, on its visit
    ``i // D``. Distinct tasks of N ways differ in their classes or in their order, those of a table in their group.

    Args:
        tasks_per_batch: Tasks in a meta-batch, per process.
        train_tasks: Tasks in a training epoch, over all processes.
        val_tasks: Validation tasks.
        test_tasks: Test and prediction tasks.
        seed: Determines the tasks; independent of the seed of the training.
        num_workers: Processes that make episodes; 0 makes them in the training process.
        pin_memory: Whether to pin host memory for faster copies to a GPU.
        distinct_train_tasks: Training goes through so many distinct tasks again and again; None: fresh tasks without
            end.
        redraw_examples: Whether a distinct training task has other examples each time it returns; False: always the
            same ones.

    Raises:
        ValueError: If a number is out of its range, or when training starts, if there are fewer distinct tasks.
        TypeError: If an argument's name is not known.
    """

    keeps_arguments = False
    """Whether checkpoints and loggers keep the constructor's arguments, which must then be plain values or paths."""

    in_time_order = False
    """Whether the examples of support sets are in the order of time, and precede those of query sets."""

    arguments_not_kept: ClassVar[tuple[str, ...]] = ()
    """Those of the arguments that may be no plain values."""

    interval_scope: str = "over tasks"
    """What the intervals over this module's validation and test tasks are about, as results say it.

    "over tasks": new tasks. Where many tasks are made of a few classes, intervals are about new tasks of these classes,
    and too narrow for new classes.
    """

    preparation: Preparation | None = None
    """How files become tensors, set by `setup`; None: the data do not come from files, or cannot be added to."""

    def __init__(
        self,
        tasks_per_batch: int = 16,
        train_tasks: int = 1_600,
        val_tasks: int = 600,
        test_tasks: int = 600,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        distinct_train_tasks: int | None = None,
        redraw_examples: bool = True,
    ) -> None:
        super().__init__()
        self.num_tasks: dict[Split, int] = {"train": train_tasks, "val": val_tasks, "test": test_tasks}
        arguments.check_count("tasks_per_batch", tasks_per_batch)
        for split, tasks in self.num_tasks.items():
            arguments.check_count(f"{split}_tasks", tasks)
        arguments.check_seed(seed)
        arguments.check_count("num_workers", num_workers, least=0)
        arguments.check_optional_count("distinct_train_tasks", distinct_train_tasks)
        if not redraw_examples and distinct_train_tasks is None:
            raise ValueError("redraw_examples=False, but fresh tasks never return: set distinct_train_tasks, too")
        self.tasks_per_batch = tasks_per_batch
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.distinct_train_tasks = distinct_train_tasks
        self.redraw_examples = redraw_examples
        if self.keeps_arguments:
            # Those of derived classes too: Lightning looks through all constructors.
            self.save_hyperparameters(ignore=list(self.arguments_not_kept))
            self.hparams.update(
                {name: str(value) for name, value in self.hparams.items() if isinstance(value, PurePath)}
            )

    @_restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805 (a class method)
        checkpoint_path: Source,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = None,
        allow: Allowed = (),
        **kwargs: Any,
    ) -> Self:
        """Build the data module with the arguments that a checkpoint holds, which are plain values; it runs no code.

        Arguments and errors as in `TaskLearner.load_from_checkpoint`.
        """
        return load_data_module(cls, checkpoint_path, map_location, hparams_file, weights_only, allow, kwargs)

    @abstractmethod
    def episodes(self, split: Split) -> EpisodeDataset:
        """Return the tasks of a split."""

    def training_tasks(self) -> EpisodeDataset:
        """Return the tasks of training as they are served: without end, or ``distinct_train_tasks`` that return.

        Its ``redrawn`` gives other examples of these very tasks. Draws from `FIRST_RESERVED_DRAW` = 2**40 on are for
        analyses, as training does not reach them: ``data.training_tasks().redrawn(np.arange(8), np.full(8, 2**40))``.

        Raises:
            ValueError: If there are fewer distinct tasks.
            TypeError: If their examples cannot be drawn anew, and ``redraw_examples`` is True.
        """
        tasks = self.episodes("train")
        if self.distinct_train_tasks is None:
            return tasks
        return DistinctTasks(tasks, self.distinct_train_tasks, self.redraw_examples)

    def served_in_training(self) -> tuple[EpisodeDataset, int]:
        """Return what training goes through, and how many of it make a batch, per process; may be overridden."""
        return self.training_tasks(), self.tasks_per_batch

    def raw_features(self) -> nn.Module:
        """Return a module without parameters that turns inputs into vectors ``[examples, features]``, for baselines.

        The default flattens them.
        """
        return nn.Flatten()

    def train_dataloader(self) -> DataLoader[Episode]:
        """Batches of training tasks: fresh ones each epoch, or a number of distinct ones again and again."""
        loader = self._loader("train", *self.served_in_training())
        trainer = self.trainer
        if trainer is not None:
            loader.batches_done = lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return loader

    def val_dataloader(self) -> DataLoader[Episode] | list[DataLoader[Episode]]:
        """Batches of the validation tasks; no loader where there are none."""
        return self._loader("val", self.episodes("val"), self.tasks_per_batch) if self.num_tasks["val"] else []

    def test_dataloader(self) -> DataLoader[Episode]:
        """Batches of the test tasks."""
        return self._loader("test", self.episodes("test"), self.tasks_per_batch)

    predict_dataloader = test_dataloader

    def _loader(self, split: Split, dataset: EpisodeDataset, batch_size: int) -> EpisodeLoader:
        return EpisodeLoader(
            dataset,
            batch_size=batch_size,
            sampler=EpisodeSampler(dataset, fresh=split == "train"),
            collate_fn=collate_episodes,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )


def scope_of(data: Any) -> str:
    """Return what intervals over tasks are about: a data module's ``interval_scope``, or "over tasks"."""
    return data.interval_scope if isinstance(data, TaskDataModule) else "over tasks"
