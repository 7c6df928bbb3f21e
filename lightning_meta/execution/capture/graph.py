"""A recorded function: the tensor operations of one call, with Python, autograd and vectorization resolved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_meta.episodes.trees import flatten, unflatten
from lightning_meta.execution.capture.compiling import compiled_graph
from lightning_meta.execution.capture.simplify import draws_random_numbers, simplify

# Traced in about fifteen seconds; a recording keeps about a quarter of them.
MOST_OPERATIONS = 60_000

# While one function is traced, torch has its own way to call modules in all threads.
_tracing = threading.Lock()


class Recording:
    """What a function computed, to be repeated for other values of the same shapes.

    What cannot be recorded is an operation whose result Python branches on.

    Args:
        function: A pure function of pytrees of tensors and None.
        arguments: Arguments such as it will be called with.
        compiled: Whether to compile the recorded operations; then there may be any number of them.

    Attributes:
        draws: Whether they draw random numbers.
        operations: How many there are.

    Raises:
        Exception: Whatever says that the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], compiled: bool) -> None:
        leaves: list[Any] = []
        form = flatten(arguments, leaves)
        tensors = [leaf for leaf in leaves if leaf is not None]

        def flat(*tensors: Tensor) -> list[Any]:
            rest = iter(tensors)
            filled = [leaf if leaf is None else next(rest) for leaf in leaves]
            results: list[Any] = []
            with _Counting(None if compiled else MOST_OPERATIONS):
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
        self._run: Callable[..., Any] = graph.forward
        if compiled:
            self._run = compiled_graph(graph)

    def __call__(self, tensors: list[Tensor]) -> Any:
        """Repeat the operations. Autocast must be off: they contain its conversions.

        Args:
            tensors: The arguments' leaves that are not None.
        """
        with torch.no_grad():
            leaves = self._run(*tensors)
        return unflatten(self._form, iter(leaves))


class _Counting(TorchDispatchMode):
    """Ends a trace that takes too long."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self._left = most

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise RuntimeError(f"a training step takes more than {MOST_OPERATIONS:,} operations")
        return func(*args, **(kwargs or {}))


def _tracing_mode(tensors: list[Tensor]) -> Literal["real", "fake"]:
    """Without arithmetic, except in low precision, where torch's rules for results' types are not its kernels'."""
    low = any(t.is_floating_point() and t.dtype.itemsize < 4 for t in tensors)
    return "real" if low or torch.is_autocast_enabled(tensors[0].device.type) else "fake"
