"""Errors that name the task and inner step where adaptation diverged."""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_meta.episodes import Episode, TaskResult
from lightning_meta.episodes.trees import leaves_of

_LOWER = "lower the rate, or take fewer inner steps"


def check_finite(
    result: TaskResult,
    settings: Callable[[], str],
    parameters: Iterable[Tensor],
    gradients: Collection[Tensor] = (),
    batch: Episode | None = None,
) -> None:
    """Raise a FloatingPointError if a loss or gradient is not finite; it names the first such task and inner step.

    Args:
        result: The report of the tasks.
        settings: Returns the learner's rates for the message, such as " (inner_lr=0.1)".
        parameters: The learner's parameters.
        gradients: The meta-gradients.
        batch: The tasks; None: their data are known to be finite.
    """
    numbers = [part.flatten() for part in (result.loss, result.support_losses, *gradients)]
    if math.isfinite(torch.cat(numbers).sum()):
        return
    losses = torch.cat([result.support_losses, result.loss[:, None]], dim=1)
    broken = ~torch.isfinite(losses)
    if broken.any():
        task, step = (int(i) for i in broken.nonzero()[0])
        data_is_finite = batch is None or _data_is_finite(batch, task)
        raise FloatingPointError(_where_broken(losses, task, step, settings, parameters, data_is_finite))
    if not all(gradient.isfinite().all() for gradient in gradients):
        raise FloatingPointError(
            f"the meta-gradient is not finite, though all losses are{settings()}: lower the rate, take fewer "
            "inner steps, or train first-order"
        )


def with_infinite_losses(
    result: TaskResult, settings: Callable[[], str], parameters: Iterable[Tensor], batch: Episode
) -> TaskResult:
    """Return the report with an infinite loss for each task that diverged.

    Raises:
        FloatingPointError: If the loss of a task is not finite for another reason: its data are not, or the parameters.
    """
    losses = torch.cat([result.support_losses, result.loss[:, None]], dim=1)
    finite = torch.isfinite(losses)
    broken = ~finite.all(1)
    if not broken.any():
        return result
    parameters = list(parameters)
    are_finite = all(torch.isfinite(p).all() for p in parameters)
    for task in broken.nonzero()[:, 0].tolist():
        data_is_finite = _data_is_finite(batch, task)
        if not (are_finite and data_is_finite):
            step = int((~finite[task]).nonzero()[0])
            raise FloatingPointError(_where_broken(losses, task, step, settings, parameters, data_is_finite))
    return result._replace(loss=result.loss.masked_fill(broken, math.inf))


def check_adapted(state: Any, steps: int, settings: Callable[[], str]) -> None:
    """Raise a FloatingPointError if one task's adapted state is not finite."""
    numbers = [leaf for leaf in leaves_of(state) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not all(leaf.isfinite().all() for leaf in numbers):
        where = f" after {steps} inner steps" if steps else ""
        raise FloatingPointError(f"task 0 is not finite{where}{settings()}: {_LOWER}")


def _data_is_finite(batch: Episode, task: int) -> bool:
    sets = ((batch.support_x, batch.support_y, batch.support_mask), (batch.query_x, batch.query_y, batch.query_mask))
    for x, y, mask in sets:
        leaves = [leaf[task] if mask is None else leaf[task][mask[task]] for leaf in leaves_of((x, y))]
        if not all(leaf.isfinite().all() for leaf in leaves):
            return False
    return True


def _where_broken(
    losses: Tensor,
    task: int,
    step: int,
    settings: Callable[[], str],
    parameters: Iterable[Tensor],
    data_is_finite: bool,
) -> str:
    steps = losses.shape[1] - 1
    where = f"before inner step {step + 1} of {steps}" if step < steps else "on the query set"
    if 0 < steps == step:
        where += f" after {steps} inner steps"
    cure = "check its inputs and targets" if step == 0 or not data_is_finite else _LOWER
    if not all(torch.isfinite(p).all() for p in parameters):
        cure = "the learner's parameters are not finite themselves, go back to an earlier checkpoint"
    loss = float(losses[task, step])
    return f"task {task} of the batch has a loss of {loss} {where}{settings()}: {cure}"
