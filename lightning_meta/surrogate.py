"""A scalar that carries a ready-made gradient through ``backward``.

Every algorithm computes its meta-gradient itself, per task, outside autograd. Lightning's automatic
optimization wants a loss to call ``backward`` on; this is that loss. Because it is an ordinary autograd node,
gradient clipping, accumulation, loss scaling and DDP's hooks see nothing unusual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def surrogate_loss(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar equal to ``value`` whose backward gives ``gradients`` to ``parameters``.

    Args:
        value: The meta-loss, a scalar.
        parameters: The tensors that ``backward`` reaches.
        gradients: One gradient per parameter, of the parameter's shape; scaled by the incoming gradient, so
            that accumulation and loss scaling stay exact.
    """
    return _Surrogate.apply(value.detach(), len(parameters), *parameters, *gradients)


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *parameters_then_gradients: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*parameters_then_gradients[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [grad_output * gradient for gradient in ctx.saved_tensors]
        return (None, None, *gradients, *[None] * ctx.count)
