"""A scalar that carries a ready-made gradient through ``backward``.

Every algorithm computes its meta-gradient itself, per task, outside autograd. Lightning's automatic optimization needs
a loss to call ``backward`` on; this is that loss. Because it is an ordinary autograd node, gradient clipping,
accumulation, loss scaling and DDP's hooks work as usual.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def surrogate_loss(
    value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor], scale: float = 1.0
) -> Tensor:
    """Return a scalar equal to ``value`` whose backward gives ``scale * gradients`` to ``parameters``.

    Also multiplied by the incoming gradient, so that accumulation and loss scaling stay exact.
    """
    return _Surrogate.apply(value.detach(), gradients, scale, *parameters)


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], scale: float, *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *torch._foreach_mul(ctx.gradients, grad_output * ctx.scale)
