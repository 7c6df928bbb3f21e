"""Certificates: what held-out tasks prove about the loss on a new task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from scipy import stats

from lightning_meta.analysis.bounds import BoundMethod, Losses, quantile_bound, quantile_rank, upper_bound
from lightning_meta.arguments import check_choice, check_count, check_rate


@dataclass(frozen=True)
class Certificate:
    """What held-out tasks prove about the loss on a new task.

    The bound and the quantile's bound are two statements: each holds with probability ``1 − delta``, and both together
    with ``1 − 2 · delta``.

    Attributes:
        bound: The expected loss on a new task exceeds it with probability ``delta`` at most, over the draw of the
            tasks. With ``clip`` the expected minimum of loss and ``largest``.
        method: The method of the bound.
        mean: The mean loss, of which ``bound`` is the upper limit.
        approximate: The upper limit ``mean + z · std / √tasks`` of the normal approximation, at the same ``delta``. It
            is no bound: with few tasks, or a few large losses among small ones, it fails more often than that.
        others: The bounds by other methods, for comparison alone: the lowest of several is valid only if each was
            computed at ``delta`` over their number.
        quantile_bound: A loss that a new task's loss exceeds with probability ``1 − quantile`` at most; unclipped, and
            infinite if too many tasks diverged. None: there are too few tasks.
        quantile: See above.
        tasks: The number of held-out tasks.
        diverged: How many of them diverged; they count as the largest loss.
        delta: The probability of an error.
        settings: The number of settings that were compared on these tasks. All bounds are at ``delta / settings``, so
            that they hold for whichever setting is chosen.
        largest: The largest loss.
    """

    bound: float
    method: BoundMethod
    mean: float
    approximate: float
    others: Mapping[str, float]
    quantile_bound: float | None
    quantile: float
    tasks: int
    diverged: int
    delta: float
    settings: int
    largest: float


def certify(
    losses: Any,
    largest: float = 1.0,
    delta: float = 0.05,
    settings: int = 1,
    clip: bool = False,
    method: BoundMethod = "betting",
    quantile: float = 0.9,
) -> Certificate:
    """Bound the expected loss on a new task, and a quantile of it, from losses on held-out tasks.

    The tasks must be independent draws from the distribution of new tasks, and must have been used neither in training
    nor in choosing hyper-parameters, but for the choice among ``settings`` settings on these tasks themselves. Choose
    all arguments, and the order of the tasks, before seeing the losses.

    Args:
        losses: One loss of at least 0 for each task, ``[tasks]``. Losses that are not finite are those of tasks that
            diverged, and count as ``largest``.
        largest: The largest loss that there can be, or with ``clip`` where losses are cut off.
        delta: The probability of an error.
        settings: The number of settings compared on these tasks, each of which gets its own call.
        clip: Whether to bound the mean of the minimum of loss and ``largest``.
        method: See `upper_bound`; "clopper_pearson" if losses can be nothing but 0 and ``largest``.
        quantile: Between 0 and 1.

    Raises:
        ValueError: If a loss is outside of [0, largest], there are too few tasks for any bound, or an argument is out
            of its range.

    Example:
        >>> found = certify([0.0, 0.1, 0.05, 0.0, 0.2] * 20)
        >>> round(found.mean, 3), round(found.bound, 3), found.quantile_bound
        (0.07, 0.108, 0.2)
    """
    check_rate("largest", largest)
    check_count("settings", settings)
    check_choice("method", method, BoundMethod)
    own_delta = delta / settings
    raw = np.asarray(losses, dtype=float)
    diverged = ~np.isfinite(raw)
    values = np.where(diverged, largest, raw)
    shares = _limited(values, largest, clip) / largest
    bound = upper_bound(shares, own_delta, method)
    mean, tasks = float(shares.mean()), len(shares)
    spread = float(shares.std(ddof=1)) if tasks > 1 else math.nan
    others = {
        other: largest * found for other in get_args(BoundMethod) if other != method
        and (found := _bound_or_none(shares, own_delta, other)) is not None
    }  # fmt: skip
    return Certificate(
        bound=largest * bound,
        method=method,
        mean=largest * mean,
        approximate=largest * (mean + float(stats.norm.ppf(1 - own_delta)) * spread / math.sqrt(tasks)),
        others=others,
        quantile_bound=_quantile_or_none(np.where(diverged, np.inf, raw), quantile, own_delta),
        quantile=quantile,
        tasks=tasks,
        diverged=int(diverged.sum()),
        delta=delta,
        settings=settings,
        largest=largest,
    )


def _limited(values: Losses, largest: float, clip: bool) -> Losses:
    if (values < 0).any():
        raise ValueError(f"losses has {values.min():g}, less than 0: bounds are for losses of at least 0")
    above = values[values > largest]
    if len(above) and not clip:
        raise ValueError(
            f"losses has {len(above)} values above largest={largest:g}, such as {above[0]:g}: raise largest to what no "
            "loss can exceed, or ask for clip, which bounds the mean of the minimum of loss and largest"
        )
    return np.minimum(values, largest)


def _bound_or_none(shares: Losses, delta: float, method: BoundMethod) -> float | None:
    if method == "clopper_pearson":  # only where losses can be nothing but 0 and 1, which values do not tell
        return None
    try:
        return upper_bound(shares, delta, method)
    except ValueError:  # too few tasks for this one
        return None


def _quantile_or_none(values: Losses, quantile: float, delta: float) -> float | None:
    too_few = quantile_rank(len(values), quantile, delta) > len(values)
    return None if too_few else quantile_bound(values, quantile, delta)
