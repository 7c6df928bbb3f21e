"""The update rule of an inner loop: a pure function of parameters, gradients and state.

A rule is differentiable in all its inputs, so the meta-gradient flows through moments and rates as well as through
the parameters. ``torch.optim`` updates in place and cannot be used here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Parameters = dict[str, Tensor]
State = Any
Rates = Mapping[str, Tensor | float]


class UpdateRule(ABC):
    """How an inner step turns gradients into new parameters.

    To write one, keep everything that changes in the state: an instance is shared by all tasks and steps.
    """

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({vars(self)})"

    @abstractmethod
    def init(self, parameters: Parameters) -> State:
        """Return the state before the first step, a pytree of tensors."""

    @abstractmethod
    def update(
        self, parameters: Parameters, gradients: Parameters, state: State, rates: Rates, step: int
    ) -> tuple[Parameters, State]:
        """Take one step.

        Args:
            parameters: What is being adapted.
            gradients: Their gradients, same keys and shapes.
            state: What `init` or the last step returned.
            rates: A rate per tensor, a scalar or of the tensor's shape.
            step: The number of steps taken before this one.
        """
