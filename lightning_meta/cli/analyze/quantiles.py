"""Quantiles over tasks, as rows of a table and as bands of a picture."""

from __future__ import annotations

from torch import Tensor

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def quantile(values: Tensor, level: float) -> float:
    """Return the value of the task nearest to a quantile, without those that are NaN; NaN if all are."""
    known = values[~values.isnan()].double()
    return float(known.quantile(level, interpolation="nearest")) if len(known) else float("nan")


def quantile_row(values: Tensor) -> dict[str, float]:
    """Return quantiles of values of tasks, by their names as columns."""
    return {f"{100 * level:g} %": quantile(values, level) for level in LEVELS}
