"""Pictures of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_meta.analysis.diagnosis.data_curves import Curve
from lightning_meta.analysis.diagnosis.diagnose import Diagnosis
from lightning_meta.analysis.intervals import Interval, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAPS = {"points": "new points −\ntrained points", "tasks": "new tasks −\nseen tasks", "adaptation": "query −\nsupport"}


def draw_diagnosis(found: Diagnosis) -> Figure:
    """Draw the score by inner step beside baselines, the three gaps, and the memorization test."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.5), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.5, 1, 1.3))
    unit = "loss" if found.own.accuracy is None else "error rate"
    _draw_steps(axes[0], found, unit)
    _draw_gaps(axes[1], found, unit)
    _draw_memorization(axes[2], found, unit)
    return figure


def draw_curves(curves: Mapping[str, Curve], has_classes: bool) -> Figure:
    """Draw the score on new tasks against the sizes of the data."""
    from matplotlib.figure import Figure

    shown = {name: curve for name, curve in curves.items() if curve}
    figure = Figure(figsize=(5 * len(shown), 4), layout="constrained")
    for axis, (name, curve) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        means = [mean_interval(scores.score) for scores in curve.values()]
        axis.errorbar(list(curve), [m.mean for m in means], _half_widths(means), marker="o", capsize=3)
        axis.set(xlabel=name, ylabel=f"{'error rate' if has_classes else 'loss'} on new tasks", xscale="log")
        axis.set_xticks(list(curve), [str(size) for size in curve], minor=False)
        axis.minorticks_off()
    return figure


def _draw_steps(axis: Any, found: Diagnosis, unit: str) -> None:
    means = [mean_interval(values) for values in found.steps.score]
    numbers = list(range(len(means)))
    axis.errorbar(numbers, [m.mean for m in means], _half_widths(means), marker="o", capsize=3, label="this learner")
    if found.eval_steps:
        axis.axvline(found.eval_steps, color="gray", linewidth=0.8, linestyle=":")
    for number, (name, reference) in enumerate(found.references.items(), start=1):
        axis.axhline(float(reference.scores.score.mean()), color=f"C{number}", linestyle="--", label=name)
    scores = [m.mean for m in means] + [float(each.scores.score.mean()) for each in found.references.values()]
    if unit == "loss" and min(scores) > 0 and max(scores) > 20 * min(scores):
        axis.set_yscale("log")
    axis.set(title="New tasks", xlabel="inner steps (dotted: those of evaluation)", ylabel=unit)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _draw_gaps(axis: Any, found: Diagnosis, unit: str) -> None:
    gaps = {label: getattr(found.gaps, name) for name, label in _GAPS.items()}
    known = {label: gap for label, gap in gaps.items() if gap is not None}
    bars = list(known.values())
    axis.bar(list(known), [gap.mean for gap in bars], yerr=_half_widths(bars), capsize=4, color="C0", alpha=0.7)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(title="Gaps", ylabel=f"difference of {unit}")


def _draw_memorization(axis: Any, found: Diagnosis, unit: str) -> None:
    names = {
        "own": "own",
        "permuted": "labels\npermuted",
        "other": "another\ntask's",
        "constant": "constant\npredictor",
    }
    for label, test, shift in (("training tasks", found.seen, -0.2), ("new tasks", found.new, 0.2)):
        means = [mean_interval(getattr(test, name).score) for name in names]
        places = [number + shift for number in range(len(names))]
        axis.bar(places, [m.mean for m in means], 0.4, yerr=_half_widths(means), capsize=4, alpha=0.7, label=label)
    axis.set_xticks(range(len(names)), list(names.values()))
    axis.set(title=f"Support set (memorization index {found.seen.ratio.mean:.2f})", ylabel=unit)
    axis.margins(y=0.2)  # room for the legend
    axis.legend(fontsize="small", ncols=2, loc="upper left")


def _half_widths(intervals: list[Interval]) -> list[float]:
    return [interval.high - interval.mean for interval in intervals]
