"""Quantiles of scores on validation tasks, from which predictions have intervals and sets of classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.metrics.conformal_scores import Kind

_LEVELS = 1000
_ROUNDING = 1e-12


def hierarchical_quantiles(scores: Tensor, sizes: Tensor, levels: Tensor) -> Tensor:
    """Return the smallest scores s with ``Σ_i F_i(s) / (n + 1) ≥ level``; infinite where there is none.

    ``F_i`` is the distribution of the scores of task i out of n. A random query of a new task has a score up to this
    one with probability ``level`` or more, for any n, if tasks are exchangeable (Dunn, Wasserman and Ramdas, 2023; Lee,
    Barber and Willett, 2023).

    Args:
        scores: The scores of all tasks, ``[queries]``.
        sizes: For each score the number of scores of its task, ``[queries]``.
        levels: Between 0 and 1, ``[levels]``.

    Returns:
        ``[levels]``, in double precision.

    Example:
        >>> scores = torch.arange(1.0, 20.0)
        >>> hierarchical_quantiles(scores, torch.ones(19), torch.tensor([0.9, 0.96]))  # the 18th of 19
        tensor([18., inf], dtype=torch.float64)
    """
    order = scores.argsort()
    weights = 1 / sizes.double()
    reached = weights[order].cumsum(0) / (weights.sum().round() + 1)  # the sum is the number of tasks
    positions = torch.searchsorted(reached, levels.double().to(reached.device) - _ROUNDING)
    return torch.cat([scores[order].double(), reached.new_tensor([math.inf])])[positions]


class ConformalQuantiles(NamedTuple):
    """The distribution of scores over queries of new tasks, as far as validation tasks tell.

    Attributes:
        score: "error", ``|y − mean|``; "standardized", ``|y − mean| / std``; or "probability", ``1 − p(y)``. Errors are
            in the units of the model's output.
        tasks: n, the number of validation tasks.
        quantiles: `hierarchical_quantiles` of levels 0, 1/1000, ..., 1; infinite above n / (n + 1).
        root_mean_square: For "error" the root of the mean squared error, the mean over tasks; otherwise None.
    """

    score: Kind
    tasks: int
    quantiles: Sequence[float]
    root_mean_square: float | None

    @classmethod
    def checked(cls, fields: Mapping[str, Any]) -> Self:
        """Build from a checkpoint's fields; raises a ValueError if they are no such distribution."""
        try:
            score, tasks, values = fields["score"], fields["tasks"], [float(value) for value in fields["quantiles"]]
            square = fields["root_mean_square"]
            square = None if square is None else float(square)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the checkpoint's scores are no quantiles: {error!r}") from error
        rises = all(low <= high for low, high in itertools.pairwise((0.0, *values)))  # nothing rises to or from NaN
        if len(values) != _LEVELS + 1 or not rises or values[-1] != math.inf:
            raise ValueError(f"the checkpoint's scores must be {_LEVELS + 1} rising quantiles")
        if score not in get_args(Kind) or not isinstance(tasks, int) or tasks < 1:
            raise ValueError(f"the checkpoint's scores are {score!r} of {tasks!r} tasks, which no learner keeps")
        if (square is None) != (score != "error") or not (square is None or 0 <= square < math.inf):
            raise ValueError(f"the checkpoint's scores {score!r} have a root mean square of {square}")
        return cls(score, tasks, values, square)

    def quantile(self, level: float) -> float:
        """Return the smallest kept quantile whose level is at least this one; infinite: there are too few tasks."""
        return self.quantiles[_index(level)]


def tasks_needed(coverage: float) -> int | None:
    """Return how many validation tasks an interval or set of this coverage needs; None: none are enough."""
    index = _index(coverage)
    return None if index == _LEVELS else math.ceil(index / (_LEVELS - index))


def _index(level: float) -> int:
    return min(_LEVELS, math.ceil(round(level * _LEVELS, 6)))


class ConformalScores(Metric):
    """Collects scores of one kind and computes `ConformalQuantiles`.

    Args:
        kind: The score.
    """

    full_state_update = False
    values: list[Tensor]
    sizes: list[Tensor]

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("sizes", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, counts: Tensor) -> None:
        """Add the scores ``[tasks, query]`` of the queries that count, ``[tasks, query]``."""
        self.values.append(scores.detach().float()[counts])
        self.sizes.append(counts.sum(1, keepdim=True).expand_as(counts)[counts].float())

    def compute(self) -> ConformalQuantiles:
        """Return the distribution of the scores."""
        values, sizes = dim_zero_cat(self.values), dim_zero_cat(self.sizes)
        quantiles = hierarchical_quantiles(values, sizes, torch.arange(_LEVELS + 1).double() / _LEVELS)
        tasks = round(float((1 / sizes.double()).sum()))
        square = float((values.double().square() / sizes).sum() / tasks) ** 0.5 if self.kind == "error" else None
        return ConformalQuantiles(self.kind, tasks, quantiles.tolist(), square)
