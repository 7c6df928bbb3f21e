"""`MetaLearner`: what all algorithms have in common as LightningModules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Self

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta import arguments, checks
from lightning_meta.accumulation import accumulated_gradients, check_gradients, restore_gradients
from lightning_meta.adapted_task import AdaptedTask
from lightning_meta.attention import differentiable_attention
from lightning_meta.batch_statistics import (
    BatchStatistics,
    check_batch_statistics,
    check_normalization,
    dropped_buffers,
    set_statistics_mode,
)
from lightning_meta.checkpoint_content import shortened
from lightning_meta.checkpoint_io import CheckedCheckpointIO, Source
from lightning_meta.checkpoint_loading import Allowed, check_callback_paths, check_learner_class, load_learner
from lightning_meta.episode import Episode, Support
from lightning_meta.functional import call_with, exclusive
from lightning_meta.hyperparameters import NotesArguments, described, keep_hyperparameters
from lightning_meta.losses import LossFunction, likelihood_of, masked_mean
from lightning_meta.metrics.task_metrics import TaskMetrics, per_task_metrics
from lightning_meta.metrics.uncertainty import auroc, uncertainty_metrics
from lightning_meta.object_text import class_path, has_structure, structure
from lightning_meta.predictive import Samples, mean_output, predict
from lightning_meta.step_logging import is_shown
from lightning_meta.surrogate import surrogate_loss
from lightning_meta.task import InnerStep, MetaParameters, TaskResult, merge_results, run_through
from lightning_meta.task_mapping import CompileMode, TaskMapping, check_compile, is_out_of_memory
from lightning_meta.trees import map_leaves

SchedulerInterval = Literal["epoch", "step"]


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The default outer optimizer: Adam with a rate of 1e-3, as in the MAML paper."""
    return torch.optim.Adam(parameters, lr=1e-3)


