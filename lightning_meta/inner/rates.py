"""The inner learning rates, fixed or learned."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from lightning_meta.arguments import check_choice
from lightning_meta.inner.names import key_of

LearnedRates = Literal["none", "tensor", "tensor_step", "element"]


class InnerRates(nn.Module):
    """A rate for each adapted tensor at each inner step.

    Args:
        adapted: The adapted parameters by name, for shapes and dtypes.
        inner_lr: The (initial) rate, positive.
        steps: The number of steps in training; with "tensor_step" later steps in evaluation use the last rate.
        learned: "none" keeps ``inner_lr``; "tensor" learns a scalar per tensor, "tensor_step" a scalar per
            tensor and step (LSLR: Antoniou et al., 2019, MAML++), "element" a rate per scalar parameter
            (Meta-SGD: Li et al., 2017). Learned rates are unconstrained and may become negative.
    """

    def __init__(self, adapted: Mapping[str, Tensor], inner_lr: float, steps: int, learned: LearnedRates) -> None:
        super().__init__()
        check_choice("learned_rates", learned, LearnedRates)
        self.inner_lr = inner_lr
        self.learned = learned
        self.learned_rates = nn.ParameterDict()
        if learned != "none":
            for name, parameter in adapted.items():
                self.learned_rates[key_of(name)] = self._initial(parameter, steps)

    def _initial(self, parameter: Tensor, steps: int) -> nn.Parameter:
        shapes = {"tensor": (), "tensor_step": (steps,), "element": tuple(parameter.shape)}
        return nn.Parameter(parameter.new_full(shapes[self.learned], self.inner_lr).detach())

    def at(self, step: int, names: tuple[str, ...], values: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """Return the rate of each named tensor at a step.

        Args:
            step: The number of inner steps taken before this one.
            names: The adapted parameters.
            values: The current values of this module's parameters, named as in this module.
        """
        if self.learned == "none":
            return dict.fromkeys(names, self.inner_lr)
        learned = {name: values[f"learned_rates.{key_of(name)}"] for name in names}
        if self.learned == "tensor_step":
            learned = {name: rate[min(step, rate.shape[0] - 1)] for name, rate in learned.items()}
        return dict(learned)
