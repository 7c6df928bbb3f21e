"""Errors on validation tasks, from which regressions without a noise model have their intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_LEVELS = 1000


class Residuals(NamedTuple):
    """The distribution of absolute errors ``|output - target|`` over queries of validation tasks.

    Attributes:
        quantiles: The quantiles of levels 0, 1/1000, ..., 1, in the units of the model's output. That of level p among
            n errors is the one of rank ``ceil(p (n + 1))``, below which a further error falls with probability p or
            more if errors are exchangeable (the rank of split conformal prediction), and at most the largest.
        root_mean_square: The root of the mean squared error.
    """

    quantiles: Sequence[float]
    root_mean_square: float

    @classmethod
    def checked(cls, fields: Mapping[str, Any]) -> Self:
        """Build from a checkpoint's fields; raises a ValueError if they are no such distribution."""
        try:
            residuals = cls([float(value) for value in fields["quantiles"]], float(fields["root_mean_square"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the checkpoint's residuals are no quantiles of errors: {error!r}") from error
        numbers = (0.0, *residuals.quantiles)
        rises = all(low <= high < math.inf for low, high in itertools.pairwise(numbers))  # nothing rises to or from NaN
        if len(numbers) != _LEVELS + 2 or not rises or not 0 <= residuals.root_mean_square < math.inf:
            raise ValueError(f"the checkpoint's residuals must be {_LEVELS + 1} rising quantiles of errors")
        return residuals

    def quantile(self, level: float) -> float:
        """Return the smallest kept quantile whose level is at least this one."""
        return self.quantiles[min(_LEVELS, math.ceil(round(level * _LEVELS, 6)))]


class AbsoluteErrors(Metric):
    """Collects the absolute errors of scalar regressions and computes `Residuals`."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, targets: Tensor, mask: Tensor | None) -> None:
        """Add the queries ``[tasks, query, 1]`` that the mask ``[tasks, query]`` includes."""
        errors = (outputs - targets).detach().abs().float().squeeze(-1)
        self.values.append(errors.flatten() if mask is None else errors[mask])

    def compute(self) -> Residuals:
        """Return the distribution of the errors."""
        errors = dim_zero_cat(self.values).double().sort().values
        levels = torch.arange(_LEVELS + 1)
        ranks = ((levels * (len(errors) + 1) + _LEVELS - 1) // _LEVELS).clamp(1, len(errors))  # whole numbers: exact
        return Residuals(errors[ranks - 1].tolist(), float(errors.square().mean().sqrt()))
