"""`GradientLearner`: the base of the algorithms that adapt by gradient descent."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_meta.arguments import check_count, check_optional_count, check_rate
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner.inner_loop import InnerStep, run_through
from lightning_meta.inner.update_rules import UpdateRule, update_rule
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import LossFunction


class GradientLearner(TaskLearner):
    """Base of the algorithms with an inner loop of gradient steps on the support loss.

    A new algorithm implements `inner_loop`. By default its state is a dictionary of adapted parameters, and its
    meta-loss the query loss after the last step, differentiated through all steps; override `query_output`, `task_loss`
    or `task_gradient` otherwise.

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The (initial) inner learning rate.
        inner_steps: Inner steps in training.
        eval_inner_steps: Inner steps in validation, test and prediction; None: as in training.
        inner_optimizer: The update rule of inner steps: "sgd", "momentum", "adam", or an `UpdateRule`, such as a
            `Chain` of gradient transforms and a rule.
        log_step_metrics: Whether evaluation also logs the metric after every inner step.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.
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
        """Yield the state after 0, 1, ..., ``steps`` inner steps on one task.

        Args:
            meta: The learner's trainable parameters by name, as in `named_parameters`.
            support: The task's support set.
            steps: The number of steps.
        """

    def adapt_task(self, meta: MetaParameters, support: Support) -> Any:
        """Return the state after ``inner_steps`` steps."""
        return run_through(self.inner_loop(meta, support, self.inner_steps))[0]

    def adaptation(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the states of the inner loop."""
        return self.inner_loop(meta, support, steps)

    def query_output(self, meta: MetaParameters, state: Any, x: Any) -> Tensor:
        """Return the adapted model's output ``[query, ...]`` on inputs ``[query, ...]``.

        The default takes a dictionary of adapted parameters as ``state``, named as in the model.
        """
        return self.call_model({**self.model_parameters(meta), **state}, x)

    def adapted_parameters(self, meta: MetaParameters, state: Any) -> Mapping[str, Tensor] | None:
        """Return the adapted parameters; None where `query_output` or `query_samples` is overridden."""
        own = type(self)
        overridden = own.query_output is not GradientLearner.query_output
        overridden |= own.query_samples is not TaskLearner.query_samples
        return None if overridden else state

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the query loss after the last inner step, and the report."""
        state, support_losses = run_through(self.inner_loop(meta, task.support, self.inner_steps))
        output = self.query_output(meta, state, task.query_x)
        loss = self.loss(output, task.query_y, task.query_mask)
        return loss, TaskResult(loss, output[None], support_losses)

    def set_loss(self, parameters: Mapping[str, Tensor], examples: Support) -> Tensor:
        """Return the loss of the model with these parameters on a set of examples."""
        return self.loss(self.call_model(parameters, examples.x), examples.y, examples.mask)

    def rates_in_errors(self) -> str:
        """Return ``inner_lr`` and the largest learned rate."""
        learned = [p.detach().abs().max() for name, p in self.named_parameters() if name.startswith("inner_rates.")]
        largest = f", largest learned rate {float(max(learned)):.3g}" if learned else ""
        return f" (inner_lr={self.inner_lr}{largest})"
