"""``lightning-meta analyze batch``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import polars as pl

from lightning_meta.analysis.gradient_noise import (
    GradientVariance,
    Interval,
    NoiseIntervals,
    noise_intervals,
    variance_of_products,
)
from lightning_meta.analysis.meta_gradients import meta_gradient_products
from lightning_meta.cli.analyze.report import Report
from lightning_meta.data import TaskDataModule
from lightning_meta.learners.task_learner import TaskLearner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOSTLY, _HARDLY, _SURE = 0.5, 0.2, 0.3
_SIGNIFICANT = 0.05


def batch_report(
    learner: TaskLearner, data: TaskDataModule, num_tasks: int = 64, draws: int = 2, seed: int = 0
) -> Report:
    """Whether the meta-gradient's noise comes from few tasks, or from few examples in each.

    Args:
        learner: The learner, untrained, or at any point of its training.
        data: Its tasks; the analysis takes training tasks, with draws of their examples that training does not make.
        num_tasks: Tasks.
        draws: Draws of each task's support and query sets.
        seed: The seed of random numbers in the learner, the permutations and the bootstrap.
    """
    products = meta_gradient_products(learner, data.training_tasks(), num_tasks, draws, seed)
    parts, sure = variance_of_products(products, seed=seed), noise_intervals(products, seed=seed)
    rows = [
        _row("mean gradient, squared", parts.common, sure.common_interval),
        _row("variance between tasks", parts.between, sure.between_interval),
        _row("variance within tasks", parts.within, sure.within_interval),
        _row("share of the variance within tasks", sure.within_share, sure.share_interval),
        {"quantity": "p-value of no difference between tasks", "estimate": parts.p_value, "low": None, "high": None},
    ]
    values = {**parts._asdict(), **{name: value for name, value in sure._asdict().items() if name != "noise_scale"}}
    values |= {"noise_scale_tasks": sure.noise_scale, "tasks": len(products), "draws": draws}
    table = pl.DataFrame(rows, schema_overrides=dict.fromkeys(["estimate", "low", "high"], pl.Float64))
    return Report(
        table.rename({"low": "95 % from", "high": "95 % to"}),
        (_advice(parts, sure), *_caveats(parts, sure), f"Intervals are 95 % {data.interval_scope}, by the bootstrap."),
        values,
        {"variance": lambda: _draw(parts, sure)},
    )


def _row(name: str, value: float, interval: Interval) -> dict[str, object]:
    return {"quantity": name, "estimate": value, "low": interval.low, "high": interval.high}


def _advice(parts: GradientVariance, sure: NoiseIntervals) -> str:
    low, high = sure.share_interval
    share = 100 * sure.within_share
    of = f"{share:.0f} % of the meta-gradient's variance ({100 * low:.0f} to {100 * high:.0f} %) lies within tasks"
    if low >= _MOSTLY:
        return f"{of}: more shots and queries reduce the noise of a step, and so do more tasks in a batch."
    if high <= _HARDLY:
        return f"{of}: more tasks in a batch reduce the noise of a step; more shots and queries hardly do."
    if high - low <= _SURE:
        return f"{of}: more shots and queries can remove up to this share of a step's noise, more tasks all of it."
    return f"{of}: this interval is too wide to tell whether more shots and queries would help. Raise --num_tasks."


def _caveats(parts: GradientVariance, sure: NoiseIntervals) -> tuple[str, ...]:
    sentences = ["Another number of shots also changes what is learned, which this does not measure."]
    if parts.p_value > _SIGNIFICANT:
        sentences.append(f"No difference between the tasks' mean gradients was found (p = {parts.p_value:.2g}).")
    if math.isnan(sure.noise_scale):
        scale = "The noise scale is undetermined: the mean gradient is lost in the noise"
    else:
        scale = f"The noise scale is {sure.noise_scale:.3g} tasks, with one draw each"
    return (*sentences, f"{scale}. It is a diagnostic, and no advice on the number of tasks in a batch.")


def _draw(parts: GradientVariance, sure: NoiseIntervals) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axis = figure.subplots()
    shown = {
        "mean gradient": (parts.common, sure.common_interval),
        "between tasks": (parts.between, sure.between_interval),
        "within tasks": (parts.within, sure.within_interval),
    }
    left = 0.0
    for position, (name, (value, interval)) in enumerate(shown.items()):
        start = left
        width = max(value, 0.0)
        axis.barh(0, width, left=start, color=f"C{position}", alpha=0.6, label=name)
        ends = max(start, start + interval.low), start + interval.high
        axis.plot(ends, [0.12 * (position - 1)] * 2, color=f"C{position}", linewidth=2, marker="|", markersize=10)
        left += width
    axis.set(xlabel="part of the mean squared norm of a task's meta-gradient", yticks=[], ylim=(-0.6, 0.6))
    figure.legend(loc="outside upper center", ncols=3)
    return figure
