"""`GradientLearner`: the base of the algorithms that adapt by steps of gradient descent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lightning_meta.arguments import check_count, check_optional_count, check_rate
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner.inner_loop import InnerStep, run_through
from lightning_meta.inner.update_rules import UpdateRule, update_rule
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import LossFunction


class GradientLearner(TaskLearner):
    """Base of the algorithms whose inner loop takes gradient steps on the support loss.

    A new algorithm implements `inner_loop`; its state is a dictionary of adapted parameters unless it overrides
    `query_output` too. Its meta-loss is the query loss after the last step, differentiated through all steps, unless it
    overrides `task_loss` or `task_gradient`.

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The (initial) inner learning rate.
        inner_steps: Inner steps in training.
        eval_inner_steps: Inner steps in validation, test and prediction; None: as in training.
        inner_optimizer: The update rule of inner steps: "sgd", "momentum", "adam", or an `UpdateRule`, which may be a
            `Chain` of transforms and a rule.
        log_step_metrics: Whether evaluation also logs the metric after every inner step.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If the model has layers that cannot run per task, or an argument's name is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        inner_optimizer: str | UpdateRule = "sgd",
        log_step_metrics: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        check_rate("inner_lr", inner_lr)
        check_count("inner_steps", inner_steps)
        check_optional_count("eval_inner_steps", eval_inner_steps)
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.inner_optimizer = update_rule(inner_optimizer)
        self.log_step_metrics = log_step_metrics

    @abstractmethod
    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Adapt to one task, yielding where the loop stands after 0, 1, ..., ``steps`` steps.

        Args:
            meta: The learner's trainable parameters by name, as in `named_parameters`.
            support: The task's support set.
            steps: How many steps to take.
        """

    def adapt_task(self, meta: MetaParameters, support: Support) -> Any:
        """Return the state after the inner loop of training."""
        return run_through(self.inner_loop(meta, support, self.inner_steps))[0]

    def adaptation(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the inner loop's steps."""
        return self.inner_loop(meta, support, steps)

    def query_output(self, meta: MetaParameters, state: Any, x: Any) -> Tensor:
        """Return the adapted model's output ``[query, ...]`` on inputs ``[query, ...]``.

        Here ``state`` is a dictionary of the adapted parameters, named as in the model.
        """
        return self.call_model({**self.model_parameters(meta), **state}, x)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the query loss after the last inner step, and the report."""
        state, support_losses = run_through(self.inner_loop(meta, task.support, self.inner_steps))
        output = self.query_output(meta, state, task.query_x)
        loss = self.loss(output, task.query_y, task.query_mask)
        return loss, TaskResult(loss, output[None], support_losses)

    def _rates_in_errors(self) -> str:
        learned = [p.detach().abs().max() for name, p in self.named_parameters() if name.startswith("inner_rates.")]
        return f" (inner_lr={self.inner_lr}" + (
            f", largest learned rate {float(max(learned)):.3g})" if learned else ")"
        )
