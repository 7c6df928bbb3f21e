"""MAML's meta-gradient by a loop over tasks and steps, for models that are plain functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta import Episode

Function = Callable[[Mapping[str, Tensor], Any], Tensor]


def naive_meta_gradient(
    function: Function, model: nn.Module, batch: Episode, lr: float, steps: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean meta-loss and meta-gradient over tasks; the model gives its parameters alone."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    losses = []
    for i in range(batch.num_tasks):
        task, fast = batch.select(i), dict(parameters)
        for _ in range(steps):
            loss = F.cross_entropy(function(fast, task.support_x), task.support_y)
            slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {name: p - lr * slope for (name, p), slope in zip(fast.items(), slopes, strict=True)}
        losses.append(F.cross_entropy(function(fast, task.query_x), task.query_y))
    mean = torch.stack(losses).mean()
    return mean.detach(), dict(zip(parameters, torch.autograd.grad(mean, list(parameters.values())), strict=True))
