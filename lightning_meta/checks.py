"""Errors that come before training does: each names the argument, its value, and the cure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.episode import Episode, Support
from lightning_meta.losses import needs_same_shape, takes_class_labels
from lightning_meta.task import TaskResult

if TYPE_CHECKING:
    from lightning_meta.learner import MetaLearner


def check_module(name: str, value: Any) -> None:
    """Raise a TypeError unless the value is a module instance."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}={value!r} must be a torch.nn.Module instance, such as {name}=nn.Linear(3, 1)")


def check_callable(name: str, value: Any) -> None:
    """Raise a TypeError unless the value is a function or a callable instance."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name}={value!r} must be a callable instance, such as {name}=nn.CrossEntropyLoss()")


def check_rate(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} must be a positive number")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise a ValueError unless the value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")


def check_optional_count(name: str, value: Any, least: int = 1) -> None:
    """As `check_count`, but None passes."""
    if value is not None:
        check_count(name, value, least)


def check_batch(batch: Any, learner: MetaLearner) -> None:
    """Raise a TypeError or ValueError unless the learner's model and loss can take the batch."""
    if not isinstance(batch, Episode):
        raise TypeError(f"batch is a {type(batch).__name__}, not an Episode: use a data module of episodes")
    support = _check_set("support", batch.support_x, batch.support_y, batch.support_mask)
    query = _check_set("query", batch.query_x, batch.query_y, batch.query_mask)
    if support != query:
        raise ValueError(f"support_x holds {support} tasks and query_x {query}; a batch has one of each per task")
    first_x = tree_map(lambda leaf: leaf[0], batch.support_x)
    for name, target in (("support_y", batch.support_y), ("query_y", batch.query_y)):
        _check_targets(name, target, learner, first_x, leading=2)


def check_support(support: Support, learner: MetaLearner) -> None:
    """Raise a ValueError unless the learner can adapt to this one task."""
    batched = tree_map(lambda leaf: None if leaf is None else leaf[None], support)
    _check_set("support", batched.x, batched.y, batched.mask)
    _check_targets("support_y", support.y, learner, support.x, leading=1)


def check_finite(result: TaskResult, inner_lr: float) -> None:
    """Raise a FloatingPointError that tells in which task and inner step a loss stopped being finite."""
    losses = torch.cat([result.support_losses, result.loss[:, None]], dim=1)
    broken = ~torch.isfinite(losses)
    if not broken.any():
        return
    task, step = (int(i) for i in broken.nonzero()[0])
    steps = losses.shape[1] - 1
    where = (
        f"before inner step {step + 1} of {steps}" if step < steps else f"on the query set after {steps} inner steps"
    )
    cure = "check its inputs and targets" if step == 0 else "lower the rate, or take fewer inner steps"
    raise FloatingPointError(
        f"task {task} of the batch has a loss of {float(losses[task, step])} {where} (inner_lr={inner_lr}): {cure}"
    )


def cannot_vectorize(error: RuntimeError) -> bool:
    """Whether a per-task function failed because it cannot be vectorized, rather than for a fault of its own."""
    text = str(error).lower()
    return "vmap" in text or "batching rule" in text


def _check_set(name: str, x: Any, y: Any, mask: Tensor | None) -> int:
    shapes = [tuple(leaf.shape) for leaf in tree_leaves((x, y))]
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
    if needs_same_shape(learner.loss_fn):
        expected = learner.output_shape(inputs)
        if target.shape[leading:] != expected:
            raise ValueError(
                f"{name} has shape {tuple(target.shape[leading:])} per example and the model's output "
                f"{tuple(expected)}: "
                f"{learner.loss_fn} would broadcast them; reshape one (for scalars often {name}[..., None])"
            )
    elif takes_class_labels(learner.loss_fn):
        _check_labels(
            name, target, learner.output_shape(inputs), leading, getattr(learner.loss_fn, "ignore_index", -100)
        )


def _check_labels(name: str, labels: Tensor, output: torch.Size, leading: int, ignore_index: int) -> None:
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
    real = labels[labels != ignore_index]
    if real.numel() and (int(real.min()) < 0 or int(real.max()) >= output[0]):
        worst = int(real.max()) if int(real.max()) >= output[0] else int(real.min())
        raise ValueError(
            f"{name} holds the label {worst} and the model has {output[0]} outputs, for labels 0 to {output[0] - 1}: "
            "give the model as many outputs as the episodes have ways"
        )
