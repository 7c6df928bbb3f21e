"""Upper bounds on the expected loss on a new task, from the losses on held-out tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from lightning_meta.arguments import check_choice

BoundMethod = Literal["betting", "bernstein", "kl", "hoeffding", "clopper_pearson"]
Losses = NDArray[np.float64]

_BET_LIMIT = 0.75
_MOST_TASKS_TRIED = 1_000_000


def upper_bound(losses: Any, delta: float = 0.05, method: BoundMethod = "betting") -> float:
    """Return a number that the expected loss on a new task exceeds with probability ``delta`` at most.

    The probability is over the draw of the held-out tasks, however the learner was trained. The tasks must be
    independent, must not have been used in training or for choosing hyper-parameters, and the new task must come from
    the same distribution. Choose the method before seeing the losses; for the best of m settings on the same tasks
    give ``delta / m``.

    - "betting": the wealth of a gambler who bets that the mean is lower (Waudby-Smith and Ramdas, 2024, JRSS-B 86).
      For a mean m it is ``W_t(m) = Π_{i ≤ t} (1 + λ_i(m) (m − x_i))`` with
      ``λ_i(m) = min(√(2 ln(1/δ) / (n v_{i−1})), 0.75 / (1 − m))`` and the variance ``v_{i−1}`` of the losses before the
      i-th. The bound is the smallest m whose wealth ever reaches 1/δ. It depends on the order of the tasks.
    - "bernstein": ``x̄ + √(2 V ln(2/δ) / n) + 7 ln(2/δ) / (3 (n − 1))`` with the sample variance V (Maurer and Pontil,
      2009, theorem 4).
    - "kl": the largest p with ``kl(x̄ ‖ p) ≤ ln(1/δ) / n`` (Chernoff's bound, inverted).
    - "hoeffding": ``x̄ + √(ln(1/δ) / (2 n))``.
    - "clopper_pearson": for losses of 0 and 1 alone, the exact bound of the binomial distribution.

    Args:
        losses: One loss in [0, 1] for each task, ``[tasks]``.
        delta: The probability of an error, between 0 and 1.
        method: The bound.

    Returns:
        The bound, at most 1.

    Raises:
        ValueError: If a loss is outside of [0, 1], or there are so few tasks that the bound would be 1 without a loss.

    Example:
        >>> round(upper_bound([0.0, 0.1, 0.05, 0.0, 0.2] * 20), 3)
        0.108
    """
    check_choice("method", method, BoundMethod)
    _check_delta(delta)
    values = _checked(losses)
    bound = _BOUNDS[method]
    if bound(np.zeros(len(values)), delta) >= 1:
        least = next(n for n in range(1, _MOST_TASKS_TRIED) if bound(np.zeros(n), delta) < 1)
        raise ValueError(
            f"losses has {len(values)} tasks, too few for method={method!r} with delta={delta}: even without any loss "
            f"the bound would be 1. Give it at least {least} tasks"
        )
    if method == "clopper_pearson" and not np.isin(values, (0, 1)).all():
        raise ValueError("method='clopper_pearson' is for losses of 0 and 1: use 'betting' for others")
    return min(1.0, bound(values, delta))


def quantile_bound(losses: Any, quantile: float = 0.9, delta: float = 0.05) -> float:
    """Return what the loss of a new task does not exceed with probability ``quantile``, for losses of any size.

    It is the smallest order statistic that reaches the quantile with probability 1 − δ over the draw of the held-out
    tasks (Wilks, 1941). Infinite losses are allowed, and those that are no numbers count as infinite.

    Args:
        losses: One loss for each task, ``[tasks]``.
        quantile: Between 0 and 1.
        delta: The probability of an error, between 0 and 1.

    Raises:
        ValueError: If there are too few tasks, fewer than ``ln δ / ln quantile``, or not one loss for each.

    Example:
        >>> quantile_bound(range(100), quantile=0.9)
        95.0
    """
    values = np.asarray(losses, dtype=float)
    _check_shape(values)
    rank = quantile_rank(len(values), quantile, delta)
    if rank > len(values):
        least = math.ceil(math.log(delta) / math.log(quantile))
        raise ValueError(
            f"losses has {len(values)} tasks, too few for quantile={quantile} with delta={delta}: give it at least "
            f"{least}"
        )
    return float(np.sort(np.where(np.isnan(values), np.inf, values))[rank - 1])


def quantile_rank(tasks: int, quantile: float, delta: float) -> int:
    """Return which of the losses of so many tasks, counted from the lowest as 1, bounds the quantile.

    The k-th smallest loss reaches the quantile if fewer than k losses lie below it. A rank above the number of tasks
    says that they are too few.
    """
    _check_delta(delta)
    _check_probability("quantile", quantile)
    return int(stats.binom.ppf(1 - delta, tasks, quantile)) + 1


def pac_bayes_bound(mean_loss: float, tasks: int, divergence: float, delta: float = 0.05) -> float:
    """Return the PAC-Bayes bound on the expected loss of a randomized learner on a new task.

    The largest p with ``kl(R̂ ‖ p) ≤ (KL(Q ‖ P) + ln(2 √n / δ)) / n`` (Maurer, 2004, theorem 5).

    Args:
        mean_loss: R̂, the mean loss in [0, 1] over tasks of a learner drawn from Q.
        tasks: n, the number of tasks, at least 8.
        divergence: KL(Q ‖ P) in nats; the prior P must not depend on the tasks.
        delta: The probability of an error, between 0 and 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> round(pac_bayes_bound(0.1, tasks=600, divergence=3.0), 3)
        0.163
    """
    _check_delta(delta)
    _checked([mean_loss])
    if tasks < 8:
        raise ValueError(f"tasks={tasks} must be at least 8, for which the bound is proved")
    if divergence < 0:
        raise ValueError(f"divergence={divergence} must be at least 0")
    return kl_inverse(mean_loss, (divergence + math.log(2 * math.sqrt(tasks) / delta)) / tasks)


def kl_inverse(mean: float, divergence: float) -> float:
    """Return the largest p with ``kl(mean ‖ p) ≤ divergence``, for Bernoulli distributions.

    Example:
        >>> round(kl_inverse(0.0, 0.1), 4)  # 1 − exp(−0.1)
        0.0952
    """

    def excess(p: float) -> float:
        return _kl(mean, p) - divergence

    if mean == 1 or excess(1 - 1e-15) <= 0:
        return 1.0
    return float(brentq(excess, mean, 1 - 1e-15, xtol=1e-14)) if divergence > 0 else mean


def _kl(q: float, p: float) -> float:
    first = 0.0 if q == 0 else q * math.log(q / p)
    return first + (0.0 if q == 1 else (1 - q) * math.log((1 - q) / (1 - p)))


def _hoeffding(x: Losses, delta: float) -> float:
    return float(x.mean()) + math.sqrt(math.log(1 / delta) / (2 * len(x)))


def _kl_bound(x: Losses, delta: float) -> float:
    return kl_inverse(float(x.mean()), math.log(1 / delta) / len(x))


def _bernstein(x: Losses, delta: float) -> float:
    if len(x) == 1:
        return 1.0
    n, log = len(x), math.log(2 / delta)
    return float(x.mean() + math.sqrt(2 * x.var(ddof=1) * log / n)) + 7 * log / (3 * (n - 1))


def _clopper_pearson(x: Losses, delta: float) -> float:
    errors = int(x.sum())
    return 1.0 if errors == len(x) else float(stats.beta.ppf(1 - delta, errors + 1, len(x) - errors))


def _betting(x: Losses, delta: float) -> float:
    n = len(x)
    seen = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(x)) / (seen + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], variances[:-1]])  # v_{i−1} knows the losses before the i-th only
    bets = np.sqrt(2 * math.log(1 / delta) / (n * before))

    def shortfall(m: float) -> float:
        """How far the logarithm of the largest wealth stays below ln(1/δ); it falls as m grows."""
        limited = np.minimum(bets, _BET_LIMIT / (1 - m))
        return math.log(1 / delta) - float(np.cumsum(np.log1p(limited * (m - x))).max())

    largest = 1 - 1e-12
    if shortfall(largest) > 0:
        return 1.0
    return float(brentq(shortfall, 0.0, largest, xtol=1e-12))


_BOUNDS: dict[str, Callable[[Losses, float], float]] = {
    "betting": _betting,
    "bernstein": _bernstein,
    "kl": _kl_bound,
    "hoeffding": _hoeffding,
    "clopper_pearson": _clopper_pearson,
}


def _checked(losses: Any) -> Losses:
    values = np.asarray(losses, dtype=float)
    _check_shape(values)
    outside = values[~((values >= 0) & (values <= 1))]
    if len(outside):
        raise ValueError(
            f"losses has {len(outside)} values outside of [0, 1], such as {outside[0]:g}: divide a loss by its largest "
            "value, after limiting it to that"
        )
    return values


def _check_shape(values: Losses) -> None:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"losses must be one number for each task, [tasks], not of shape {values.shape}")


def _check_delta(delta: Any) -> None:
    _check_probability("delta", delta)


def _check_probability(name: str, value: Any) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value!r} must lie between 0 and 1, such as {0.05 if name == 'delta' else 0.9}")
