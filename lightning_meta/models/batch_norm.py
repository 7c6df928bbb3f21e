"""Batch normalization by the batch's statistics, with derivatives of every order that take few operations.

The second derivative that torch derives takes some forty operations a layer, and twice the time of the layer itself.
Here the normalized input x̂ and its inverse standard deviation r are values of their own, so that the first derivative,

    s (g − mean(g) − x̂ mean(g x̂)),      s = r · weight,

is one fused operation of g, x̂ and s, and its own derivatives are made of the same operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalize every channel by its mean and variance in the batch, then scale and shift.

    As `torch.nn.functional.batch_norm` with ``training=True`` and without running statistics.

    Args:
        x: ``[examples, channels, ...]``.
        weight: ``[channels]``.
        bias: ``[channels]``.
        eps: Added to the variance.

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
        normal, _, inverse_std = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)
        return torch.addcmul(_spread(bias, x), normal, _spread(weight, x)), normal, inverse_std

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], *output[1:])

    @staticmethod
    def backward(
        ctx: Any, slope: Tensor | None, normal_slope: Tensor | None, inverse_std_slope: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        weight, normal, inverse_std = ctx.saved_tensors
        x_slope, weight_slope, bias_slope = None, None, None
        if slope is not None:
            x_slope, weight_slope, bias_slope = _PullBack.apply(slope, normal, inverse_std * weight)
        if normal_slope is not None:
            x_slope = _sum(x_slope, _PullBack.apply(normal_slope, normal, inverse_std)[0])
        if inverse_std_slope is not None:  # dr/dx = −r² x̂ / count
            factor = inverse_std_slope * inverse_std.square() / -_count(normal)
            x_slope = _plus_product(x_slope, _spread(factor, normal), normal)
        return x_slope, weight_slope, bias_slope, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = _fold(inputs[:3], in_dims, info.batch_size)
        return _unfold(_BatchNorm.apply(*folded, inputs[3]), info.batch_size)


class _PullBack(torch.autograd.Function):
    """``(g, x̂, s) -> (s (g − mean(g) − x̂ mean(g x̂)), Σ g x̂, Σ g)``: the slopes of x, weight and bias."""

    @staticmethod
    def forward(slope: Tensor, normal: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        mean, inverse_std = torch.zeros_like(scale), torch.ones_like(scale)  # x̂'s own
        return torch.ops.aten.native_batch_norm_backward(
            slope, normal, scale, None, None, mean, inverse_std, True, 0.0, [True, True, True]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(
        ctx: Any, x_cotangent: Tensor | None, weight_cotangent: Tensor | None, bias_cotangent: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        slope, normal, scale, on_normal, on_ones = ctx.saved_tensors
        slope_slope, normal_slope, scale_slope = None, None, None
        if x_cotangent is not None:
            # The operation is symmetric in its first argument.
            slope_slope, cotangent_on_normal, cotangent_on_ones = _PullBack.apply(x_cotangent, normal, scale)
            shrunk = scale / -_count(normal)
            normal_slope = _plus_product(
                _spread(shrunk * on_normal, normal) * x_cotangent, _spread(shrunk * cotangent_on_normal, normal), slope
            )
            along = (slope * x_cotangent).sum([0, *range(2, slope.dim())])
            scale_slope = along - (on_ones * cotangent_on_ones + on_normal * cotangent_on_normal) / _count(normal)
        if weight_cotangent is not None:
            spread = _spread(weight_cotangent, normal)
            slope_slope = _plus_product(slope_slope, spread, normal)
            normal_slope = _plus_product(normal_slope, spread, slope)
        if bias_cotangent is not None:
            slope_slope = _sum(slope_slope, _spread(bias_cotangent, normal).expand_as(slope))
        return slope_slope, normal_slope, scale_slope

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _unfold(_PullBack.apply(*_fold(inputs, in_dims, info.batch_size)), info.batch_size)


def _count(x: Tensor) -> int:
    """How many values a channel has."""
    return x.numel() // x.shape[1]


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """One value a channel, in a shape that multiplies ``[examples, channels, ...]``."""
    return values.view(-1, *[1] * (like.dim() - 2))


def _sum(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a * b if total is None else torch.addcmul(total, a, b)


def _fold(tensors: tuple[Tensor, ...], dims: tuple[int | None, ...], tasks: int) -> list[Tensor]:
    """Make the tasks' channels channels of one batch: different channels have nothing to do with each other."""
    folded = []
    for tensor, dim in zip(tensors, dims, strict=False):
        channels = 0 if tensor.dim() - (dim is not None) == 1 else 1
        if dim is None:
            shape = tensor.shape
            moved = tensor.unsqueeze(channels).expand(*shape[:channels], tasks, *shape[channels:])
        else:
            moved = tensor.movedim(dim, channels)
        folded.append(moved.flatten(channels, channels + 1))
    return folded


def _unfold(results: tuple[Tensor, ...], tasks: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    channels = tuple(0 if result.dim() == 1 else 1 for result in results)
    unfolded = tuple(result.unflatten(dim, (tasks, -1)) for result, dim in zip(results, channels, strict=True))
    return unfolded, channels
