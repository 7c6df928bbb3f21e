"""Checks of batches, losses and trainer settings: each error names the culprit and the cure."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_meta.batch_statistics import check_normalization
from lightning_meta.episode import Episode, Support
from lightning_meta.losses import needs_same_shape, takes_class_labels
from lightning_meta.task import TaskResult
from lightning_meta.trees import leaves_of

if TYPE_CHECKING:
    from lightning_meta.learner import MetaLearner


_LOWER = "lower the rate, or take fewer inner steps"


def check_overrides(learner: type) -> None:
    """Raise a TypeError for a class that overrides a meta-loss whose gradient its base computes otherwise."""
    gradient = next(owner for owner in learner.__mro__ if "task_gradient" in vars(owner))
    loss = next(owner for owner in learner.__mro__ if "task_loss" in vars(owner))
    if "task_loss" not in vars(gradient) and loss is not gradient and issubclass(loss, gradient):
        raise TypeError(
            f"{loss.__name__} overrides task_loss, but {gradient.__name__} computes the meta-gradient itself and would "
            "ignore it: override task_gradient"
        )


def check_batch(batch: Any, learner: MetaLearner) -> None:
    """Raise a TypeError or ValueError unless the learner's model and loss can take the batch."""
    if not isinstance(batch, Episode):
        raise TypeError(f"batch is a {type(batch).__name__}, not an Episode: use a data module of episodes")
    support = _check_set("support", batch.support_x, batch.support_y, batch.support_mask)
    query = _check_set("query", batch.query_x, batch.query_y, batch.query_mask)
    if support != query:
        raise ValueError(f"support_x holds {support} tasks and query_x {query}; a batch has one of each per task")
    for name, target in (("support_y", batch.support_y), ("query_y", batch.query_y)):
        _check_targets(name, target, learner, batch.support_x, leading=2)


def check_support(support: Support, learner: MetaLearner) -> None:
    """Raise a ValueError unless the learner can adapt to this one task."""
    batched = tree_map(lambda leaf: None if leaf is None else leaf[None], support)
    _check_set("support", batched.x, batched.y, batched.mask)
    _check_targets("support_y", support.y, learner, batched.x, leading=1)


def check_finite(
    result: TaskResult, learner: MetaLearner, gradients: Collection[Tensor] = (), batch: Episode | None = None
) -> None:
    """Raise a FloatingPointError that tells in which task and inner step a loss, or else a gradient, is not finite.

    Args:
        result: The report of the tasks.
        learner: Whose tasks they are.
        gradients: What else must be finite.
        batch: The tasks, to tell their data from what was made of them.
    """
    numbers = [part.flatten() for part in (result.loss, result.support_losses, *gradients)]
    if math.isfinite(torch.cat(numbers).sum()):
        return
    losses = torch.cat([result.support_losses, result.loss[:, None]], dim=1)
    broken = ~torch.isfinite(losses)
    if broken.any():
        task, step = (int(i) for i in broken.nonzero()[0])
        data_is_finite = batch is None or _data_is_finite(batch, task)
        raise FloatingPointError(_where_broken(losses, task, step, learner, data_is_finite))
    if not all(gradient.isfinite().all() for gradient in gradients):
        raise FloatingPointError(
            f"the meta-gradient is not finite, though all losses are ({_rates(learner)}): lower the rate, take fewer "
            "inner steps, or train first-order"
        )


def check_adapted(state: Any, steps: int, learner: MetaLearner) -> None:
    """Raise a FloatingPointError if one task's adapted state is not finite, which no loss has seen yet."""
    numbers = [leaf for leaf in leaves_of(state) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not all(leaf.isfinite().all() for leaf in numbers):
        raise FloatingPointError(f"task 0 is not finite after {steps} inner steps ({_rates(learner)}): {_LOWER}")


def _data_is_finite(batch: Episode, task: int) -> bool:
    sets = ((batch.support_x, batch.support_y, batch.support_mask), (batch.query_x, batch.query_y, batch.query_mask))
    for x, y, mask in sets:
        leaves = [leaf[task] if mask is None else leaf[task][mask[task]] for leaf in leaves_of((x, y))]
        if not all(leaf.isfinite().all() for leaf in leaves):
            return False
    return True


def _where_broken(losses: Tensor, task: int, step: int, learner: MetaLearner, data_is_finite: bool) -> str:
    steps = losses.shape[1] - 1
    where = (
        f"before inner step {step + 1} of {steps}" if step < steps else f"on the query set after {steps} inner steps"
    )
    cure = "check its inputs and targets" if step == 0 or not data_is_finite else _LOWER
    if not all(torch.isfinite(p).all() for p in learner.parameters()):
        cure = "the learner's parameters are not finite themselves, go back to an earlier checkpoint"
    loss = float(losses[task, step])
    return f"task {task} of the batch has a loss of {loss} {where} ({_rates(learner)}): {cure}"


def check_trainer(learner: MetaLearner) -> None:
    """Raise a ValueError or TypeError for settings of the trainer with which training would go wrong."""
    if learner.trainer.precision in ("16-mixed", "16-true"):
        raise ValueError(
            f"precision={learner.trainer.precision!r}: the inner loop's gradients are taken before a loss can be "
            "scaled, and vanish in half precision: use 'bf16-mixed' or '32-true'"
        )
    strategy = type(learner.trainer.strategy).__name__
    if strategy in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
        raise ValueError(f"strategy={strategy}: tasks need whole parameters on every device: use 'ddp'")
    check_normalization(learner.model, learner.batch_statistics)  # sync_batchnorm=True converts after construction


def _rates(learner: MetaLearner) -> str:
    learned = [p.detach().abs().max() for name, p in learner.named_parameters() if name.startswith("inner_rates.")]
    return f"inner_lr={learner.inner_lr}" + (f", largest learned rate {float(max(learned)):.3g}" if learned else "")


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


def _check_targets(name: str, target: Any, learner: MetaLearner, inputs: Any, leading: int) -> None:
    if not isinstance(target, Tensor):
        return
    if isinstance(learner.loss_fn, nn.BCEWithLogitsLoss) and not target.is_floating_point():
        raise ValueError(f"{name} is {target.dtype} and {learner.loss_fn} needs real numbers: use {name}.float()")
    if needs_same_shape(learner.loss_fn):
        expected = learner.output_shape(inputs)
        if target.shape[leading:] != expected:
            raise ValueError(
                f"{name} has shape {tuple(target.shape[leading:])} per example and the model's output "
                f"{tuple(expected)}: "
                f"{learner.loss_fn} would broadcast them; reshape one (for scalars often {name}[..., None])"
            )
    elif takes_class_labels(learner.loss_fn):
        ignored = getattr(learner.loss_fn, "ignore_index", -100) if learner.ignores_labels else None
        _check_labels(name, target, learner.output_shape(inputs), leading, ignored)


def _check_labels(name: str, labels: Tensor, output: torch.Size, leading: int, ignore_index: int | None) -> None:
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
            "give the model as many outputs as the episodes have ways"
        )
