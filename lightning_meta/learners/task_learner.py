"""`TaskLearner`: the base of all algorithms."""

from collections.abc import Mapping
from typing import Any, Literal, Self

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
    check_normalization,
    dropped_buffers,
    set_statistics_mode,
)

SchedulerInterval = Literal["epoch", "step"]

_NOTHING_TO_LEARN = (
    "model has no parameter with requires_grad=True: there is nothing to meta-learn. Leave out the training: validate, "
    "test and predict without it"
)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The default outer optimizer: Adam with a rate of 1e-3, as in the MAML paper."""
    return torch.optim.Adam(parameters, lr=1e-3)


class TaskLearner(Evaluation, Checkpointing):
    """Base of all algorithms: it adapts to a support set and predicts queries.

    A new algorithm implements `adapt_task` and `query_output`; `PerTaskFunctions` lists what else it may override.
    Algorithms with an inner loop of gradient steps derive from `GradientLearner`, those that adapt a posterior from
    `BayesianLearner`, classifiers for any number of ways from `SupportClassLearner`.

    ``training_step`` returns the mean meta-loss; its backward gives each parameter the mean meta-gradient. Clipping,
    accumulation, precision, schedules and strategies are Lightning's own.

    Logged in training: ``train/loss`` in each step. The metric (``train/acc`` or ``train/mse``) and the algorithm's
    diagnostics follow in the steps that loggers keep (``log_every_n_steps``), in the first and last of an epoch, and
    in all if a callback or schedule monitors one of them. Logged in validation and test (``val/``, ``test/``):
    ``loss``, the metric after adaptation, its 95 % interval over tasks ``*_ci95``, and the metrics of
    `uncertainty_metrics`; with inner steps the metric before adaptation ``*_pre`` and, with ``log_step_metrics``, after
    k steps ``*_step_k``. Episodes with ``ood_x`` add ``ood_auroc_total`` and ``ood_auroc_epistemic``: how well each
    kind of uncertainty separates examples of other classes from the queries.

    Args:
        model: Any module, called as ``model(x)``. Its trainable parameters are meta-learned.
        loss_fn: Maps outputs and targets of a set of examples to their mean loss; None: ``nn.CrossEntropyLoss()``.
        optimizer: Makes the outer optimizer from the parameters; None: Adam with a rate of 1e-3.
        lr_scheduler: Makes the outer schedule from the optimizer.
        lr_scheduler_interval: Whether the schedule steps once an "epoch" or once an outer "step".
        task_chunk_size: How many tasks are vectorized at once. 1 computes one task after another without vectorizing,
            for models that do not support it. None chooses the fastest; then small models use one CPU thread, and
            captured steps on images, or compiled small models, share their tasks out among threads.
        compile: How training steps are run; one log line names the way and the reason. None: Python runs ten steps;
            then their tensor operations are captured and replayed without Python and autograd, which makes small
            models about twice as fast. This needs modules, loss and update rule of ``torch.nn`` or this library:
            everything that these read is compared in each step. Other classes, and steps of more than 60,000
            operations, are run by Python. "record": steps of other classes are captured too, under the guards of
            `torch.compile`, which take seconds to trace (`lightning_meta.execution.capture.guarded` lists what guards
            miss). True: steps are captured at the first call and compiled, which takes half a minute and makes small
            models several times as fast; random numbers may come in another order. What cannot be captured or
            compiled is run by Python, with a warning. False: Python runs all steps. Evaluation always runs in Python.
        batch_statistics: The statistics of batch normalization, in training and evaluation. "batch": those of
            the set at hand, so that queries influence each other (transductive, as in the MAML paper). "support": as
            "batch" in training; in evaluation each query is normalized with the support set only (as in the Reptile
            paper). "running": the model's running statistics, which do not change (for pretrained models).

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from lightning_meta import TaskLearner
        >>> class NearestNeighbour(TaskLearner):
        ...     def adapt_task(self, meta, support):
        ...         return self.call_model(self.model_parameters(meta), support.x), support.y
        ...     def query_output(self, meta, state, x):
        ...         features, targets = state
        ...         distances = torch.cdist(self.call_model(self.model_parameters(meta), x), features)
        ...         return (-distances).softmax(1) @ targets
        >>> learner = NearestNeighbour(torch.nn.Linear(3, 8), torch.nn.MSELoss())
    """

    modules_with_statistics: tuple[str, ...] = ("model",)
    """The names of the submodules whose normalization follows ``batch_statistics``."""

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
        self._frozen = frozenset()
        self._keep_frozen("model")
        self._dropped_buffers = dropped_buffers(model, batch_statistics)
        self._output_shape = None
        self._random_seed = None
        self._accumulated = None
        own_gradient = type(self).task_gradient is not TaskLearner.task_gradient
        world = ClosedWorld(self, self.training_phase)
        self._mapping = TaskMapping(model, self._task_loss, self._task_gradient, own_gradient, world)
        self._metrics = {stage: TaskMetrics() for stage in ("val", "test")}
        self.validation_scores = None
        self.trained_preparation = None
        set_statistics_mode(model, batch_statistics)
        self._note_structure()

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """Return the meta-loss of a batch of tasks; its backward is the mean of the tasks' meta-gradients."""
        restore_gradients(self._accumulated, self)
        self._accumulated = None
        trainable = self._meta_parameters()
        if not trainable:
            raise ValueError(_NOTHING_TO_LEARN)
        if not all(p.requires_grad for p in trainable.values()):
            names = [name for name, p in trainable.items() if not p.requires_grad]
            raise ValueError(f"{names} were frozen after {type(self).__name__} was made: freeze the model before")
        meta = {name: p.detach() for name, p in trainable.items()}
        check_batch(batch, self._targets())
        with self.draws_of(self._steps_taken()):
            totals, results = self._mapping.gradients(
                meta, self._prepared(batch), self._traits(), self._steps_processed()
            )
        result = merge_results(results, query_size(batch))
        check_finite(result, self.rates_in_errors, self.parameters(), totals.values(), batch)
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
        """Check the trainer's settings and data, and choose the seed of random numbers in training."""
        check_trainer(self.trainer, self.model, self.batch_statistics)
        self.check_data(getattr(self.trainer, "datamodule", None))
        if self._random_seed is None or self.trainer.ckpt_path is None:
            self._random_seed = torch.initial_seed()
        self._random_seed = self.trainer.strategy.broadcast(self._random_seed)

    def configure_optimizers(self) -> Any:
        """The outer optimizer and its schedule."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(_NOTHING_TO_LEARN)
        optimizer = self.optimizer_factory(parameters)
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        schedule: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; normalization follows ``batch_statistics`` in both."""
        super().train(mode)
        for name in self.modules_with_statistics:
            set_statistics_mode(self.get_submodule(name), self.batch_statistics)
        return self

    def _keep_frozen(self, name: str) -> None:
        """Leave out of the meta-parameters those parameters of a submodule that do not require a gradient now."""
        own = [(n, p) for n, p in self.named_parameters() if n.startswith(f"{name}.")]
        self._frozen |= {n for n, p in own if not p.requires_grad}

    # The mapping calls these two, so that methods replaced on the instance take effect.

    def _task_loss(self, meta: Any, task: Episode) -> Any:
        return self.task_loss(meta, task)

    def _task_gradient(self, meta: Any, task: Episode) -> Any:
        return self.task_gradient(meta, task)

    def _log_step(self, values: Mapping[str, Tensor], batch: Episode, prog_bar: bool) -> None:
        means = {f"train/{name}": value.float().mean() for name, value in values.items()}
        self.log_dict(means, prog_bar=prog_bar, batch_size=batch.num_tasks)

    def _steps_taken(self) -> int:
        return 0 if self._trainer is None else self._trainer.fit_loop.epoch_loop.batch_progress.total.completed
