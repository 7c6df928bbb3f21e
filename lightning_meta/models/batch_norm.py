"""Batch normalization by the batch's statistics, with derivatives of every order that take few operations.

The second derivative that torch derives takes about forty operations per layer, and twice the time of the layer itself.
Here the normalized input x̂ and its inverse standard deviation r are outputs too, so that the first derivative,

    s (g − mean(g) − x̂ mean(g x̂)),      s = r · weight,

is one fused operation of g, x̂ and s, and its own derivatives consist of the same operation.
"""

from typing import Any

import torch
from torch import Tensor


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalize the channels of ``[examples, channels, ...]``, scale by ``weight [channels]``, and shift by ``bias``.

    As `torch.nn.functional.batch_norm` with ``training=True`` and without running statistics.

    Raises:
        ValueError: If a channel has one value only.
    """
    if _count(x) < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} has one value a channel: batch normalization needs more")
    return _BatchNorm.apply(x, weight, bias, eps)[0]


class _BatchNorm(torch.autograd.Function):
    """``(x, weight, bias, eps) -> (output, x̂, r)``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        normalized, _, inverse_std = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)
        return torch.addcmul(_wide(bias, x), normalized, _wide(weight, x)), normalized, inverse_std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], *output[1:])

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, normalized_grad: Tensor | None, inverse_std_grad: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        weight, normalized, inverse_std = ctx.saved_tensors
        x_grad, weight_grad, bias_grad = None, None, None
        if grad is not None:
            x_grad, weight_grad, bias_grad = _PullBack.apply(grad, normalized, inverse_std * weight)
        if normalized_grad is not None:
            x_grad = _sum(x_grad, _PullBack.apply(normalized_grad, normalized, inverse_std)[0])
        if inverse_std_grad is not None:  # dr/dx = −r² x̂ / count
            factor = inverse_std_grad * inverse_std.square() / -_count(normalized)
            x_grad = _plus_product(x_grad, _wide(factor, normalized), normalized)
        return x_grad, weight_grad, bias_grad, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _vectorized(_BatchNorm, inputs[:3], in_dims, info.batch_size, inputs[3])


class _PullBack(torch.autograd.Function):
    """``(g, x̂, s) -> (s (g − mean(g) − x̂ mean(g x̂)), Σ g x̂, Σ g)``: the gradients of x, weight and bias."""

    @staticmethod
    def forward(grad: Tensor, normalized: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        mean, inverse_std = torch.zeros_like(scale), torch.ones_like(scale)  # those of x̂
        return torch.ops.aten.native_batch_norm_backward(
            grad, normalized, scale, None, None, mean, inverse_std, True, 0.0, [True, True, True]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(
        ctx: Any, x_cotangent: Tensor | None, weight_cotangent: Tensor | None, bias_cotangent: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad, normalized, scale, weight_grad, bias_grad = ctx.saved_tensors
        grad_grad, normalized_grad, scale_grad = None, None, None
        if x_cotangent is not None:
            # The operation is symmetric in its first argument.
            grad_grad, cotangent_dot, cotangent_sum = _PullBack.apply(x_cotangent, normalized, scale)
            shrunk = scale / -_count(normalized)
            normalized_grad = _plus_product(
                _wide(shrunk * weight_grad, normalized) * x_cotangent, _wide(shrunk * cotangent_dot, normalized), grad
            )
            along = (grad * x_cotangent).sum([0, *range(2, grad.dim())])
            scale_grad = along - (bias_grad * cotangent_sum + weight_grad * cotangent_dot) / _count(normalized)
        if weight_cotangent is not None:
            wide = _wide(weight_cotangent, normalized)
            grad_grad = _plus_product(grad_grad, wide, normalized)
            normalized_grad = _plus_product(normalized_grad, wide, grad)
        if bias_cotangent is not None:
            grad_grad = _sum(grad_grad, _wide(bias_cotangent, normalized).expand_as(grad))
        return grad_grad, normalized_grad, scale_grad

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _vectorized(_PullBack, inputs, in_dims, info.batch_size)


def _count(x: Tensor) -> int:
    """The number of values of a channel."""
    return x.numel() // x.shape[1]


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``[channels]`` to multiply ``[examples, channels, ...]``."""
    return values.view(-1, *[1] * (like.dim() - 2))


def _sum(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a * b if total is None else torch.addcmul(total, a, b)


def _vectorized(
    function: Any, tensors: tuple[Tensor, ...], dims: tuple[int | None, ...], tasks: int, *rest: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Apply a function to all tasks, their channels as channels of one batch: channels are independent."""
    folded = []
    for tensor, dim in zip(tensors, dims, strict=False):
        channels = 0 if tensor.dim() - (dim is not None) == 1 else 1  # the dimension of the channels
        if dim is None:
            shape = tensor.shape
            moved = tensor.unsqueeze(channels).expand(*shape[:channels], tasks, *shape[channels:])
        else:
            moved = tensor.movedim(dim, channels)
        folded.append(moved.flatten(channels, channels + 1))  # [examples, tasks * channels, ...] or [tasks * channels]
    results = function.apply(*folded, *rest)
    out_dims = tuple(0 if result.dim() == 1 else 1 for result in results)
    return tuple(r.unflatten(dim, (tasks, -1)) for r, dim in zip(results, out_dims, strict=True)), out_dims
