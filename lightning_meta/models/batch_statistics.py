"""The statistics that batch normalization uses, chosen without changing the model."""

from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_meta.arguments import check_choice, check_module
from lightning_meta.models.norm import TaskBatchNorm2d

BatchStatistics = Literal["batch", "support", "running"]


def check_normalization(model: nn.Module, choice: BatchStatistics, argument: str = "model") -> None:
    """Raise a TypeError for layers that cannot run inside a per-task function, a ValueError for another choice.

    Args:
        model: The module.
        choice: The statistics.
        argument: What errors call the module.
    """
    check_choice("batch_statistics", choice, BatchStatistics)
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise TypeError(
                f"{argument}.{name} is a SyncBatchNorm, which communicates with other processes in the forward pass "
                "and cannot run per task; each task is on one device: use BatchNorm, and leave sync_batchnorm off"
            )
        if isinstance(module, TaskBatchNorm2d) and choice == "running":
            raise TypeError(
                f'batch_statistics="running" but {argument}.{name} is a TaskBatchNorm2d, which keeps none: use '
                '"batch", or a model that keeps them, such as ResNet12(running_statistics=True)'
            )
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise TypeError(
                f"{argument}.{name} is a lazy module whose parameters are not initialized: run the model once on an "
                "example before passing it"
            )


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether a model has layers that normalize examples by statistics of the batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm | TaskBatchNorm2d) for module in model.modules())


def check_no_statistics(module: nn.Module, argument: str) -> None:
    """Raise a TypeError or ValueError for a module beside the model that normalizes by statistics, or is no module.

    Args:
        module: The module.
        argument: What errors call it.
    """
    check_module(argument, module)
    check_normalization(module, "batch", argument)
    if has_batch_statistics(module) or dropped_buffers(module, "batch"):
        raise ValueError(f"{argument} has batch normalization or running statistics: use nn.LayerNorm in its place")


def dropped_buffers(model: nn.Module, choice: BatchStatistics) -> dict[str, Tensor | None]:
    """Return the buffers to replace by None in a functional call.

    Without running statistics a normalization layer uses its input's, in training and in evaluation alike,
    and updates nothing.
    """
    if choice == "running":
        return {}
    return {
        f"{prefix}.{buffer}" if prefix else buffer: None
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }


def set_statistics_mode(model: nn.Module, choice: BatchStatistics) -> None:
    """Undo the effect of ``model.train()`` and ``model.eval()`` on the choice of statistics; called after either."""
    for module in model.modules():
        if choice == "running" and isinstance(module, _NormBase):
            module.training = False
        elif isinstance(module, _InstanceNorm) and module.track_running_stats:
            module.training = True
