"""Pictures of adaptation, of how difficult the tasks are, and of learned rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.callbacks.episodes.record import Curve, Record
from lightning_meta.metrics.task_metrics import mean_and_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_CURVES = 8
_NAMES = {"acc": "accuracy", "mse": "mean squared error", "loss": "loss"}


def draw_adaptation(metric: str, history: Sequence[tuple[int, Record]], scope: str = "over tasks") -> Figure | None:
    """Draw by inner step the metric on queries, the support loss and the norm of the inner gradient.

    Args:
        metric: The metric's name.
        history: The records so far with their training steps; earlier ones are drawn in light colors.
        scope: What the intervals are about.
    """
    from matplotlib.figure import Figure

    last = history[-1][1]
    panels = [
        (f"{_NAMES[metric]} on queries", "curve", metric == "mse"),
        ("support loss", "support_loss", False),
        ("norm of the inner gradient", "gradient_norm", True),
    ]
    curves = {field: getattr(last, field) for _, field, _ in panels}
    panels = [panel for panel in panels if (own := curves[panel[1]]) is not None and len(own.steps) > 1]
    if not panels:
        return None
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    chosen = [history[round(i)] for i in np.linspace(0, len(history) - 1, min(len(history), _MOST_CURVES))]
    for axis, (name, field, logarithmic) in zip(
        figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True
    ):
        for position, (step, record) in enumerate(chosen):
            curve = getattr(record, field)
            if curve is not None:
                _draw_curve(axis, curve, f"training step {step}", (position + 1) / len(chosen))
        axis.set(xlabel="inner steps taken", ylabel=name, title=f"mean over {curves[field].tasks}")
        if logarithmic and all(0 < mean < np.inf for mean in curves[field].mean):
            _set_logarithmic(axis)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.2)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=_MOST_CURVES // 2)
    figure.suptitle(f"means with their 95 % intervals {scope}", fontsize="medium")
    return figure


def _set_logarithmic(axis: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers, between powers of ten too if it has less than two."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < 10 * low else NullFormatter())


def _draw_curve(axis: Axes, curve: Curve, label: str, darkness: float) -> None:
    steps, mean, half = (np.asarray(part) for part in curve[:3])
    color = (0.12, 0.35 + 0.4 * (1 - darkness), 0.7 + 0.25 * (1 - darkness), 0.25 + 0.75 * darkness)
    if darkness == 1 and np.isfinite(half).all():
        axis.fill_between(steps, mean - half, mean + half, color=color[:3], alpha=0.2, linewidth=0)
    axis.plot(steps, mean, color=color, marker="o", markersize=3.5, label=label)


def draw_difficulty(metric: str, per_task: Mapping[str, Tensor], scope: str = "over tasks") -> Figure | None:
    """Draw a histogram of the metric over tasks, with its mean and 95 % interval; in outline before adaptation.

    ``scope`` says what the interval is about. Infinite values and NaN are left out; None if no others are left.
    """
    from matplotlib.figure import Figure

    values = _finite(per_task[metric])
    tasks = len(per_task[metric])
    if not len(values):
        return None
    before = _finite(per_task[f"{metric}_pre"]).numpy() if f"{metric}_pre" in per_task else None
    center, half = map(float, mean_and_interval(values))
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    shown = values.numpy() if before is None else np.concatenate([values.numpy(), before])
    edges = _edges(metric, shown)
    after = np.clip(values.numpy(), edges[0], edges[-1])
    axis.hist(after, list(edges), color="tab:blue", alpha=0.75, label="after adaptation")
    if before is not None:
        before = np.clip(before, edges[0], edges[-1])
        axis.hist(before, list(edges), histtype="step", color="tab:gray", label="before adaptation")
    axis.axvline(center, color="tab:red", label=f"mean {center:.3g} ± {half:.2g},\n95 % interval {scope}")
    if np.isfinite(half):
        axis.axvspan(center - half, center + half, color="tab:red", alpha=0.15, linewidth=0)
    left_out = f", {tasks - len(values)} of {tasks} tasks are not finite" if len(values) < tasks else ""
    title = f"{len(values)} tasks{left_out}"
    axis.set(xlabel=f"{_NAMES.get(metric, metric)} of a task", ylabel="tasks", title=title)
    if metric != "acc":
        axis.set_xscale("log" if edges[0] > 0 else "linear")
    axis.legend(fontsize="small")
    return figure


def _finite(values: Tensor) -> Tensor:
    values = values.float().cpu()
    return values[values.isfinite()]


def _edges(metric: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the bins' edges: for accuracies from 0 to 1, for positive errors evenly spread in their logarithm."""
    if metric == "acc":
        return np.linspace(0, 1, 21)
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > low:
        return np.geomspace(max(low, high * 1e-5), high, 25)
    return np.linspace(low, max(high, low + 1e-6), 25)


def draw_rates(rates: Mapping[str, Tensor], inner_lr: float) -> Figure:
    """Draw the learned rates of each parameter: their mean, and the range over elements; rates by step as a line each.

    Args:
        rates: By name, scalars, ``[steps]`` or of any other shape.
        inner_lr: The rate at the start.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.6 + 0.28 * len(rates)), layout="constrained")
    axis = figure.subplots()
    names = list(rates)
    means = torch.stack([rate.mean() for rate in rates.values()]).numpy()
    low = torch.stack([rate.min() for rate in rates.values()]).numpy()
    high = torch.stack([rate.max() for rate in rates.values()]).numpy()
    axis.axvline(inner_lr, color="gray", linestyle=":", label=f"at the start, {inner_lr:g}")
    if (high > low).any():
        axis.hlines(names, low, high, color="tab:blue", alpha=0.4, linewidth=5, label="least to greatest")
    axis.plot(means, names, "o", color="tab:blue", label="mean")
    axis.invert_yaxis()
    axis.set(xlabel="learned inner rate")
    axis.grid(alpha=0.2)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
