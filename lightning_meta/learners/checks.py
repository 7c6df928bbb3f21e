"""Checks of batches, losses and trainer settings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from lightning_meta.episodes import Episode, Support
from lightning_meta.episodes.trees import leaves_of, map_leaves
from lightning_meta.likelihoods.losses import LossFunction, needs_same_shape, takes_class_labels
from lightning_meta.models.batch_statistics import BatchStatistics, check_normalization


class Targets(NamedTuple):
    """The targets that a learner can take.

    Attributes:
        loss_fn: The loss that compares them with outputs.
        output_shape: Returns the shape of one example's output for support sets ``[tasks, support, ...]``.
        may_be_ignored: Whether labels may be the loss's ``ignore_index``.
        cure: The advice in errors about labels without an output.
    """

    loss_fn: LossFunction
    output_shape: Callable[[Support], torch.Size]
    may_be_ignored: bool
    cure: str


def check_overrides(learner: type) -> None:
    """Raise a TypeError for a class that overrides `task_loss` below a `task_gradient` that does not call it."""
    gradient = next(owner for owner in learner.__mro__ if "task_gradient" in vars(owner))
    loss = next(owner for owner in learner.__mro__ if "task_loss" in vars(owner))
    if "task_loss" not in vars(gradient) and loss is not gradient and issubclass(loss, gradient):
        raise TypeError(
            f"{loss.__name__} overrides task_loss, but {gradient.__name__} computes the meta-gradient itself and would "
            "ignore it: override task_gradient"
        )


def check_batch(batch: Any, targets: Targets) -> None:
    """Raise a TypeError or ValueError unless the model and the loss can take the batch."""
    if not isinstance(batch, Episode):
        raise TypeError(f"batch is a {type(batch).__name__}, not an Episode: use a data module of episodes")
    support = _check_set("support", batch.support_x, batch.support_y, batch.support_mask)
    query = _check_set("query", batch.query_x, batch.query_y, batch.query_mask)
    if support != query:
        raise ValueError(f"support_x holds {support} tasks and query_x {query}; a batch has one of each per task")
    for name, target in (("support_y", batch.support_y), ("query_y", batch.query_y)):
        _check_targets(name, target, targets, batch.support, leading=2)


def check_support(support: Support, targets: Targets) -> None:
    """Raise a ValueError unless the model and the loss can take this task's support set."""
    batched = map_leaves(lambda leaf: leaf[None], support)
    _check_set("support", batched.x, batched.y, batched.mask)
    _check_targets("support_y", support.y, targets, batched, leading=1)


def check_trainer(trainer: L.Trainer, model: nn.Module, choice: BatchStatistics) -> None:
    """Raise a ValueError or TypeError for trainer settings that the inner loop does not support."""
    if trainer.precision in ("16-mixed", "16-true"):
        raise ValueError(
            f"precision={trainer.precision!r}: the inner loop's gradients are taken before a loss can be "
            "scaled, and vanish in half precision: use 'bf16-mixed' or '32-true'"
        )
    strategy = type(trainer.strategy).__name__
    if strategy in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
        raise ValueError(f"strategy={strategy}: tasks need whole parameters on every device: use 'ddp'")
    check_normalization(model, choice)  # sync_batchnorm=True converts after construction


def check_has_tasks(data: Any, learner: str) -> None:
    """Raise a ValueError for a data module whose training batches are of all training classes at once."""
    size = getattr(data, "joint_batch_size", None)
    if size is not None:
        raise ValueError(
            f"joint_batch_size={size} of {type(data).__name__} serves batches of all training classes at once, and "
            f"{learner} trains on tasks: leave it out, or train Baseline, BaselinePlusPlus or SimpleShot"
        )


def _check_set(name: str, x: Any, y: Any, mask: Tensor | None) -> int:
    shapes = [tuple(leaf.shape) for leaf in leaves_of((x, y))]
    if any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
        raise ValueError(f"{name}_x and {name}_y must share their leading [tasks, {name}] sizes, got shapes {shapes}")
    if 0 in shapes[0][:2]:
        raise ValueError(f"{name}_x holds no example: its shape is {shapes[0]}")
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != shapes[0][:2]:
            raise ValueError(
                f"{name}_mask must be boolean of shape {shapes[0][:2]}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        if not mask.any(1).all():
            raise ValueError(f"{name}_mask leaves task {int(mask.any(1).int().argmin())} without any {name} example")
    return shapes[0][0]


def _check_targets(name: str, target: Any, expected: Targets, support: Support, leading: int) -> None:
    if not isinstance(target, Tensor):
        return
    loss_fn = expected.loss_fn
    if isinstance(loss_fn, nn.BCEWithLogitsLoss) and not target.is_floating_point():
        raise ValueError(f"{name} is {target.dtype} and {loss_fn} needs real numbers: use {name}.float()")
    if needs_same_shape(loss_fn):
        output = expected.output_shape(support)
        if target.shape[leading:] != output:
            raise ValueError(
                f"{name} has shape {tuple(target.shape[leading:])} per example and the model's output "
                f"{tuple(output)}: {loss_fn} would broadcast them; reshape one (for scalars often {name}[..., None])"
            )
    elif takes_class_labels(loss_fn):
        ignored = getattr(loss_fn, "ignore_index", -100) if expected.may_be_ignored else None
        _check_labels(name, target, expected, support, leading, ignored)


def _check_labels(
    name: str, labels: Tensor, expected: Targets, support: Support, leading: int, ignore_index: int | None
) -> None:
    output = expected.output_shape(support)
    if len(output) == 0:
        raise ValueError("the model gives one number per example and the loss needs a score per class")
    if labels.is_floating_point():
        if labels.shape[leading:] == output:  # Class probabilities.
            return
        raise ValueError(
            f"{name} is {labels.dtype} and the loss needs integer class labels: use {name}.long(), "
            "or loss_fn=nn.MSELoss() for regression"
        )
    if labels.dtype != torch.int64:
        raise ValueError(
            f"{name} is {labels.dtype} and the loss needs class labels of dtype torch.int64: use {name}.long()"
        )
    real = labels if ignore_index is None else labels[labels != ignore_index]
    if real.numel() and (int(real.min()) < 0 or int(real.max()) >= output[0]):
        worst = int(real.max()) if int(real.max()) >= output[0] else int(real.min())
        raise ValueError(
            f"{name} holds the label {worst} and the model has {output[0]} outputs, for labels 0 to {output[0] - 1}: "
            f"{expected.cure}"
        )
