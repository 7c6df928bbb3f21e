"""`Checkpointing`: saving a learner's arguments and progress, and loading a learner from a checkpoint."""

from typing import Any, Self

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import nn

from lightning_meta.checkpoints.accumulation import accumulated_gradients, check_gradients
from lightning_meta.checkpoints.checked_io import CheckedCheckpointIO, Source
from lightning_meta.checkpoints.content import shortened
from lightning_meta.checkpoints.hyperparameters import NotesArguments, described, keep_hyperparameters
from lightning_meta.checkpoints.loading import (
    Allowed,
    check_callback_paths,
    check_learner_class,
    check_preparation,
    load_learner,
)
from lightning_meta.checkpoints.object_text import class_path, has_structure, structure
from lightning_meta.execution.mapping import TaskMapping
from lightning_meta.metrics.conformal_quantiles import ConformalQuantiles


class Checkpointing(L.LightningModule, NotesArguments):
    """The part of a `TaskLearner` that writes and reads checkpoints."""

    model: nn.Module
    _mapping: TaskMapping
    _random_seed: int | None
    _accumulated: dict[str, Any] | None
    validation_scores: ConformalQuantiles | None
    trained_preparation: dict[str, Any] | None
    """How the data of the loaded checkpoint's training were prepared, as `Preparation.state` returned it."""

    def _note_arguments(self, model: nn.Module, loss_fn: Any) -> None:
        """Keep the constructor's arguments; called before anything changes the model."""
        passed = self.arguments_by_name(model)
        self._described_arguments = described({"loss_fn": loss_fn, **passed})
        kept, self._left_out_arguments = keep_hyperparameters(self, passed)
        self._keeps_model = "model" in kept and passed["model"] is model

    def _note_structure(self) -> None:
        """Keep the model's structure, to detect later changes."""
        self._structure = structure(self.model) if self._keeps_model else None

    @property
    def trainer(self) -> L.Trainer:
        """The trainer; it reads checkpoints by `read_checkpoint` unless it was given another reader."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        L.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]
        if trainer is not None and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckedCheckpointIO()

    @_restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805 (a class method)
        checkpoint_path: Source,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        allow: Allowed = (),
        **kwargs: Any,
    ) -> Self:
        """Build a learner from a checkpoint, as Lightning's method of this name, without running code from the file.

        The stored arguments are data: plain values, and classes of torch.nn, torch.optim and this package by name.
        Arguments passed here replace the stored ones, which are then not read.

        Args:
            checkpoint_path: A path, a URL, or a file open for reading bytes.
            map_location: As in `torch.load`; None: the device that the tensors were on, if this machine has it.
            hparams_file: A .yaml or .csv file whose arguments replace the checkpoint's.
            strict: Whether the checkpoint must have all parameters and no others; None: ``strict_loading``.
            weights_only: False unpickles objects of any kind, which can run code. None, as True, refuses them.
            allow: Other classes and functions that the checkpoint may name, as objects or as paths
                (``"my_package.MyModel"``), which are then imported. The class of another learner: a checkpoint saved by
                it may be loaded as this class.
            **kwargs: The learner's arguments.

        Raises:
            ValueError: If another class saved the checkpoint, it names a class that is not allowed, or an argument is
                missing; the message says what to pass.
            RuntimeError: If the file is truncated or damaged, or would expand to far more memory than its size.
            FileNotFoundError: If the file or ``hparams_file`` does not exist.
            UnpicklingError: If it holds pickled code, and ``weights_only`` is not False.
        """
        return load_learner(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, allow, kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the learner's class, arguments, preparation of data, random seed, gradients and captured steps."""
        checkpoint["meta_learner_class"] = class_path(type(self))
        checkpoint["meta_learner_left_out"] = dict(self._left_out_arguments)
        if self._structure is not None and not has_structure(self.model, self._structure):
            checkpoint["meta_learner_left_out"]["model"] = f"{type(self.model).__qualname__}, which was changed later"
            checkpoint.get("hyper_parameters", {}).pop("model", None)
        checkpoint["meta_learner_arguments"] = self._described_arguments
        checkpoint["meta_learner_preparation"] = self._preparation()
        scores = self.validation_scores
        checkpoint["meta_learner_scores"] = None if scores is None else scores._asdict()
        checkpoint["meta_learner_random_seed"] = self._random_seed
        checkpoint["meta_learner_gradients"] = accumulated_gradients(self._trainer, self)
        checkpoint["meta_learner_recordings"] = self._mapping.progress(self._steps_processed())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was saved.

        Raises:
            ValueError: If another class saved the checkpoint, or the same class with another loss or inner optimizer,
                or the data were prepared otherwise.
        """
        if self._trainer is not None:  # a resumed run
            check_learner_class(checkpoint, type(self))
            check_preparation(checkpoint.get("meta_learner_preparation"), self._preparation())
            check_callback_paths(checkpoint, self._trainer)
            self._random_seed = checkpoint.get("meta_learner_random_seed")
            if self._trainer.state.fn == TrainerFn.FITTING:
                self._accumulated = checkpoint.get("meta_learner_gradients")
                check_gradients(self._accumulated, self)
                self._mapping.resume(checkpoint.get("meta_learner_recordings"))
        for name, trained in checkpoint["meta_learner_arguments"].items():
            own = self._described_arguments.get(name, "the default")
            if trained != own:
                raise ValueError(
                    f"the checkpoint was trained with {name}={shortened(trained)}, this learner has {shortened(own)}: "
                    f"pass {name}=..."
                )
        self.trained_preparation = checkpoint.get("meta_learner_preparation")
        scores = checkpoint.get("meta_learner_scores")
        self.validation_scores = None if scores is None else ConformalQuantiles.checked(scores)
        if checkpoint.get("meta_learner_residuals") is not None:
            rank_zero_warn(
                "The checkpoint is of an earlier version, which pooled the errors of all validation queries. They are "
                "not used: predictions have no intervals from validation tasks until the learner is trained further."
            )

    def _preparation(self) -> dict[str, Any] | None:
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        preparation = getattr(data, "preparation", None)
        return None if preparation is None else preparation.state()

    def _steps_processed(self) -> int:
        """The number of steps whose optimizer step is done."""
        if self._trainer is None:
            return 0
        total: Any = self._trainer.fit_loop.epoch_loop.batch_progress.total
        return total.processed
