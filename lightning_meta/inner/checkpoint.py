"""Gradient checkpointing under ``torch.func``, where `torch.utils.checkpoint` does not run.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016: K steps in pieces of √K keep the ends of √K pieces
and, in the backward pass, the inside of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


def checkpoint(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)`` and keep only the arguments for the first derivative; there is no second one.

    Args:
        function: A pure function from pytrees to a pytree of tensors, without closed-over tensors. Recomputation draws
            the same random numbers.
        *arguments: Pytrees of tensors and None.
    """
    leaves, spec = tree_flatten(arguments)
    present = [i for i, leaf in enumerate(leaves) if leaf is not None]
    result_spec: list[TreeSpec] = []

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled: list[Any] = [None] * len(leaves)
        for i, tensor in zip(present, tensors, strict=True):
            filled[i] = tensor
        results, found = tree_flatten(function(*tree_unflatten(filled, spec)))
        result_spec[:] = [found]
        return tuple(results)

    results = _Recomputed.apply(flat, *[leaves[i] for i in present])
    return tree_unflatten(list(results), result_spec[0])


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        # On the function, because torch.func copies every other argument.
        function.random_state = _random_state(tensors[0])  # type: ignore[attr-defined]
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.smooth_results = [i for i, result in enumerate(output) if result.is_floating_point()]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        tensors = list(ctx.saved_tensors)
        smooth = [i for i, tensor in enumerate(tensors) if tensor.is_floating_point()]

        def of_smooth(*values: Tensor) -> tuple[Tensor, ...]:
            filled = list(tensors)
            for i, value in zip(smooth, values, strict=True):
                filled[i] = value
            results = ctx.function(*filled)
            return tuple(results[i] for i in ctx.smooth_results)

        devices = [tensors[0].device] if tensors[0].device.type == "cuda" else []
        # Without no_grad, torch.func would keep the recomputed values for a second derivative.
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            _set_random_state(ctx.function.random_state, tensors[0])
            pull_back = vjp(of_smooth, *[tensors[i] for i in smooth])[1]
            found = pull_back(tuple(slopes[i] for i in ctx.smooth_results))
        gradients: list[Tensor | None] = [None] * len(tensors)
        for i, gradient in zip(smooth, found, strict=True):
            gradients[i] = gradient
        return (None, *gradients)


def _random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if like.device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], like: Tensor) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], like.device)
