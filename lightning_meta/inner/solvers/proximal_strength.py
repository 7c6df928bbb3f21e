"""The strength λ of implicit MAML's proximal term, fixed or learned."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_rate

LearnedLambda = Literal["none", "scalar", "tensor"]


class ProximalStrength(nn.Module):
    """A positive λ for each adapted tensor.

    Args:
        names: The adapted parameters.
        prox_lambda: One λ for all, or λ by name pattern (the first match counts): ``{"head.*": 0.5, "*": 2.0}``.
        learned: "none"; "scalar" learns a common factor, "tensor" a factor for each tensor, by their logarithms.

    Raises:
        ValueError: If a λ is not positive, a name matches no pattern, or a pattern no name.
    """

    def __init__(
        self, names: tuple[str, ...], prox_lambda: float | Mapping[str, float], learned: LearnedLambda
    ) -> None:
        super().__init__()
        check_choice("learned_lambda", learned, LearnedLambda)
        self.learned = learned
        self.initial = _by_name(names, prox_lambda)
        factors = {"none": 0, "scalar": 1, "tensor": len(names)}[learned]
        self.log_factors = nn.Parameter(torch.zeros(factors)) if factors else None

    def at(self, values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return λ by name, scalars.

        Args:
            values: The current value of this module's parameter by name; empty if λ is fixed.
            like: The adapted tensors by name, for dtype and device.
        """
        fixed = {name: like[name].new_tensor(value) for name, value in self.initial.items()}
        if self.log_factors is None:
            return fixed
        factors = values["log_factors"].exp().expand(len(fixed))
        return {name: value * factor for (name, value), factor in zip(fixed.items(), factors, strict=True)}


def _by_name(names: tuple[str, ...], prox_lambda: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(prox_lambda, Mapping):
        check_rate("prox_lambda", prox_lambda)
        return dict.fromkeys(names, float(prox_lambda))
    for pattern, value in prox_lambda.items():
        check_rate(f"prox_lambda[{pattern!r}]", value)
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"prox_lambda: the pattern {pattern!r} matches no adapted parameter; they are {names}")
    chosen: dict[str, str] = {}
    for name in names:
        matching = [pattern for pattern in prox_lambda if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"prox_lambda: no pattern matches the parameter {name!r}; end with a pattern '*'")
        chosen[name] = matching[0]
    for pattern in prox_lambda:
        if pattern not in chosen.values():
            raise ValueError(
                f"prox_lambda: earlier patterns match all parameters of {pattern!r}, and the first match counts: put "
                f"{pattern!r} before them"
            )
    return {name: float(prox_lambda[pattern]) for name, pattern in chosen.items()}


def geometric_mean(strength: Mapping[str, Tensor]) -> Tensor:
    """Return the geometric mean of λ over tensors, a scalar."""
    return torch.stack([value.log() for value in strength.values()]).mean().exp()
