"""`UnrolledLearner`: the base of the algorithms whose meta-gradient goes through their inner steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner import InnerStep, MetaGradient
from lightning_meta.inner.inner_loop import run_through
from lightning_meta.inner.meta_gradients import Checkpointed
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners.gradient_learner import GradientLearner

# The adapted values by name, and the update rule's state.
Point = tuple[Vector, Any]


class UnrolledLearner(GradientLearner):
    """Base of the algorithms whose inner steps the meta-gradient goes through: exactly, in less memory, or not at all.

    A new algorithm sets `meta_gradient` and implements `start_point`, `steps_from` and `state_at`. Arguments are those
    of `GradientLearner`.
    """

    meta_gradient: MetaGradient
    """How the meta-gradient is computed: ``Unrolled()``, ``Checkpointed()`` or ``FirstOrder()``."""

    @abstractmethod
    def start_point(self, meta: MetaParameters, support: Support) -> Point:
        """Return the adapted values and the update rule's state before the first step.

        Args:
            meta: The learner's trainable parameters by name, as in `named_parameters`.
            support: The task's support set.
        """

    @abstractmethod
    def steps_from(
        self, meta: MetaParameters, support: Support, point: Point, first: int, count: int
    ) -> Iterator[tuple[Point, Tensor]]:
        """Yield the point after each of ``count`` inner steps, and the support loss before it.

        Args:
            meta: The learner's trainable parameters by name.
            support: The task's support set.
            point: The point before these steps.
            first: The number of steps before these.
            count: How many steps to take. Each computes its gradient at what
                ``meta_gradient.at_epoch(self.current_epoch).start_of_step`` returns.
        """

    @abstractmethod
    def state_at(self, meta: MetaParameters, support: Support, adapted: Vector, step: int) -> Any:
        """Return the state that `query_output` takes from the values adapted in ``step`` steps."""

    @property
    def is_capturable(self) -> bool:
        """Whether training steps may be captured: not if they are recomputed, which would draw other numbers."""
        return not self.meta_gradient.recomputes

    def training_phase(self) -> Any:
        """Return the meta-gradient of this epoch."""
        return self.meta_gradient.at_epoch(self.current_epoch)

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the state after 0, 1, ..., ``steps`` steps of gradient descent on the support loss."""
        start = self.start_point(meta, support)
        yield InnerStep(self.state_at(meta, support, start[0], 0), None)
        for step, ((adapted, _), loss) in enumerate(self.steps_from(meta, support, start, 0, steps), start=1):
            yield InnerStep(self.state_at(meta, support, adapted, step), loss)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the query loss after the last inner step, and the report."""
        state, support_losses = self._after_all_steps(meta, task.support)
        output = self.query_output(meta, state, task.query_x)
        loss = self.loss(output, task.query_y, task.query_mask)
        return loss, TaskResult(loss, output[None], support_losses)

    def _after_all_steps(self, meta: MetaParameters, support: Support) -> tuple[Any, Tensor]:
        """Return the state after ``inner_steps`` steps, and the support losses before each."""
        meta_gradient = self.meta_gradient.at_epoch(self.current_epoch)
        if not isinstance(meta_gradient, Checkpointed):
            return run_through(self.inner_loop(meta, support, self.inner_steps))
        start = self.start_point(meta, support)
        (adapted, _), losses = meta_gradient.run(self.steps_from, meta, support, start, self.inner_steps)
        return self.state_at(meta, support, adapted, self.inner_steps), losses

    def _check_recomputed(self) -> None:
        """Refuse what steps that are recomputed do not support.

        Raises:
            ValueError: If ``compile=True`` is given with ``meta_gradient=Checkpointed()``.
            TypeError: If `inner_loop`, which is not called then, is overridden.
        """
        if not self.meta_gradient.recomputes:
            return
        if self.execution.compile is True:
            raise ValueError("compile=True does not support meta_gradient=Checkpointed(): leave one of them out")
        if type(self).inner_loop is not UnrolledLearner.inner_loop:
            raise TypeError(
                f"checkpointed inner steps (meta_gradient or checkpoint_inner_loop) do not call {type(self).__name__}."
                "inner_loop: use meta_gradient=Unrolled(), or override steps_from in place of it"
            )
