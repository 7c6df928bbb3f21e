"""Pictures of ``lightning-meta analyze rates``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_meta.analysis.rate_search import RateSearch
from lightning_meta.analysis.step_gains import StepGains

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_ABOVE = 30.0  # times the lowest loss
_SHOWN_BEYOND = 30.0  # times the highest rate that may be as good


def draw_rates(search: RateSearch) -> Figure:
    """The loss of each rate, as that of the advised one plus the paired difference with its interval."""
    from matplotlib.figure import Figure

    level = float(search.losses[search.advised].mean())
    finite = {rate: search.difference(rate) for rate in search.losses if math.isfinite(search.difference(rate).mean)}
    near = {rate: own for rate, own in finite.items() if level + own.mean <= _SHOWN_ABOVE * abs(level)}
    rates = list(near)
    means, lows, highs = ([level + own[i] for own in near.values()] for i in range(3))
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(rates, lows, highs, alpha=0.2, linewidth=0, label="95 % interval of the difference")
    axis.plot(rates, means, color="C0", linewidth=1)
    low, high = search.as_good
    apart = [(rate, mean) for rate, mean in zip(rates, means, strict=True) if not low <= rate <= high]
    alike = [(rate, mean) for rate, mean in zip(rates, means, strict=True) if low <= rate <= high]
    axis.plot(*zip(*alike, strict=True), "o", color="C1", markersize=4.5, label="advised, or may be as good")
    if apart:
        axis.plot(*zip(*apart, strict=True), "o", color="C0", markersize=3.5)
    axis.axvline(search.advised, color="C1", linewidth=1.2, label=f"advised, {search.advised:.3g}")
    if search.own != search.advised:
        axis.axvline(search.own, color="0.4", linewidth=1.2, linestyle="--", label=f"own, {search.own:.3g}")
    diverging = [rate for rate in search.losses if rate not in finite and rate <= _SHOWN_BEYOND * high]
    if diverging:
        top = axis.get_xaxis_transform()  # rates as on the axis, heights as shares of the picture
        axis.plot(diverging, [0.96] * len(diverging), "^", color="C3", transform=top, label="a task diverges")
    axis.set_xscale("log")
    if min(lows) > 0:
        axis.set_yscale("log")
    name = "factor on the learned rates" if search.is_factor else "inner learning rate"
    axis.set(xlabel=name, ylabel=f"query loss after {search.steps} inner step{'s' if search.steps > 1 else ''}")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def draw_gains(gains: StepGains) -> Figure:
    """The gain of each step with its interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = {step: own for step, own in enumerate(gains.intervals, start=1) if math.isfinite(own.mean)}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    lows, highs = [own.low for own in found.values()], [own.high for own in found.values()]
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.vlines(list(found), lows, highs, color="C0", linewidth=1.2)
    axis.plot(list(found), [own.mean for own in found.values()], "o", color="C0", markersize=4)
    smallest = min((abs(value) for value in (*lows, *highs) if value), default=1.0)
    axis.set_yscale("symlog", linthresh=max(smallest, max(map(abs, (*lows, *highs)), default=1.0) / 1e3))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="inner step", ylabel="gain: fall of the query loss, 95 % interval")
    return figure
