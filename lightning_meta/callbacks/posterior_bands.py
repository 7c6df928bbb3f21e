"""Pictures of one-dimensional regression tasks with their predictive intervals."""

from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.arguments import check_count
from lightning_meta.callbacks.episodes.own_units import target_label
from lightning_meta.callbacks.pictures import save_picture
from lightning_meta.data.base import TaskDataModule
from lightning_meta.episodes.episode import Episode
from lightning_meta.learners.adapted_task import AdaptedTask
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.predictive import quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PosteriorBands(L.Callback):
    """After a test, draws some test tasks: the predictive mean, its 90 % interval, and the epistemic part of it.

    For tasks with scalar inputs and outputs; learners without a posterior get no epistemic band.

    Args:
        num_tasks: How many tasks to draw.
    """

    def __init__(self, num_tasks: int = 4) -> None:
        check_count("num_tasks", num_tasks)
        self.num_tasks = num_tasks

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and save ``posterior_bands.png``."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, TaskLearner) or not isinstance(data, TaskDataModule):
            raise TypeError("PosteriorBands draws the tasks of a TaskDataModule: call trainer.test(learner, data)")
        if not trainer.is_global_zero:
            return
        from matplotlib.figure import Figure

        batch = data.episodes("test").make(np.arange(self.num_tasks))
        if batch.support_x.shape[2:] != (1,) or batch.support_y.shape[2:] != (1,):
            raise ValueError(
                f"PosteriorBands draws one input against one output, not {tuple(batch.support_x.shape[2:])} against "
                f"{tuple(batch.support_y.shape[2:])}"
            )
        rows, device = (self.num_tasks + 1) // 2, pl_module.device
        figure = Figure(figsize=(11, 3.5 * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).flat
        for task, axis in zip(range(self.num_tasks), axes, strict=False):
            one = batch.select(task)
            adapted = pl_module.adapt(one.support_x.to(device), one.support_y.to(device))
            draw_task(axis, adapted, one, device, target_label(data.preparation))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        save_picture(trainer, figure, "posterior_bands")


def draw_task(axis: "Axes", adapted: AdaptedTask, task: Episode, device: torch.device, target: str = "target") -> None:
    """Draw a task of one input and one target: the points of both sets, and the predictive band between them.

    Args:
        axis: Where to draw.
        adapted: The adapted model.
        task: The task, on the CPU.
        device: The model's device.
        target: The label of the axis with targets.
    """
    inputs = torch.cat([task.support_x, task.query_x])
    grid = torch.linspace(float(inputs.min()), float(inputs.max()), 200)[:, None]  # [points, 1]
    draw_band(axis, adapted, grid.to(device, inputs.dtype))
    query = task.query_x.float().numpy(), task.query_y.float().numpy()
    axis.plot(*query, ".", color="gray", markersize=3, label="query points")
    support = task.support_x.float().numpy(), task.support_y.float().numpy()
    axis.plot(*support, "v", color="crimson", markersize=8, label="support points")
    axis.set(xlabel="input", ylabel=target)


def draw_band(axis: "Axes", task: AdaptedTask, grid: Tensor) -> None:
    """Draw the predictive mean at sorted inputs ``[points, 1]``, the 90 % interval, and two epistemic deviations."""
    samples, prediction = task.samples(grid), task.predict(grid)
    x, mean = _numbers(grid), _numbers(prediction.mean)
    if samples.noise is not None:
        low, high = (_numbers(quantile(samples, level)) for level in (0.05, 0.95))
        axis.fill_between(x, low, high, color="tab:blue", alpha=0.18, linewidth=0, label="90 % interval")
    if prediction.epistemic is not None:
        spread = 2 * _numbers(prediction.epistemic.sqrt())
        axis.fill_between(x, mean - spread, mean + spread, color="tab:blue", alpha=0.3, linewidth=0, label="epistemic")
    axis.plot(x, mean, color="tab:blue", label="mean")
    axis.grid(alpha=0.2)


def _numbers(column: Tensor) -> NDArray[np.float32]:
    return column[:, 0].float().numpy(force=True)
