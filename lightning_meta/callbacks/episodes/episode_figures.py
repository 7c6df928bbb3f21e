"""Pictures of some tasks with their predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.callbacks.episodes.inputs import pictures_of
from lightning_meta.callbacks.episodes.own_units import in_own_units
from lightning_meta.callbacks.episodes.record import ShownEpisode
from lightning_meta.callbacks.episodes.tables import evenly_spread, predicts_classes
from lightning_meta.callbacks.posterior_bands import draw_task, target_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PICTURES = 10  # of a support or query set
_GAP = 0.5  # between support and query set, in pictures
_INCHES = 0.9  # of a picture
_RIGHT, _WRONG = "tab:green", "tab:red"


def draw_episodes(episodes: list[ShownEpisode], preparation: Any = None) -> Figure | None:
    """Draw tasks: pictures with their classes, curves through points, or predictions against targets.

    None for tasks of other inputs and class labels, which only a table shows.

    Args:
        episodes: The tasks, with their predictions.
        preparation: The data module's preparation, which turns inputs into pixels and standardized targets into
            their own units again; the axis of curves, which the adapted model computes, says that it is standardized.
    """
    from matplotlib.figure import Figure

    first = episodes[0].task
    if not isinstance(first.query_y, Tensor):
        return None
    if pictures_of(first.query_x) is not None and predicts_classes(episodes[0].prediction.mean, first.query_y):
        tiles = max(_tiles(shown) for shown in episodes)
        figure = Figure(figsize=(_INCHES * tiles, 1.6 * _INCHES * len(episodes)), layout="constrained")
        for axis, shown in zip(figure.subplots(len(episodes), 1, squeeze=False).flat, episodes, strict=True):
            _draw_pictures(axis, shown, tiles, preparation)
        return figure
    is_real = first.query_y.is_floating_point() and episodes[0].likelihood != "bernoulli"
    if not is_real or first.query_y.shape != episodes[0].prediction.mean.shape:
        return None
    columns = min(2, len(episodes))
    rows = -(-len(episodes) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, shown in zip(axes, episodes, strict=False):
        axis.set_title(f"task {shown.number}", fontsize="medium")
        if shown.band is not None:
            draw_task(axis, shown.band, shown.task, target_label(preparation))
        else:
            _draw_against_targets(axis, in_own_units(shown, preparation))
    for axis in axes[len(episodes) :]:
        axis.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _draw_against_targets(axis: Axes, shown: ShownEpisode) -> None:
    """Draw predictions with two standard deviations against targets."""
    truth, mean = shown.task.query_y.flatten(), shown.prediction.mean.flatten()
    total = shown.prediction.total
    bars = None if total is None else 2 * total.sqrt().flatten().numpy()
    axis.errorbar(truth.numpy(), mean.numpy(), bars, fmt=".", color="tab:blue", elinewidth=0.7, label="± 2 deviations")
    ends = [float(torch.cat([truth, mean]).min()), float(torch.cat([truth, mean]).max())]
    axis.plot(ends, ends, color="gray", linestyle=":", label="equal")
    axis.set(xlabel="target", ylabel="prediction")
    axis.grid(alpha=0.2)


def _tiles(shown: ShownEpisode) -> float:
    """Return the width of a task, in pictures."""
    sizes = len(shown.task.support_y), len(shown.task.query_y)
    return sum(min(size, _MOST_PICTURES) for size in sizes) + _GAP


def _draw_pictures(axis: Axes, shown: ShownEpisode, tiles: float, preparation: Any) -> None:
    """Draw support pictures with their classes, and to the right queries with prediction, confidence and truth."""
    task, probabilities = shown.task, shown.prediction.mean
    support, query = (evenly_spread(len(y), _MOST_PICTURES) for y in (task.support_y, task.query_y))
    pictures = pictures_of(torch.cat([task.support_x[support], task.query_x[query]]), preparation)
    assert pictures is not None
    confidence, predicted = probabilities[query].max(1)
    for place, (picture, label) in enumerate(zip(pictures, task.support_y[support].tolist(), strict=False)):
        _tile(axis, place, picture, f"class {label}", "black")
    start = len(support) + _GAP
    truths = task.query_y[query].tolist()
    for place, (picture, truth, guess, sure) in enumerate(
        zip(pictures[len(support) :], truths, predicted.tolist(), confidence.tolist(), strict=True)
    ):
        text = f"{guess} ({100 * sure:.0f} %)"
        if truth < 0:
            _tile(axis, start + place, picture, text, "black")
        elif guess == truth:
            _tile(axis, start + place, picture, text, _RIGHT)
        else:
            _tile(axis, start + place, picture, f"{text}, is {truth}", _WRONG)
    axis.set(xlim=(0, tiles), ylim=(1.0, -0.2), aspect="equal")
    axis.axvline(start - _GAP / 2, color="gray", linewidth=0.8)
    axis.set_axis_off()
    title = f"task {shown.number}: support set with classes | queries with prediction and probability"
    counts = task.query_y >= 0  # ignored labels are negative
    if counts.any():
        accuracy = float((probabilities.argmax(1) == task.query_y)[counts].float().mean())
        title += f"; {100 * accuracy:.0f} % of {int(counts.sum())} right"
    axis.set_title(title, fontsize="small", loc="left")


def _tile(axis: Axes, left: float, picture: NDArray[np.uint8], text: str, color: str) -> None:
    axis.imshow(picture, extent=(left + 0.04, left + 0.96, 0.96, 0.04), interpolation="nearest")
    axis.plot(
        [left + 0.04, left + 0.96, left + 0.96, left + 0.04, left + 0.04],
        [0.04, 0.04, 0.96, 0.96, 0.04],
        color=color,
        linewidth=1.5,
    )
    axis.text(left + 0.5, -0.02, text, color=color, fontsize=6.5, ha="center", va="bottom")
