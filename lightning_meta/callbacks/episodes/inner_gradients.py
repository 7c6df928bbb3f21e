"""The norms of the gradients that inner steps take, by step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from lightning_meta.inner.update_rules.rule import Parameters, Rates, State, UpdateRule
from lightning_meta.learners.gradient_learner import GradientLearner
from lightning_meta.learners.task_learner import TaskLearner


class NormRecorder(UpdateRule):
    """Takes the steps of another update rule, and keeps the norms of their gradients.

    Args:
        rule: The other rule.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self._squares: dict[int, list[Tensor]] = {}

    def init(self, parameters: Parameters) -> State:
        """Return the other rule's state."""
        return self.rule.init(parameters)

    def update(
        self, parameters: Parameters, gradients: Parameters, state: State, rates: Rates, step: int
    ) -> tuple[Parameters, State]:
        """Take the other rule's step."""
        square = torch.stack([gradient.detach().float().square().sum() for gradient in gradients.values()]).sum()
        self._squares.setdefault(step, []).append(square)
        return self.rule.update(parameters, gradients, state, rates, step)

    def norms(self) -> dict[int, float]:
        """Return the norm by the number of steps taken before; over several draws the root of the mean square."""
        return {step: float(torch.stack(own).mean().sqrt()) for step, own in sorted(self._squares.items())}


def with_recorder(learner: TaskLearner) -> tuple[Any, NormRecorder | None]:
    """Return the learner with an update rule that keeps norms, sharing its parameters; one task must be run at a time.

    Of learners without inner steps it is the learner itself, and there is no recorder.
    """
    if not isinstance(learner, GradientLearner):
        return learner, None
    recorded = copy.copy(learner)
    recorded.inner_optimizer = NormRecorder(learner.inner_optimizer)
    return recorded, recorded.inner_optimizer
