"""Metrics whose unit is the task: means over tasks with 95 % intervals."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.utilities import dim_zero_cat

from lightning_meta.likelihoods.losses import LossFunction
from lightning_meta.metrics.conformal_quantiles import ConformalQuantiles, ConformalScores
from lightning_meta.metrics.conformal_scores import Kind


class MeanOverTasks(Metric):
    """The mean of a per-task value and the half-width of its 95 % interval, ``1.96 · std / √tasks``.

    The standard deviation is the sample's (n − 1); the interval of a single task is NaN.

    Example:
        >>> mean = MeanOverTasks()
        >>> mean.update(torch.tensor([0.5, 0.7, 0.9]))
        >>> mean.compute()
        (tensor(0.7000), tensor(0.2263))
    """

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Add one value per task, ``[tasks]``."""
        self.values.append(values.detach().float())

    def gathered(self) -> Tensor:
        """Return the values of all processes, one process after the other."""
        with self.sync_context():
            return dim_zero_cat(self.values)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the mean over tasks and the half-width of its 95 % interval."""
        return mean_and_interval(dim_zero_cat(self.values))


def mean_and_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of values ``[tasks]`` and the half-width of its 95 % interval, as `MeanOverTasks` does."""
    tasks = values.numel()
    spread = values.std() if tasks > 1 else values.new_tensor(float("nan"))
    return values.mean(), 1.96 * spread / tasks**0.5


class TaskMetrics:
    """A `MeanOverTasks` for each name, created when the name is first updated."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Remove all tasks and names."""
        self._means: dict[str, MeanOverTasks] = {}
        self._scores: ConformalScores | None = None

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add one value per task, ``[tasks]``, for each name."""
        for name, value in values.items():
            if name not in self._means:
                self._means[name] = MeanOverTasks().to(value.device)
            self._means[name].update(value)

    def update_scores(self, kind: Kind, scores: Tensor, counts: Tensor) -> None:
        """Add the scores ``[tasks, query]`` of one kind, of the queries that count, ``[tasks, query]``."""
        if self._scores is None:
            self._scores = ConformalScores(kind).to(scores.device)
        self._scores.update(scores, counts)

    def scores(self) -> ConformalQuantiles | None:
        """Return the distribution of all scores that were added; None without scores."""
        return None if self._scores is None else self._scores.compute()

    def by_task(self) -> dict[str, Tensor]:
        """Return the values of all tasks by name, ``[tasks]``, in the order of the tasks, from all processes."""
        values = {name: mean.gathered() for name, mean in self._means.items()}
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if world == 1:
            return values
        count = next(iter(values.values())).numel()
        order = torch.cat([torch.arange(rank, count, world) for rank in range(world)]).argsort()  # as EpisodeSampler
        return {name: value[order.to(value.device)] for name, value in values.items()}

    def compute(self) -> dict[str, Tensor]:
        """Return the mean under each name and its interval under ``<name>_ci95``."""
        computed: dict[str, Tensor] = {}
        for name, mean in self._means.items():
            computed[name], computed[f"{name}_ci95"] = mean.compute()
        return computed


def per_task_metrics(loss_fn: LossFunction, outputs: Tensor, targets: Any, mask: Tensor | None) -> dict[str, Tensor]:
    """Return each task's accuracy ("acc") for class labels, mean squared error ("mse") for real targets.

    Args:
        loss_fn: With `nn.BCEWithLogitsLoss`, an output above 0 predicts the class of targets above 0.5.
        outputs: ``[tasks, query, ...]``; for classes ``[tasks, query, classes, ...]``.
        targets: ``[tasks, query, ...]``. Other combinations give no metric.
        mask: ``[tasks, query]``, True where an example counts, or None.

    Returns:
        Values ``[tasks]`` by name.

    Example:
        >>> outputs = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # [tasks, query, classes]
        >>> per_task_metrics(nn.CrossEntropyLoss(), outputs, torch.tensor([[0, 0]]), mask=None)
        {'acc': tensor([0.5000])}
    """
    if not isinstance(targets, Tensor):
        return {}
    if not targets.is_floating_point() and outputs.ndim == targets.ndim + 1:
        return {"acc": _accuracy(outputs, targets, mask)}
    if targets.shape != outputs.shape:
        return {}
    if isinstance(loss_fn, nn.BCEWithLogitsLoss):
        return {"acc": mean_by_task((outputs > 0) == (targets > 0.5), mask)}
    return {"mse": mean_by_task((outputs - targets).square(), mask)}


def _accuracy(outputs: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    padding = -1
    labels = targets.clamp(min=padding)  # ignored labels, -100 by default, become padding too
    if mask is not None:
        mask = mask.reshape(*mask.shape, *[1] * (targets.ndim - 2))  # [tasks, query, 1, ...]
        labels = labels.masked_fill(~mask, padding)
    return multiclass_accuracy(
        outputs.argmax(2),  # [tasks, query, ...]
        labels,
        outputs.shape[2],
        average="micro",
        multidim_average="samplewise",
        ignore_index=padding,
        validate_args=False,  # the labels are checked before training; checking again takes longer than counting
    )


def mean_by_task(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean ``[tasks]`` of values ``[tasks, query, ...]`` over the queries that count."""
    if not values.is_floating_point():
        values = values.float()
    if values.ndim > 2:
        values = values.flatten(2).mean(2)  # [tasks, query]
    if mask is None:
        return values.mean(1)
    return torch.where(mask, values, 0).sum(1) / mask.sum(1)
