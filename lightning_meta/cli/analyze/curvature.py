"""``lightning-meta analyze curvature``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import polars as pl
import torch

from lightning_meta.algorithms import ImplicitMAML
from lightning_meta.analysis.adjoint import adjoint_errors
from lightning_meta.analysis.hessians import Curvature, curvature
from lightning_meta.analysis.tasks import take
from lightning_meta.arguments import check_count
from lightning_meta.cli.analyze.adjoint_part import adjoint_advice, adjoint_tables, draw_adjoint
from lightning_meta.cli.analyze.quantiles import quantile, quantile_row
from lightning_meta.cli.analyze.report import Report
from lightning_meta.data import TaskDataModule
from lightning_meta.inner import SGD, InnerRates
from lightning_meta.inner.curvature_factors import CurvatureFactors
from lightning_meta.learners.task_learner import TaskLearner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIAGNOSTIC = (
    "This is a diagnostic, not advice about the inner rate. The rates that learn best may be several times above or "
    "below 2/λ_max, and training moves the curvature along with the rate: on sinusoids the rate times λ_max came out "
    "near 1 to 2 whatever rate was trained with. Compare rates by their validation losses."
)


def curvature_report(
    learner: TaskLearner,
    data: TaskDataModule,
    num_tasks: int = 50,
    steps: int = 20,
    probes: int = 3,
    adjoint_steps: int = 30,
    seed: int = 0,
) -> Report:
    """Curvature of the tasks' support losses; for implicit MAML also the error of its conjugate gradients.

    Args:
        learner: The learner.
        data: Its tasks; the analysis takes validation tasks.
        num_tasks: Tasks.
        steps: Lanczos steps; 10 to 30 suffice for the extreme eigenvalues.
        probes: Random start vectors for the spectral density.
        adjoint_steps: The most conjugate-gradient steps whose error is measured, for implicit MAML.
        seed: The seed of the start vectors.
    """
    check_count("num_tasks", num_tasks)
    check_count("adjoint_steps", adjoint_steps)
    batch = take(data.episodes("val"), num_tasks, learner.device)
    found = curvature(learner, batch, steps, probes, seed)
    rate = fixed_rate(learner)
    by_task = {
        "eigenvalue λ_max": found.largest,
        "eigenvalue λ_min": found.smallest,
        "2/λ_max": found.stability_limit,
        "share of curvature < 0": found.negative_share,
    }
    if rate is not None:
        by_task[f"{rate:g} · λ_max (inner_lr)"] = rate * found.largest
    table = pl.DataFrame([{"quantiles over tasks": name, **quantile_row(own)} for name, own in by_task.items()])
    values = {"by_task": by_task, "inner_lr": rate}
    pictures = {"spectrum": lambda: _draw(found, rate)}
    advice = [_convexity(found), *_rate(found, rate), _DIAGNOSTIC]
    if not isinstance(learner, ImplicitMAML):
        return Report(table, tuple(advice), values, pictures)
    errors = adjoint_errors(learner, batch, adjoint_steps, seed=seed)
    pictures["adjoint"] = lambda: draw_adjoint(errors)
    values["adjoint"] = errors._asdict()
    return Report(table, (*advice, *adjoint_advice(errors)), values, pictures, adjoint_tables(errors))


def fixed_rate(learner: TaskLearner) -> float | None:
    """Return the rate of plain gradient descent in the inner loop; None: it is learned, or another rule updates."""
    modules = [module for module in learner.modules() if isinstance(module, InnerRates | CurvatureFactors)]
    learned = any(list(module.parameters()) for module in modules)
    rate = getattr(learner, "inner_lr", None)
    plain = type(getattr(learner, "inner_optimizer", None)) is SGD
    newton = getattr(learner, "inner_solver", "gradient_descent") != "gradient_descent"
    return float(rate) if isinstance(rate, int | float) and plain and not learned and not newton else None


def _convexity(found: Curvature) -> str:
    share = float((~found.is_convex).double().mean())
    if not share:
        return (
            "In no task is λ_min negative beyond rounding: each support loss is convex around the initialization, as "
            "far as these Lanczos steps show."
        )
    part = quantile(found.negative_share, 0.5)
    return (
        f"λ_min is negative in {100 * share:.0f} % of the tasks; in the median task {100 * part:.0f} % of the absolute "
        "curvature is negative. The support loss is not convex there, and 2/λ_max is the limit of its convex "
        "directions alone."
    )


def _rate(found: Curvature, rate: float | None) -> list[str]:
    if rate is None:
        return ["The inner loop has no single fixed rate of gradient descent to set beside the limit."]
    above = float((rate > found.stability_limit).double().mean())
    if not above:
        return [f"inner_lr={rate:g} is below 2/λ_max in all tasks."]
    return [
        f"inner_lr={rate:g} is above 2/λ_max in {100 * above:.0f} % of the tasks: in their steepest direction at the "
        "initialization, gradient descent oscillates with growing steps as long as the curvature stays."
    ]


def _draw(found: Curvature, rate: float | None) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    scale = max(float(found.largest.abs().median()) / 100, 1e-12)
    ends = torch.stack([found.values.min(), found.values.max()])
    lowest, highest = (torch.asinh(ends / scale) + torch.tensor([-0.8, 0.8])).tolist()
    points = torch.linspace(lowest, highest, 500, dtype=torch.float64)
    density = found.density(points, 0.15, scale)
    low, middle, high = density.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=0)
    values = (scale * torch.sinh(points)).tolist()
    left.fill_between(values, low.tolist(), high.tolist(), alpha=0.25, linewidth=0, label="90 % of tasks")
    left.plot(values, middle.tolist(), label="median task")
    left.axvline(0, color="0.6", linewidth=0.8)
    left.set_xscale("asinh", linear_width=scale)
    decades = [10.0**power for power in range(math.ceil(math.log10(scale)), math.ceil(math.log10(values[-1])))]
    ticks = [-tick for tick in decades if -tick > values[0]] + [0.0] + decades
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.xaxis.set_minor_locator(NullLocator())
    left.set_yscale("log")
    left.set(xlabel="eigenvalue λ of the support loss's Hessian", ylabel="density (on this scale)")
    left.set(xlim=(values[0], values[-1]), ylim=(1e-6, 2 * float(high.max())), title="Spectral density")
    left.legend(loc="upper left")
    limits = found.stability_limit[found.stability_limit.isfinite()]
    if len(limits):
        first, last = math.log10(0.9 * float(limits.min())), math.log10(1.1 * float(limits.max()))
        right.hist(limits.tolist(), bins=torch.logspace(first, last, 21).tolist(), alpha=0.6)
    if rate is not None:
        right.axvline(rate, color="C3", label=f"inner_lr = {rate:g}")
        right.legend()
        right.margins(y=0.2)  # room for the legend
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel="2/λ_max", ylabel="tasks", title="Limit of stable rates")
    return figure
