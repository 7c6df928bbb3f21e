"""Transforms of the gradients before an update rule takes them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from lightning_meta.arguments import check_nonnegative, check_rate
from lightning_meta.inner.update_rules.rule import Parameters, Rates, State, UpdateRule
from lightning_meta.inner.vectors import add, dot, times


class GradientTransform(ABC):
    """A differentiable function of one task's gradients, without state."""

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({vars(self)})"

    @abstractmethod
    def transform(self, gradients: Parameters, parameters: Parameters) -> Parameters:
        """Return new gradients, same keys and shapes.

        Args:
            gradients: The gradients of the support loss.
            parameters: Where they were taken.
        """


class ClipNorm(GradientTransform):
    """Scales gradients down to a largest global norm (Pascanu, Mikolov, Bengio, ICML 2013, algorithm 1).

    Args:
        max_norm: The largest Euclidean norm over all adapted parameters together.

    Raises:
        ValueError: If it is not positive.
    """

    def __init__(self, max_norm: float) -> None:
        check_rate("max_norm", max_norm)
        self.max_norm = max_norm

    def transform(self, gradients: Parameters, parameters: Parameters) -> Parameters:
        """Return the gradients with a norm of at most ``max_norm``; arguments as in `GradientTransform`."""
        squared = dot(gradients, gradients)
        large = squared > self.max_norm**2
        # The root of 1 where it is not used, because its derivative at 0 is infinite.
        scale = torch.where(large, self.max_norm * torch.where(large, squared, 1).rsqrt(), 1)
        return times(gradients, scale)


class WeightDecay(GradientTransform):
    """Adds ``decay · φ`` to the gradients: the gradient of an L2 penalty ``½ decay ‖φ‖²``.

    Args:
        decay: The penalty's weight, 0 or more.

    Raises:
        ValueError: If it is negative.
    """

    def __init__(self, decay: float) -> None:
        check_nonnegative("decay", decay)
        self.decay = decay

    def transform(self, gradients: Parameters, parameters: Parameters) -> Parameters:
        """Return the gradients of the penalized loss; arguments as in `GradientTransform`."""
        return add(gradients, parameters, self.decay)


class Chain(UpdateRule):
    """An update rule that takes transformed gradients: ``Chain([ClipNorm(10.0), WeightDecay(1e-4)], Adam())``.

    Args:
        transforms: Applied in this order.
        rule: Takes the step.

    Raises:
        TypeError: If one of them is of another kind.
    """

    def __init__(self, transforms: Sequence[GradientTransform], rule: UpdateRule) -> None:
        for transform in transforms:
            if not isinstance(transform, GradientTransform):
                raise TypeError(
                    f"transforms holds {transform!r}, not a GradientTransform: pass the update rule as rule"
                )
        if not isinstance(rule, UpdateRule):
            raise TypeError(f"rule={rule!r} must be an UpdateRule, such as SGD()")
        self.transforms = list(transforms)
        self.rule = rule

    def init(self, parameters: Parameters) -> State:
        """Return the rule's state before the first step."""
        return self.rule.init(parameters)

    def update(
        self, parameters: Parameters, gradients: Parameters, state: State, rates: Rates, step: int
    ) -> tuple[Parameters, State]:
        """Take one step; arguments as in `UpdateRule`."""
        for transform in self.transforms:
            gradients = transform.transform(gradients, parameters)
        return self.rule.update(parameters, gradients, state, rates, step)
