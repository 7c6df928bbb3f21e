"""A captured function: the tensor operations of one call, with Python, autograd and vectorization resolved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_meta.episodes.trees import flatten, unflatten
from lightning_meta.execution.capture.compiling import compiled_graph
from lightning_meta.execution.capture.simplify import draws_random_numbers, simplify

# Traced in about fifteen seconds; a recording keeps about a quarter of them.
MOST_OPERATIONS = 60_000

# While one function is traced, torch's own way to call modules is changed in all threads.
_tracing = threading.Lock()


class Autocast(NamedTuple):
    """The mixed precision in force, none if there is no dtype; recordings contain its conversions."""

    device_type: str
    dtype: torch.dtype | None

    @classmethod
    def now(cls, device_type: str) -> Autocast:
        """Return what is in force for a type of device."""
        enabled = torch.is_autocast_enabled(device_type)
        return cls(device_type, torch.get_autocast_dtype(device_type) if enabled else None)

    def off(self) -> AbstractContextManager[Any]:
        """A context without it, in which to replay recordings."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, enabled=False)


class Recording:
    """The operations that a function computed, to be replayed on other values of the same shapes.

    A function that branches on the result of an operation cannot be captured.

    Args:
        function: A pure function of pytrees of tensors and None.
        arguments: Arguments of the shapes with which it will be called.
        compiled: Whether to compile the operations; then there may be any number of them.

    Attributes:
        draws: Whether the operations draw random numbers.
        operations: Their number.

    Raises:
        Exception: Of any kind, if the function cannot be captured.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], compiled: bool) -> None:
        leaves: list[Any] = []
        form = flatten(arguments, leaves)
        tensors = [leaf for leaf in leaves if leaf is not None]

        def flat(*tensors: Tensor) -> list[Any]:
            rest = iter(tensors)
            filled = [leaf if leaf is None else next(rest) for leaf in leaves]
            results: list[Any] = []
            with nullcontext() if compiled else _Limit():
                self._form = flatten(function(*unflatten(form, iter(filled))), results)
            return results

        with torch.no_grad(), _tracing:
            graph = make_fx(flat, tracing_mode=_tracing_mode(tensors), _allow_non_fake_inputs=True)(*tensors)
        torch.clear_autocast_cache()
        simplify(graph)
        self.draws = draws_random_numbers(graph)
        self.operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        self._graph = graph
        # `forward`, because a module's own call looks for hooks.
        self._run: Callable[..., Any] = compiled_graph(graph) if compiled else graph.forward

    def __call__(self, tensors: list[Tensor]) -> Any:
        """Replay the operations; autocast must be off.

        Args:
            tensors: The arguments' leaves that are not None.
        """
        with torch.no_grad():
            leaves = self._run(*tensors)
        return unflatten(self._form, iter(leaves))


class _Limit(TorchDispatchMode):
    """Ends a trace that takes too long."""

    _operations = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._operations += 1
        if self._operations > MOST_OPERATIONS:
            raise RuntimeError(f"a training step takes more than {MOST_OPERATIONS:,} operations")
        return func(*args, **(kwargs or {}))


def _tracing_mode(tensors: list[Tensor]) -> Literal["real", "fake"]:
    """Trace without arithmetic, except in low precision, where torch's rules for types differ from its kernels'."""
    low = any(t.is_floating_point() and t.dtype.itemsize < 4 for t in tensors)
    return "real" if low or torch.is_autocast_enabled(tensors[0].device.type) else "fake"