class MetaLearner(L.LightningModule, NotesArguments, ABC):
    """Base of all algorithms: maps a pure per-task function over a batch of episodes.

    ``training_step`` computes every task's meta-gradient, averages, and hands Lightning a scalar whose value is
    the meta-loss and whose backward is the meta-gradient; so clipping, accumulation, precision, schedulers and
    strategies are Lightning's own.

    A new algorithm implements `inner_loop`, and `task_loss` or `task_gradient`; it may override the other extension
    points: `query_output`, `query_samples`, `task_metrics`, `after_batch`, and every Lightning hook. All per-task
    functions are pure: they take parameters as a dictionary and may not log, assign attributes, or branch on values.

    Logged: in each training step ``train/loss``; in those that loggers keep (the trainer's ``log_every_n_steps``), in
    an epoch's first and last and the run's last, also the metric, ``train/acc`` or ``train/mse``, and what the
    algorithm tells of its inner loop; in every step if a callback or schedule monitors one of them. In validation and
    test (``val/``, ``test/``): ``loss``, the metric after adaptation, its 95 % interval over tasks ``*_ci95``, the
    metric before adaptation ``*_pre``, with ``log_step_metrics`` the metric after k steps, ``*_step_k``, and what
    `uncertainty_metrics` describes. Episodes with ``outside_x`` add ``ood_auroc_total`` and ``ood_auroc_epistemic``:
    how well each kind of uncertainty tells examples of other classes from the queries.

    Args:
        model: Any module; called as ``model(x)``. It is used as it is, and its trainable parameters are
            what is meta-learned.
        loss_fn: Maps output and target of a set of examples to their mean loss.
        inner_lr: The (initial) inner learning rate.
        inner_steps: Inner steps in training.
        eval_inner_steps: Inner steps in validation, test and prediction; None: as in training.
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
            `torch.compile`, which see what Python reads (`lightning_meta.recording.guarded` names the exceptions); to
            trace a step takes seconds. True: steps are recorded at the first call and compiled by `torch.compile`,
            which takes half a minute and is several times as fast again for small models; random draws may come in
            another order. What cannot be recorded or compiled is run by Python, with a warning. False: Python runs
            every step. Evaluation is neither recorded nor compiled.
        batch_statistics: What batch normalization uses, in training and evaluation alike. "batch": the
            statistics of the set at hand, so queries see each other (transductive, as in the MAML paper).
            "support": as "batch" in training; in evaluation each query is normalized together with the
            support set only (non-transductive, as in the Reptile paper). "running": the model's stored running
            statistics, never updated (for pretrained models).
        log_step_metrics: Whether evaluation also logs the metric after every inner step.

    Raises:
        ValueError: If an argument is out of its range; the message names it and the cure.
        TypeError: If the model has layers that cannot run per task.
    """

    ignores_labels = True
    """Whether labels that the loss is told to ignore are left out, rather than refused."""

    whole_tasks = False
    """Whether per-task functions take no masks, so that padding is cut off instead."""

    draws = False
    """Whether training draws random numbers, besides dropout; then threads may not take them in any order."""

    draws_together = 1
    """How many draws of `query_samples` in a row share what the others draw anew, as the heads of one body."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: SchedulerInterval = "epoch",
        task_chunk_size: int | None = None,
        compile: CompileMode = None,
        batch_statistics: BatchStatistics = "batch",
        log_step_metrics: bool = False,
    ) -> None:
        super().__init__()
        loss_fn = nn.CrossEntropyLoss() if loss_fn is None else loss_fn
        arguments.check_module("model", model)
        arguments.check_loss(loss_fn)
        arguments.check_rate("inner_lr", inner_lr)
        arguments.check_count("inner_steps", inner_steps)
        arguments.check_optional_count("eval_inner_steps", eval_inner_steps)
        arguments.check_optional_count("task_chunk_size", task_chunk_size)
        check_compile(compile)
        arguments.check_choice("lr_scheduler_interval", lr_scheduler_interval, SchedulerInterval)
        check_batch_statistics(batch_statistics)
        check_normalization(model, batch_statistics)
        checks.check_overrides(type(self))
        passed = self.arguments_by_name(model)
        self._described_arguments = described({"loss_fn": loss_fn, **passed})
        kept, self._left_out_arguments = keep_hyperparameters(self, passed)

        self.model = model
        self.loss_fn = loss_fn
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.optimizer_factory = adam if optimizer is None else optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.task_chunk_size = task_chunk_size
        self.batch_statistics = batch_statistics
        self.log_step_metrics = log_step_metrics
        self._frozen = frozenset(f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad)
        self._dropped_buffers = dropped_buffers(model, batch_statistics)
        self._output_shape: torch.Size | None = None
        self._random_seed: int | None = None
        self._accumulated: dict[str, Any] | None = None
        self._mapping = TaskMapping(self, compile, type(self).task_gradient is not MetaLearner.task_gradient)
        self._metrics = {stage: TaskMetrics() for stage in ("val", "test")}
        set_statistics_mode(model, batch_statistics)
        self._structure = structure(model) if "model" in kept and passed["model"] is model else None

    # ---- The per-task functions: what an algorithm defines. -------------------------------------------------

    @abstractmethod
    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Adapt to one task, yielding where the loop stands after 0, 1, ..., ``steps`` steps.

        Args:
            meta: The learner's trainable parameters by name, as in `named_parameters`.
            support: The task's support set.
            steps: How many steps to take.
        """

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return one task's meta-loss, to be differentiated in ``meta``, and its report."""
        raise NotImplementedError(f"{type(self).__name__} defines neither task_loss nor task_gradient")

    def task_gradient(self, meta: MetaParameters, task: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        """Return one task's meta-gradient, same keys and shapes as ``meta``, and its report."""
        gradient, (_, result) = grad_and_value(self.task_loss, has_aux=True)(dict(meta), task)
        return gradient, result

    def query_output(self, meta: MetaParameters, state: Any, x: Any) -> Tensor:
        """Return the adapted model's output ``[query, ...]`` on inputs ``[query, ...]``.

        Here ``state`` is a dictionary of the adapted parameters, named as in the model.
        """
        return self.call_model({**self.model_parameters(meta), **state}, x)

    def query_samples(self, meta: MetaParameters, state: Any, x: Any) -> Samples:
        """Return draws from the posterior over models, as their outputs on inputs ``[query, ...]``.

        A point learner has one draw, without a noise model.
        """
        return Samples(self.query_output(meta, state, x)[None])

    def task_metrics(self, outputs: Tensor, targets: Any, mask: Tensor | None) -> dict[str, Tensor]:
        """Return metrics by name, each with one value a task, ``[tasks]``; in training, called where they are logged.

        Args:
            outputs: The adapted models' outputs, ``[tasks, query, ...]``.
            targets: ``[tasks, query, ...]``.
            mask: ``[tasks, query]`` or None.
        """
        return per_task_metrics(self.loss_fn, outputs, targets, mask)

    def after_batch(self, result: TaskResult) -> None:
        """Called with the report of each training batch ``[tasks, ...]``, to keep what tasks pass on to later ones."""

    def training_phase(self) -> Hashable:
        """What per-task functions in training depend on that changes with the trainer's progress."""
        return None

    # ---- What per-task functions call. ----------------------------------------------------------------------

    def model_parameters(self, meta: MetaParameters) -> dict[str, Tensor]:
        """The model's part of the meta-parameters, named as in the model."""
        return module_part(meta, "model")

    def call_model(self, parameters: Mapping[str, Tensor], x: Any) -> Tensor:
        """Call the model as a pure function of its parameters, named as in the model."""
        return call_with(self.model, {**parameters, **self._dropped_buffers}, x)

    def output_shape(self, x: Any) -> torch.Size:
        """The shape of the model's output for one example, found by one call on inputs ``[tasks, examples, ...]``.

        Raises:
            ValueError: If the model cannot take them.
        """
        if self._output_shape is None:
            x = map_leaves(lambda leaf: leaf[0], x)
            try:
                with torch.no_grad(), self.keeping_random_state():
                    self._output_shape = self.call_model({}, x).shape[1:]
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                shapes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tree_leaves(x))
                raise ValueError(f"model cannot take one task's inputs, {shapes}: {error}") from error
        return self._output_shape

    def loss(self, output: Tensor, target: Any, mask: Tensor | None = None) -> Tensor:
        """The loss function's mean over the examples that count."""
        return masked_mean(self.loss_fn, output, target, mask)

    # ---- Lightning's steps. ---------------------------------------------------------------------------------

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """Return the meta-loss of a batch of tasks; its backward is the mean of the tasks' meta-gradients."""
        restore_gradients(self._accumulated, self)
        self._accumulated = None
        trainable = self._meta_parameters()
        if not all(p.requires_grad for p in trainable.values()):
            names = [name for name, p in trainable.items() if not p.requires_grad]
            raise ValueError(f"{names} were frozen after {type(self).__name__} was made: freeze the model before")
        meta = {name: p.detach() for name, p in trainable.items()}
        checks.check_batch(batch, self)
        with self._draws_of(self._steps_taken()):
            totals, results = self._mapping.gradients(meta, batch, self._steps_processed())
        result = merge_results(results, _query_size(batch))
        checks.check_finite(result, self, totals.values(), batch)
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

    @property
    def trainer(self) -> L.Trainer:
        """The trainer; it reads checkpoints as `read_checkpoint` does, unless the user reads them otherwise."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        L.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]
        if trainer is not None and type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckedCheckpointIO()

    def on_fit_start(self) -> None:
        """Refuse trainer settings with which training would go wrong; settle where random numbers come from."""
        checks.check_trainer(self)
        if self._random_seed is None or self.trainer.ckpt_path is None:
            self._random_seed = torch.initial_seed()
        self._random_seed = self.trainer.strategy.broadcast(self._random_seed)

    def validation_step(self, batch: Episode, batch_idx: int) -> dict[str, Any]:
        """Adapt to each task and record its metrics; returns the fields of the report, for callbacks."""
        return self._evaluation_step(batch, batch_idx, "val")

    def test_step(self, batch: Episode, batch_idx: int) -> dict[str, Any]:
        """Adapt to each task and record its metrics; returns the fields of the report, for callbacks."""
        return self._evaluation_step(batch, batch_idx, "test")

    def predict_step(self, batch: Episode, batch_idx: int = 0) -> Tensor:
        """Return the adapted models' outputs on the query sets, ``[tasks, query, ...]``."""
        with self._draws_of(batch_idx):
            return self.evaluate(batch).outputs[:, -1]

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's tasks."""
        self._metrics["val"].reset()

    def on_test_epoch_start(self) -> None:
        """Forget the last epoch's tasks."""
        self._metrics["test"].reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all tasks, with their intervals."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics over all tasks, with their intervals."""
        self._log_evaluation("test")

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

    def train(self, mode: bool = True) -> MetaLearner:
        """Set training or evaluation mode; normalization follows ``batch_statistics`` in both."""
        super().train(mode)
        set_statistics_mode(self.model, self.batch_statistics)
        return self

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
        """Build the learner that a checkpoint holds, as Lightning's method of this name; the file runs no code.

        What the checkpoint says of its arguments is data: plain values, and classes of torch.nn, torch.optim and this
        package. Arguments that are passed replace the checkpoint's, which are then not looked at.

        Args:
            checkpoint_path: A path, a URL, or a file open for reading bytes.
            map_location: As in `torch.load`; None: where the tensors were, if there is such a device here.
            hparams_file: A .yaml or .csv file with arguments in the place of the checkpoint's.
            strict: Whether the checkpoint must have all parameters and no others; None: ``strict_loading``.
            weights_only: False unpickles objects of any kind, which can run code. None, as True, refuses them.
            allow: Classes and functions besides that the checkpoint may name, as themselves or by their paths
                (``"my_package.MyModel"``), which are then imported; of a learner's class: it may be loaded as this one.
            **kwargs: The learner's arguments.

        Raises:
            ValueError: If another class of learner saved the checkpoint, it names what is not allowed, or an argument
                is missing; the message says what to pass.
            RuntimeError: If the file is cut short or damaged, or its content would take far more memory than the file.
            FileNotFoundError: If it, or ``hparams_file``, does not exist.
            UnpicklingError: If it holds pickled code, and ``weights_only`` is not False.
        """
        return load_learner(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, allow, kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what was trained, with which loss and inner optimizer, so that nothing takes their place unnoticed."""
        checkpoint["meta_learner_class"] = class_path(type(self))
        checkpoint["meta_learner_left_out"] = dict(self._left_out_arguments)
        if self._structure is not None and not has_structure(self.model, self._structure):
            checkpoint["meta_learner_left_out"]["model"] = f"{type(self.model).__qualname__}, which was changed later"
            checkpoint.get("hyper_parameters", {}).pop("model", None)
        checkpoint["meta_learner_arguments"] = self._described_arguments
        checkpoint["meta_learner_random_seed"] = self._random_seed
        checkpoint["meta_learner_gradients"] = accumulated_gradients(self._trainer, self)
        checkpoint["meta_learner_recordings"] = self._mapping.progress(self._steps_processed())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a ValueError if the checkpoint is of another learner, or another loss or inner optimizer as objects."""
        if self._trainer is not None:  # a run that goes on, rather than one that starts from trained weights
            check_learner_class(checkpoint, type(self))
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

    # ---- Inference. -----------------------------------------------------------------------------------------

    def adapt(
        self, support_x: Any, support_y: Any, steps: int | None = None, support_mask: Tensor | None = None
    ) -> AdaptedTask:
        """Adapt to one task; the learner stays as it is.

        Works under ``no_grad`` and ``inference_mode``, and in several threads at once. Dropout follows the learner's
        mode, as in a plain module: call ``eval()`` first.

        Args:
            support_x: Inputs, ``[support, ...]``: no task dimension.
            support_y: Targets, ``[support, ...]``.
            steps: Inner steps; None: ``eval_inner_steps``.
            support_mask: ``[support]``, True where an example counts.

        Returns:
            The adapted model: ``task(x)`` gives outputs, ``task.predict(x)`` a `Prediction`.
        """
        arguments.check_optional_count("steps", steps)
        steps = self.eval_inner_steps if steps is None else steps
        support = Support(support_x, support_y, support_mask)
        checks.check_support(support, self)
        if support_mask is not None:  # one task alone needs no padding
            x, y = tree_map(lambda leaf: leaf[support_mask], (support_x, support_y))
            support = Support(x, y)
        # Copies: training may go on while the adapted task is in use.
        meta = {name: p.detach().clone() for name, p in self._meta_parameters().items()}
        with differentiable_attention(), torch.no_grad():
            state, losses = run_through(self.inner_loop(meta, support, steps))
        checks.check_finite(TaskResult(losses[-1:], losses[:0], losses[None]), self)
        checks.check_adapted(state, steps, self)
        return AdaptedTask(self, meta, state, support)

    def evaluate(self, batch: Episode, steps: int | None = None, record: tuple[int, ...] | None = None) -> TaskResult:
        """Adapt to each task of a batch, without building anything for the meta-gradient.

        Args:
            batch: The tasks.
            steps: Inner steps; None: ``eval_inner_steps``.
            record: After which numbers of steps to keep the outputs; None: only the last.

        Returns:
            The report ``[tasks, ...]``; its loss is the query loss after the last step.
        """
        steps = self.eval_inner_steps if steps is None else steps
        kept = (steps,) if record is None else record
        checks.check_batch(batch, self)
        meta = {name: p.detach() for name, p in self._meta_parameters().items()}

        def evaluate_task(meta: MetaParameters, task: Episode) -> TaskResult:
            return self._evaluate_task(meta, task, steps, kept)

        with torch.no_grad():
            results = self._mapping.map(evaluate_task, meta, batch)
        result = merge_results(results, _query_size(batch))
        checks.check_finite(result, self, batch=batch)
        return result

    # ---- Inside. --------------------------------------------------------------------------------------------

    def _meta_parameters(self) -> dict[str, nn.Parameter]:
        """What is meta-learned; also after ``freeze()``, which must not change how tasks adapt."""
        with exclusive():
            return {name: p for name, p in self.named_parameters() if name not in self._frozen}

    def evaluation_samples(self, meta: MetaParameters, state: Any, support: Support, x: Any) -> Samples:
        """As `query_samples`, in evaluation, where ``batch_statistics="support"`` separates queries."""
        if self.batch_statistics != "support":
            return self.query_samples(meta, state, x)

        def beside_support(one: Any) -> dict[str, Tensor]:
            together = tree_map(lambda leaf, query: torch.cat([leaf, query[None]]), support.x, one)
            return {name: leaf[:, -1] for name, leaf in self.query_samples(meta, state, together).present().items()}

        if self.task_chunk_size == 1:
            each = [beside_support(tree_map(lambda leaf, i=i: leaf[i], x)) for i in range(tree_leaves(x)[0].shape[0])]
            return Samples(**tree_map(lambda *leaves: torch.stack(leaves, dim=1), *each))
        return Samples(**vmap(beside_support, out_dims=1, randomness="different")(x))

    def _evaluate_task(self, meta: MetaParameters, task: Episode, steps: int, record: tuple[int, ...]) -> TaskResult:
        outputs, support_losses = [], []
        for step, (state, support_loss) in enumerate(self.inner_loop(meta, task.support, steps)):
            support_losses += [] if support_loss is None else [support_loss]
            if step in record:
                samples = self.evaluation_samples(meta, state, task.support, task.query_x)
                outputs.append(mean_output(likelihood_of(self.loss_fn), samples))
        loss = self.loss(outputs[-1], task.query_y, task.query_mask)
        novelty = {} if task.outside_x is None else self._novelty(meta, state, task)
        return TaskResult(loss, torch.stack(outputs), torch.stack(support_losses), samples.present(), novelty)

    def _novelty(self, meta: MetaParameters, state: Any, task: Episode) -> dict[str, tuple[Tensor, Tensor]]:
        together = tree_map(lambda query, outside: torch.cat([query, outside]), task.query_x, task.outside_x)
        samples = self.evaluation_samples(meta, state, task.support, together)
        prediction = predict(likelihood_of(self.loss_fn), samples, self.draws_together)
        queries = tree_leaves(task.query_x)[0].shape[0]
        kinds = {"total": prediction.total, "epistemic": prediction.epistemic}
        return {name: (value[:queries], value[queries:]) for name, value in kinds.items() if value is not None}

    def _evaluation_step(self, batch: Episode, batch_idx: int, stage: str) -> dict[str, Any]:
        steps = self.eval_inner_steps
        record = tuple(range(steps + 1)) if self.log_step_metrics else (0, steps)
        with self._draws_of(batch_idx):
            result = self.evaluate(batch, record=record)
        values = {"loss": result.loss}
        for index, step in enumerate(record):
            for name, value in self.task_metrics(result.outputs[:, index], batch.query_y, batch.query_mask).items():
                if step == 0:
                    values[f"{name}_pre"] = value
                if step == steps:
                    values[name] = value
                if self.log_step_metrics:
                    values[f"{name}_step_{step}"] = value
        likelihood, samples = likelihood_of(self.loss_fn), Samples(**result.samples)
        values |= uncertainty_metrics(likelihood, samples, batch.query_y, batch.query_mask)
        values |= {f"ood_auroc_{kind}": auroc(*pair, batch.query_mask) for kind, pair in result.novelty.items()}
        self._metrics[stage].update(values)
        return result._asdict()

    def _log_evaluation(self, stage: str) -> None:
        values = self._metrics[stage].compute()
        shown = {name for name in values if "_" not in name}
        self.log_dict({f"{stage}/{n}": v for n, v in values.items() if n in shown}, prog_bar=True)
        self.log_dict({f"{stage}/{n}": v for n, v in values.items() if n not in shown})

    def _log_step(self, values: Mapping[str, Tensor], batch: Episode, prog_bar: bool) -> None:
        means = {f"train/{name}": value.float().mean() for name, value in values.items()}
        self.log_dict(means, prog_bar=prog_bar, batch_size=batch.num_tasks)

    def _steps_taken(self) -> int:
        return 0 if self._trainer is None else self._trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def _steps_processed(self) -> int:
        """The steps whose optimizer step, if they had one, is done."""
        if self._trainer is None:
            return 0
        total: Any = self._trainer.fit_loop.epoch_loop.batch_progress.total
        return total.processed

    @contextmanager
    def _draws_of(self, step: int) -> Iterator[None]:
        """Under a trainer, make random numbers a function of seed, process and step alone.

        So a resumed run draws what it would have drawn, and evaluation draws the same every time.
        """
        if self._trainer is None:
            yield
            return
        seed = torch.initial_seed() if self._random_seed is None else self._random_seed
        with self.keeping_random_state():
            sequence = np.random.SeedSequence([seed % 2**64, self._trainer.global_rank, step])
            number = int(sequence.generate_state(1, np.uint64)[0])
            torch.default_generator.manual_seed(number)  # torch.manual_seed would queue work for absent devices
            if self.device.type == "cuda":
                torch.cuda.manual_seed(number)
            yield

    def keeping_random_state(self) -> AbstractContextManager[None]:
        """A context that leaves the random generators as they were."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])


def module_part(meta: MetaParameters, name: str) -> dict[str, Tensor]:
    """The parameters under one submodule, by their names inside it."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in meta.items() if key.startswith(prefix)}


def _query_size(batch: Episode) -> int:
    return tree_leaves(batch.query_x)[0].shape[1]
