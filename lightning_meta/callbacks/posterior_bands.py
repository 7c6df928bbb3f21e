"""Pictures of one-dimensional regression tasks with their predictive intervals."""

from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.arguments import check_count
from lightning_meta.callbacks.pictures import save_picture
from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.preparation import RealTargets
from lightning_meta.episodes.episode import Episode
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.learners.adapted_task import AdaptedTask
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.predictive import Samples, quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        save_picture(trainer, lambda: self._draw(trainer, pl_module, data), "posterior_bands")

    def _draw(self, trainer: L.Trainer, learner: TaskLearner, data: TaskDataModule) -> "Figure":
        from matplotlib.figure import Figure

        batch = data.episodes("test").make(np.arange(self.num_tasks))
        if batch.support_x.shape[2:] != (1,) or batch.support_y.shape[2:] != (1,):
            raise ValueError(
                f"PosteriorBands draws one input against one output, not {tuple(batch.support_x.shape[2:])} against "
                f"{tuple(batch.support_y.shape[2:])}"
            )
        rows = (self.num_tasks + 1) // 2
        figure = Figure(figsize=(11, 3.5 * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).flat
        for number, axis in zip(range(self.num_tasks), axes, strict=False):
            task = batch.select(number)
            own = map_leaves(lambda leaf: leaf.to(learner.device), trainer.precision_plugin.convert_input(task))
            with trainer.precision_plugin.forward_context():
                band = band_of_task(learner.adapt(own.support_x, own.support_y), own)
            draw_task(axis, band, task, target_label(data.preparation))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        return figure


class Band(NamedTuple):
    """The prediction of a task with one input and one target, on a grid of sorted inputs.

    Attributes:
        x: The inputs, ``[points]``.
        mean: The predictive mean.
        interval: The ends of the 90 % interval; None without a noise model.
        epistemic: The epistemic standard deviation; None for learners without a posterior.
    """

    x: NDArray[np.float32]
    mean: NDArray[np.float32]
    interval: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    epistemic: NDArray[np.float32] | None


def band_of_task(adapted: AdaptedTask, task: Episode) -> Band:
    """Return the prediction between the least and the greatest input of a task that is on the model's device."""
    inputs = torch.cat([task.support_x, task.query_x])
    grid = torch.linspace(float(inputs.min()), float(inputs.max()), 200, dtype=torch.float32)[:, None]  # [points, 1]
    return _band(adapted, grid.to(inputs))


def draw_task(axis: "Axes", band: Band, task: Episode, target: str = "target") -> None:
    """Draw a task of one input and one target: the points of both sets, and the predictive band between them.

    Args:
        axis: Where to draw.
        band: The prediction.
        task: The task, on the CPU.
        target: The label of the axis with targets.
    """
    _draw_band(axis, band)
    query = task.query_x.float().numpy(), task.query_y.float().numpy()
    axis.plot(*query, ".", color="gray", markersize=3, label="query points")
    support = task.support_x.float().numpy(), task.support_y.float().numpy()
    axis.plot(*support, "v", color="crimson", markersize=8, label="support points")
    axis.set(xlabel="input", ylabel=target)


def target_label(preparation: Any) -> str:
    """Return the label of an axis with targets as the model has them."""
    return "target (standardized)" if isinstance(getattr(preparation, "targets", None), RealTargets) else "target"


def draw_band(axis: "Axes", task: AdaptedTask, grid: Tensor) -> None:
    """Draw the predictive mean at sorted inputs ``[points, 1]``, the 90 % interval, and two epistemic deviations."""
    _draw_band(axis, _band(task, grid))


def _band(task: AdaptedTask, grid: Tensor) -> Band:
    samples, prediction = task.samples(grid), task.predict(grid)
    interval = None
    if samples.noise is not None:
        samples = Samples(**{name: value.float() for name, value in samples.present().items()})
        interval = _numbers(quantile(samples, 0.05)), _numbers(quantile(samples, 0.95))
    epistemic = None if prediction.epistemic is None else _numbers(prediction.epistemic.sqrt())
    return Band(_numbers(grid), _numbers(prediction.mean), interval, epistemic)


def _draw_band(axis: "Axes", band: Band) -> None:
    x, mean, interval, epistemic = band
    if interval is not None:
        axis.fill_between(x, *interval, color="tab:blue", alpha=0.18, linewidth=0, label="90 % interval")
    if epistemic is not None:
        low, high = mean - 2 * epistemic, mean + 2 * epistemic
        axis.fill_between(x, low, high, color="tab:blue", alpha=0.3, linewidth=0, label="epistemic")
    axis.plot(x, mean, color="tab:blue", label="mean")
    axis.grid(alpha=0.2)


def _numbers(column: Tensor) -> NDArray[np.float32]:
    return column[:, 0].float().numpy(force=True)
