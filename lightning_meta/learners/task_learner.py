"""`TaskLearner`: the base of all algorithms."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_loss, check_module
from lightning_meta.checkpoints.accumulation import restore_gradients
from lightning_meta.episodes import Episode, merge_results
from lightning_meta.execution.capture import ClosedWorld
from lightning_meta.execution.mapping import TaskMapping
from lightning_meta.execution.options import CompileMode, Execution
from lightning_meta.execution.surrogate import surrogate_loss
from lightning_meta.learners.checkpointing import Checkpointing
from lightning_meta.learners.checks import check_batch, check_overrides, check_trainer
from lightning_meta.learners.divergence import check_finite
from lightning_meta.learners.evaluation import Evaluation, query_size
from lightning_meta.learners.step_logging import is_shown
from lightning_meta.likelihoods.losses import LossFunction
from lightning_meta.metrics.task_metrics import TaskMetrics
from lightning_meta.models.batch_statistics import (
    BatchStatistics,
    check_batch_statistics,
    check_normalization,
    dropped_buffers,
    set_statistics_mode,
)

SchedulerInterval = Literal["epoch", "step"]


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The default outer optimizer: Adam with a rate of 1e-3, as in the MAML paper."""
    return torch.optim.Adam(parameters, lr=1e-3)


class TaskLearner(Evaluation, Checkpointing):
    """Base of all algorithms: a way to adapt to a support set, and a way to predict queries.

    ``training_step`` computes every task's meta-gradient, averages, and hands Lightning a scalar whose value is
    the meta-loss and whose backward is the meta-gradient; so clipping, accumulation, precision, schedulers and
    strategies are Lightning's own.

    A new algorithm implements `adapt_task` and `query_output`; `PerTaskFunctions` lists what else it may override.
    Those that adapt by gradient descent derive from `GradientLearner`, those of a task's posterior from
    `BayesianLearner`, classifiers whose classes are those of the support set from `SupportClassLearner`.

    Logged: in each training step ``train/loss``; in those that loggers keep (the trainer's ``log_every_n_steps``), in
    an epoch's first and last and the run's last, also the metric, ``train/acc`` or ``train/mse``, and the algorithm's
    diagnostics; in every step if a callback or schedule monitors one of them. In validation and
    test (``val/``, ``test/``): ``loss``, the metric after adaptation, its 95 % interval over tasks ``*_ci95``, for
    learners with inner steps the metric before adaptation ``*_pre`` and, with ``log_step_metrics``, after k steps,
    ``*_step_k``, and what `uncertainty_metrics` describes. Episodes with ``ood_x`` add ``ood_auroc_total`` and
    ``ood_auroc_epistemic``: how well each kind of uncertainty tells examples of other classes from the queries.

    Args:
        model: Any module; called as ``model(x)``. It is used as it is, and its trainable parameters are
            what is meta-learned.
        loss_fn: Maps output and target of a set of examples to their mean loss; None: ``nn.CrossEntropyLoss()``.
        optimizer: Makes the outer optimizer from the parameters; None: Adam with a rate of 1e-3.
        lr_scheduler: Makes the outer schedule from the optimizer.
        lr_scheduler_interval: Whether the schedule steps once an "epoch" or once an outer "step".
        task_chunk_size: How many tasks are vectorized at once; 1 takes one after another, without vectorizing,
            for models that cannot be. None lets the library choose; then a tiny model's operations use a single CPU
            thread, and recorded pieces of images, or compiled tiny ones, are computed on several threads at the same
            time, of which each holds a piece in memory.
        compile: How training steps are run; one log line says which way it is, and why. None: by Python, until ten
            alike steps were taken; then their tensor operations are recorded once and repeated from
            then on, without Python and autograd in between: about twice as fast for small models. This is done where
            every module, loss and update rule is of a class of ``torch.nn`` or of this library, because what those
            read is known and compared in every step; where one is not, and where tracing a step takes more than 60,000
            operations, Python runs every step. "record": other classes' steps are recorded too, under the guards of
            `torch.compile`, which see what Python reads (`lightning_meta.execution.capture.guarded` names the
            exceptions); to trace a step takes seconds. True: steps are recorded at the first call and compiled by
            `torch.compile`, which takes half a minute and is several times as fast again for small models; random
            draws may come in another order. What cannot be recorded or compiled is run by Python, with a warning.
            False: Python runs every step. Evaluation is neither recorded nor compiled.
        batch_statistics: What batch normalization uses, in training and evaluation alike. "batch": the
            statistics of the set at hand, so queries see each other (transductive, as in the MAML paper).
            "support": as "batch" in training; in evaluation each query is normalized together with the
            support set only (non-transductive, as in the Reptile paper). "running": the model's stored running
            statistics, never updated (for pretrained models).

    Raises:
        ValueError: If an argument is out of its range; the message names it and the cure.
        TypeError: If the model has layers that cannot run per task, or an argument's name is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: SchedulerInterval = "epoch",
        task_chunk_size: int | None = None,
        compile: CompileMode = None,
        batch_statistics: BatchStatistics = "batch",
    ) -> None:
        super().__init__()
        loss_fn = nn.CrossEntropyLoss() if loss_fn is None else loss_fn
        check_module("model", model)
        check_loss(loss_fn)
        check_choice("lr_scheduler_interval", lr_scheduler_interval, SchedulerInterval)
        check_batch_statistics(batch_statistics)
        check_normalization(model, batch_statistics)
        check_overrides(type(self))
        self.execution = Execution(task_chunk_size, compile)
        self._note_arguments(model, loss_fn)

        self.model = model
        self.loss_fn = loss_fn
        self.optimizer_factory = adam if optimizer is None else optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.batch_statistics = batch_statistics
        self._frozen = frozenset(f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad)
        self._dropped_buffers = dropped_buffers(model, batch_statistics)
        self._output_shape = None
        self._random_seed = None
        self._accumulated = None
        own_gradient = type(self).task_gradient is not TaskLearner.task_gradient
        world = ClosedWorld(self, self.training_phase)
        self._mapping = TaskMapping(model, self._task_loss, self._task_gradient, own_gradient, world)
        self._metrics = {stage: TaskMetrics() for stage in ("val", "test")}
        set_statistics_mode(model, batch_statistics)
        self._note_structure()

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """Return the meta-loss of a batch of tasks; its backward is the mean of the tasks' meta-gradients."""
        restore_gradients(self._accumulated, self)
        self._accumulated = None
        trainable = self._meta_parameters()
        if not all(p.requires_grad for p in trainable.values()):
            names = [name for name, p in trainable.items() if not p.requires_grad]
            raise ValueError(f"{names} were frozen after {type(self).__name__} was made: freeze the model before")
        meta = {name: p.detach() for name, p in trainable.items()}
        check_batch(batch, self._targets())
        with self._draws_of(self._steps_taken()):
            totals, results = self._mapping.gradients(
                meta, self._prepared(batch), self._traits(), self._steps_processed()
            )
        result = merge_results(results, query_size(batch))
        check_finite(result, self._rates_in_errors, self.parameters(), totals.values(), batch)
        sums = [totals[name] for name in trainable]
        loss = surrogate_loss(result.loss.mean(), list(trainable.values()), sums, 1 / batch.num_tasks)
        self.after_batch(result)
        if self._trainer is not None:
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=batch.num_tasks)
            if is_shown(self._trainer, batch_idx):
                metrics = self.task_metrics(result.outputs[:, -1], batch.query_y, batch.query_mask)
                self._log_step(metrics, batch, prog_bar=True)
                self._log_step(result.diagnostics, batch, prog_bar=False)
        return loss

    def on_fit_start(self) -> None:
        """Refuse trainer settings with which training would go wrong; settle where random numbers come from."""
        check_trainer(self.trainer, self.model, self.batch_statistics)
        if self._random_seed is None or self.trainer.ckpt_path is None:
            self._random_seed = torch.initial_seed()
        self._random_seed = self.trainer.strategy.broadcast(self._random_seed)

    def configure_optimizers(self) -> Any:
        """The outer optimizer and its schedule."""
        optimizer = self.optimizer_factory(p for p in self.parameters() if p.requires_grad)
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        schedule: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def train(self, mode: bool = True) -> TaskLearner:
        """Set training or evaluation mode; normalization follows ``batch_statistics`` in both."""
        super().train(mode)
        set_statistics_mode(self.model, self.batch_statistics)
        return self

    # What the mapping calls: methods that are replaced on the learner itself count, too.

    def _task_loss(self, meta: Any, task: Episode) -> Any:
        return self.task_loss(meta, task)

    def _task_gradient(self, meta: Any, task: Episode) -> Any:
        return self.task_gradient(meta, task)

    def _steps_taken(self) -> int:
        return 0 if self._trainer is None else self._trainer.fit_loop.epoch_loop.batch_progress.total.completed
