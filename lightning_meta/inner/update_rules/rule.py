"""The update rule of inner steps: a pure, differentiable function of parameters, gradients, rates and state.

`torch.optim` cannot be used: its optimizers update in place, and the meta-gradient flows through moments and rates.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Parameters = dict[str, Tensor]
State = Any
Rates = Mapping[str, Tensor | float]


class UpdateRule(ABC):
    """How an inner step turns gradients into new parameters.

    All tasks and steps share an instance: keep what changes in the state.
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
            parameters: The adapted parameters.
            gradients: Their gradients, same keys and shapes.
            state: The state from `init` or the last step.
            rates: A rate per tensor, a scalar or of the tensor's shape.
            step: The number of steps taken before this one.
        """
