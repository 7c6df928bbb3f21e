"""The inner rate of one step that is best under a quadratic model of the query loss."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.func import grad, vjp

from lightning_meta.analysis.held_out import evaluation_mode
from lightning_meta.analysis.inner_problem import check_adapts_a_model, support_loss
from lightning_meta.analysis.task_losses import check_has_rate, learned_rate_names, with_rate
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner.vectors import Vector, dot
from lightning_meta.learners.evaluation import query_size
from lightning_meta.learners.task_learner import TaskLearner


class OneStepRate(NamedTuple):
    """Slope and curvature of tasks' query losses along the first inner step, at the initialization.

    Attributes:
        slopes: ``g_Q · d``, ``[tasks]``: the loss falls by it per unit of rate, at first.
        curvatures: ``dᵀ H_Q d``, ``[tasks]``.
    """

    slopes: Tensor
    curvatures: Tensor

    @property
    def rate(self) -> float:
        """The rate ``E[g_Q · d] / E[dᵀ H_Q d]``.

        Negative where the step does harm. NaN where the mean curvature is not positive, so that the quadratic model has
        no minimum.
        """
        slope, curvature = float(self.slopes.mean()), float(self.curvatures.mean())
        return slope / curvature if curvature > 0 else math.nan


def one_step_rate(learner: TaskLearner, batch: Episode) -> OneStepRate:
    """Return what gives the best rate of one step, if tasks' query losses were quadratic along the step.

    The step is ``θ − α d``, for gradient descent with ``d = g_S``, the gradient of the support loss: then the rate is
    ``E[g_Q · g_S] / E[g_Sᵀ H_Q g_S]``. For a learner whose rates are learned, d has them in it and the rate is
    a factor on them. The model knows the loss near the initialization alone: where it misleads, the rate is far
    from the one that `search_rate` finds.

    Args:
        learner: A learner that adapts parameters of one model by gradient steps.
        batch: The tasks.

    Raises:
        ValueError: If the learner adapts in another way, or a task's loss is not finite.
    """
    check_has_rate(learner)
    adapting = check_adapts_a_model(learner, "the closed form of the rate")
    queries = query_size(batch)

    def task_terms(meta: MetaParameters, task: Episode) -> TaskResult:
        point, _ = support_loss(adapting, meta, task.support)
        *_, last = adapting.inner_loop(meta, task.support, 1)
        step: Vector = {name: value - last.state[name] for name, value in point.items()}
        _, loss = support_loss(adapting, meta, Support(task.query_x, task.query_y, task.query_mask))
        slope, pull_back = vjp(grad(loss), point)  # type: ignore[misc]
        (bent,) = pull_back(step)
        terms = {"slope": dot(slope, step), "curvature": dot(bent, step)}
        empty = terms["slope"].new_zeros(())
        return TaskResult(empty, empty.expand(1, queries), empty.new_zeros(0), diagnostics=terms)

    rate = None if learned_rate_names(learner) else 1.0  # a step of rate 1 is d
    with evaluation_mode(learner), with_rate(learner, rate):
        found = learner.map_tasks(task_terms, batch).diagnostics
    slopes, curvatures = found["slope"].double().cpu(), found["curvature"].double().cpu()
    if not (slopes.isfinite().all() and curvatures.isfinite().all()):
        raise ValueError("a task's loss is not finite at the initialization: check the data and the parameters")
    return OneStepRate(slopes, curvatures)
