"""`Evaluation`: `adapt`, `evaluate`, and Lightning's validation, test and prediction steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.arguments import check_choice, check_optional_count
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult, merge_results
from lightning_meta.execution.attention import differentiable_attention
from lightning_meta.execution.example_independence import are_independent, is_of_library
from lightning_meta.execution.functional import exclusive
from lightning_meta.execution.mapping import TaskMapping, Traits
from lightning_meta.execution.plan import drops
from lightning_meta.inner.inner_loop import run_through
from lightning_meta.learners.adapted_task import AdaptedTask
from lightning_meta.learners.checks import Targets, check_batch, check_support
from lightning_meta.learners.divergence import check_adapted, check_finite, with_infinite_losses
from lightning_meta.learners.per_task import PerTaskFunctions
from lightning_meta.learners.randomness import reproducible_draws
from lightning_meta.likelihoods.losses import likelihood_of
from lightning_meta.likelihoods.predictive import Samples, mean_output, predict
from lightning_meta.metrics.conformal_quantiles import ConformalQuantiles
from lightning_meta.metrics.conformal_scores import counted, kind_of_score, scores_by_task
from lightning_meta.metrics.task_metrics import TaskMetrics
from lightning_meta.metrics.uncertainty import auroc, uncertainty_metrics


class Evaluation(PerTaskFunctions):
    """The part of a `TaskLearner` that adapts to tasks without training."""

    inner_steps = 0
    eval_inner_steps = 0
    log_step_metrics = False
    _frozen: frozenset[str]
    _mapping: TaskMapping
    _metrics: dict[str, TaskMetrics]
    _random_seed: int | None
    validation_scores: ConformalQuantiles | None
    """How far targets were from predictions on the last validation's tasks, for the intervals and sets of others."""

    def adapt(
        self, support_x: Any, support_y: Any, steps: int | None = None, support_mask: Tensor | None = None
    ) -> AdaptedTask:
        """Adapt to one task; the learner does not change.

        Works under ``no_grad`` and ``inference_mode``, and in several threads at once. Dropout is active in training
        mode, as in any module: call ``eval()`` first.

        Args:
            support_x: Inputs, ``[support, ...]``, without a task dimension.
            support_y: Targets, ``[support, ...]``.
            steps: Inner steps; None: ``eval_inner_steps``.
            support_mask: ``[support]``, True where an example counts.

        Returns:
            The adapted model: ``task(x)`` returns outputs, ``task.predict(x)`` a `Prediction`.

        Raises:
            ValueError: If the model or the loss cannot take the examples, or the learner takes no inner steps.
            FloatingPointError: If adaptation diverges.
        """
        check_optional_count("steps", steps)
        if steps is not None and self.eval_inner_steps == 0:
            raise ValueError(f"steps={steps}, but {type(self).__name__} takes no inner steps: leave it out")
        steps = self.eval_inner_steps if steps is None else steps
        support = Support(support_x, support_y, support_mask)
        check_support(support, self._targets())
        if support_mask is not None:  # one task alone needs no padding
            x, y = tree_map(lambda leaf: leaf[support_mask], (support_x, support_y))
            support = Support(x, y)
        support = self.prepare_support(support)
        # Copies, because training may continue while the adapted task is in use.
        meta = {name: p.detach().clone() for name, p in self._meta_parameters().items()}
        with exclusive():
            fixed = {f"model.{n}": p.detach() for n, p in self.model.named_parameters() if f"model.{n}" not in meta}
            fixed |= {f"model.{n}": buffer.detach().clone() for n, buffer in self.model.named_buffers()}
        with differentiable_attention(), torch.no_grad():
            state, losses = run_through(self.adaptation(meta, support, steps))
        if len(losses):
            check_finite(TaskResult(losses[-1:], losses[:0], losses[None]), self.rates_in_errors, self.parameters())
        check_adapted(state, steps, self.rates_in_errors)
        return AdaptedTask(self, meta | fixed, state, support, support_y)

    def evaluate(
        self,
        batch: Episode,
        steps: int | None = None,
        record: tuple[int, ...] | None = None,
        diverged: Literal["raise", "keep"] = "raise",
    ) -> TaskResult:
        """Adapt to each task of a batch, without a meta-gradient.

        Args:
            batch: The tasks.
            steps: Inner steps; None: ``eval_inner_steps``.
            record: The numbers of steps after which to keep the outputs; None: only the last.
            diverged: What to do if the loss of a task is not finite: "raise" an error, or "keep" the task, with an
                infinite loss and outputs that may not be finite.

        Returns:
            The report ``[tasks, ...]``; its loss is the query loss after the last step.

        Raises:
            FloatingPointError: If a task diverges; with ``diverged="keep"`` only if the task's data or the learner's
                parameters are not finite.
        """
        check_choice("diverged", diverged, Literal["raise", "keep"])
        steps = self.eval_inner_steps if steps is None else steps
        kept = (steps,) if record is None else record
        result = self.map_tasks(lambda meta, task: self._evaluate_task(meta, task, steps, kept), batch)
        if diverged == "keep":
            return with_infinite_losses(result, self.rates_in_errors, self.parameters(), batch)
        check_finite(result, self.rates_in_errors, self.parameters(), batch=batch)
        return result

    def map_tasks(self, function: Callable[[MetaParameters, Episode], TaskResult], batch: Episode) -> TaskResult:
        """Apply a function of the meta-parameters and one task to each task of a batch, without gradients.

        Args:
            function: A pure function as those of `PerTaskFunctions`. What else it computes goes into the report's
                ``diagnostics``, as tensors of any shape.
            batch: The tasks.

        Returns:
            The report ``[tasks, ...]``.
        """
        check_batch(batch, self._targets())
        meta = {name: p.detach() for name, p in self._meta_parameters().items()}
        with torch.no_grad():
            results = self._mapping.map(function, meta, self._prepared(batch), self._traits())
        return merge_results(results, query_size(batch))

    def per_task(self, stage: Literal["val", "test"] = "test") -> dict[str, Tensor]:
        """Return the metrics of the last validation or test by name, ``[tasks]``; all processes must call this."""
        return self._metrics[stage].by_task()

    # ---- Lightning's steps. ---------------------------------------------------------------------------------

    def validation_step(self, batch: Episode, batch_idx: int) -> dict[str, Any]:
        """Adapt to each task and keep its metrics; return the fields of the report, for callbacks."""
        return self._evaluation_step(batch, batch_idx, "val")

    def test_step(self, batch: Episode, batch_idx: int) -> dict[str, Any]:
        """Adapt to each task and keep its metrics; return the fields of the report, for callbacks."""
        return self._evaluation_step(batch, batch_idx, "test")

    def predict_step(self, batch: Episode, batch_idx: int = 0) -> Tensor:
        """Return the adapted models' outputs on the query sets, ``[tasks, query, ...]``."""
        with self.draws_of(batch_idx):
            return self.evaluate(batch).outputs[:, -1]

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's tasks."""
        self._metrics["val"].reset()

    def on_test_epoch_start(self) -> None:
        """Forget the last epoch's tasks."""
        self._metrics["test"].reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all tasks, with their intervals, and keep the scores of their queries."""
        self._log_evaluation("val")
        if not self.trainer.sanity_checking:
            self.validation_scores = self._metrics["val"].scores()

    def on_test_epoch_end(self) -> None:
        """Log the metrics over all tasks, with their intervals."""
        self._log_evaluation("test")

    # ---- Inside. --------------------------------------------------------------------------------------------

    def _meta_parameters(self) -> dict[str, nn.Parameter]:
        """Return what is meta-learned, also after ``freeze()``, which must not change how tasks adapt."""
        with exclusive():
            return {name: p for name, p in self.named_parameters() if name not in self._frozen}

    def _targets(self) -> Targets:
        return Targets(self.loss_fn, self.output_shape, self.ignores_labels, self.label_cure)

    def _traits(self) -> Traits:
        execution = self.execution if self.is_capturable else replace(self.execution, compile=False)
        is_stochastic = self.is_stochastic or drops(self)
        return Traits(execution, self.inner_steps, is_stochastic, self._may_keep_padding, self.training_phase())

    def _may_keep_padding(self, batch: Episode) -> bool:
        """Whether masks are enough for each task of a ragged batch to train as it would alone."""
        # What a user overrides of this package's methods may not read masks.
        kinds = [kind for kind in type(self).__mro__ if is_of_library(kind)]
        names = {name for kind in kinds for name, value in vars(kind).items() if callable(value)}
        ours = [getattr(self, name) for name in names if not hasattr(L.LightningModule, name)]
        if self.requires_unpadded or not all(map(is_of_library, ours)):
            return False
        sets = batch.support_x, batch.query_x
        return are_independent(self.model, self.loss_fn, self.batch_statistics, *sets)

    def _prepared(self, batch: Episode) -> Episode:
        x, y, mask = self.prepare_support(batch.support)
        return batch._replace(support_x=x, support_y=y, support_mask=mask)

    def _evaluate_task(self, meta: MetaParameters, task: Episode, steps: int, record: tuple[int, ...]) -> TaskResult:
        outputs, support_losses = [], []
        for step, (state, support_loss) in enumerate(self.adaptation(meta, task.support, steps)):
            support_losses += [] if support_loss is None else [support_loss]
            if step in record:
                samples = self.evaluation_samples(meta, state, task.support, task.query_x)
                outputs.append(mean_output(likelihood_of(self.loss_fn), samples))
        loss = self.loss(outputs[-1], task.query_y, task.query_mask)
        losses = torch.stack(support_losses) if support_losses else loss.new_zeros(0)
        novelty = {} if task.ood_x is None else self._novelty(meta, state, task)
        return TaskResult(loss, torch.stack(outputs), losses, samples.present(), novelty)

    def _novelty(self, meta: MetaParameters, state: Any, task: Episode) -> dict[str, tuple[Tensor, Tensor]]:
        together = tree_map(lambda query, ood: torch.cat([query, ood]), task.query_x, task.ood_x)
        samples = self.evaluation_samples(meta, state, task.support, together)
        prediction = predict(likelihood_of(self.loss_fn), samples, self.draws_together)
        queries = tree_leaves(task.query_x)[0].shape[0]
        kinds = {"total": prediction.total, "epistemic": prediction.epistemic}
        return {name: (value[:queries], value[queries:]) for name, value in kinds.items() if value is not None}

    def _evaluation_step(self, batch: Episode, batch_idx: int, stage: str) -> dict[str, Any]:
        steps = self.eval_inner_steps
        record = tuple(range(steps + 1)) if self.log_step_metrics else tuple({0: None, steps: None})
        with self.draws_of(batch_idx):
            result = self.evaluate(batch, record=record)
        values = {"loss": result.loss}
        for index, step in enumerate(record):
            for name, value in self.task_metrics(result.outputs[:, index], batch.query_y, batch.query_mask).items():
                if step == 0 < steps:
                    values[f"{name}_pre"] = value
                if step == steps:
                    values[name] = value
                if self.log_step_metrics:
                    values[f"{name}_step_{step}"] = value
        likelihood, samples = likelihood_of(self.loss_fn), Samples(**result.samples)
        values |= uncertainty_metrics(likelihood, samples, batch.query_y, batch.query_mask)
        values |= {f"ood_auroc_{kind}": auroc(*pair, batch.query_mask) for kind, pair in result.novelty.items()}
        self._metrics[stage].update(values)
        if stage == "val":
            self._keep_scores(result.outputs[:, -1], samples, batch)
        return result._asdict()

    def _keep_scores(self, outputs: Tensor, samples: Samples, batch: Episode) -> None:
        kind = kind_of_score(self.loss_fn, outputs, batch.query_y, samples.noise is not None)
        if kind is None:
            return
        scores = scores_by_task(self.loss_fn, samples, batch.query_y, kind, self.draws_together)
        self._metrics["val"].update_scores(kind, scores, counted(self.loss_fn, batch.query_y, batch.query_mask))

    def _log_evaluation(self, stage: str) -> None:
        values = self._metrics[stage].compute()
        # Each process has the values over all tasks. Lightning advises to reduce them: the maximum of equals is exact.
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar="_" not in name, sync_dist=True, reduce_fx="max")

    def draws_of(self, step: int) -> AbstractContextManager[None]:
        """Under a trainer, make random numbers a function of seed, process and step alone."""
        if self._trainer is None:
            return nullcontext()
        seed = torch.initial_seed() if self._random_seed is None else self._random_seed
        return reproducible_draws(seed, self._trainer.global_rank, step, self.device)


def query_size(batch: Episode) -> int:
    """The number of queries of a batch's tasks, padding included."""
    return tree_leaves(batch.query_x)[0].shape[1]
