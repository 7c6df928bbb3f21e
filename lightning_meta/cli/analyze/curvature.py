"""``lightning-meta analyze curvature``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from lightning_meta.analysis.hessians import Curvature, curvature
from lightning_meta.analysis.tasks import take
from lightning_meta.cli.analyze.report import Report
from lightning_meta.data import TaskDataModule
from lightning_meta.learners.task_learner import TaskLearner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUANTILES = (0.05, 0.5, 0.95)


def curvature_report(
    learner: TaskLearner, data: TaskDataModule, num_tasks: int = 50, steps: int = 20, probes: int = 3, seed: int = 0
) -> Report:
    """Curvature of the tasks' support losses at the initialization, and the inner rates that are stable.

    Args:
        learner: The learner.
        data: Its tasks; the analysis takes validation tasks.
        num_tasks: Tasks.
        steps: Lanczos steps; 10 to 30 suffice for the extreme eigenvalues.
        probes: Random start vectors for the spectral density.
        seed: The seed of the start vectors.
    """
    found = curvature(learner, take(data.episodes("val"), num_tasks, learner.device), steps, probes, seed)
    by_task = {
        "largest eigenvalue": found.largest,
        "smallest eigenvalue": found.smallest,
        "stability limit of the inner rate": found.stability_limit,
        "share of negative curvature": found.negative_share,
    }
    rows = [
        {"quantity": name, **{f"{level:.0%} of tasks": float(values.quantile(level)) for level in _QUANTILES}}
        for name, values in by_task.items()
    ]
    limit = float(found.stability_limit.median())
    advice = (
        f"Gradient descent on the median task's quadratic model is stable below an inner rate of {limit:.3g}. This is "
        "a diagnostic, not advice: `lightning-meta analyze rates` searches for the rate.",
    )
    values = {name: own.tolist() for name, own in by_task.items()}
    return Report(pl.DataFrame(rows), advice, {"by_task": values}, {"spectrum": lambda: _draw(found)})


def _draw(found: Curvature) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.hist(found.values.flatten().numpy(), weights=found.weights.flatten().numpy(), bins=50)
    axis.set(xlabel="eigenvalue", ylabel="weight", yscale="log")
    return figure
