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
from lightning_meta.data.episodes import EpisodeDataset, EpisodeLoader, EpisodeSampler, Split
from lightning_meta.data.preparation import Preparation
from lightning_meta.episodes.episode import Episode, collate_episodes


class TaskDataModule(L.LightningDataModule, ABC):
    """Serves the tasks of three splits; a derived class implements `episodes`.

    Every task is a function of (seed, split, index). Training draws fresh tasks each epoch; validation and test
    always see the same ones. On several devices each process takes its own share of the tasks.

    Args:
        tasks_per_batch: Tasks in a meta-batch, per process.
        train_tasks: Tasks in a training epoch, over all processes.
        val_tasks: Validation tasks.
        test_tasks: Test and prediction tasks.
        seed: Determines the tasks; independent of the seed of the training.
        num_workers: Processes that make episodes; 0 makes them in the training process.
        pin_memory: Whether to pin host memory for faster copies to a GPU.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If an argument's name is not known.
    """

    keeps_arguments = False
    """Whether checkpoints and loggers keep the constructor's arguments, which must then be plain values or paths."""

    in_time_order = False
    """Whether the examples of support sets are in the order of time, and precede those of query sets."""

    arguments_not_kept: ClassVar[tuple[str, ...]] = ()
    """Those of the arguments that may be no plain values."""

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
    ) -> None:
        super().__init__()
        self.num_tasks: dict[Split, int] = {"train": train_tasks, "val": val_tasks, "test": test_tasks}
        arguments.check_count("tasks_per_batch", tasks_per_batch)
        for split, tasks in self.num_tasks.items():
            arguments.check_count(f"{split}_tasks", tasks)
        arguments.check_seed(seed)
        arguments.check_count("num_workers", num_workers, least=0)
        self.tasks_per_batch = tasks_per_batch
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory
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

    def raw_features(self) -> nn.Module:
        """Return a module without parameters that turns inputs into vectors ``[examples, features]``, for baselines.

        The default flattens them.
        """
        return nn.Flatten()

    def train_dataloader(self) -> DataLoader[Episode]:
        """Batches of training tasks, fresh ones each epoch."""
        loader = self._loader("train")
        trainer = self.trainer
        if trainer is not None:
            loader.batches_done = lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return loader

    def val_dataloader(self) -> DataLoader[Episode] | list[DataLoader[Episode]]:
        """Batches of the validation tasks; no loader where there are none."""
        return self._loader("val") if self.num_tasks["val"] else []

    def test_dataloader(self) -> DataLoader[Episode]:
        """Batches of the test tasks."""
        return self._loader("test")

    predict_dataloader = test_dataloader

    def _loader(self, split: Split) -> EpisodeLoader:
        dataset = self.episodes(split)
        return EpisodeLoader(
            dataset,
            batch_size=self.tasks_per_batch,
            sampler=EpisodeSampler(dataset, fresh=split == "train"),
            collate_fn=collate_episodes,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )
