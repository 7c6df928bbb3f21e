"""A captured function: the tensor operations of one call, with Python, autograd and vectorization resolved."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_meta.episodes.trees import flatten, unflatten
from lightning_meta.execution.capture.compiling import compiled_graph
from lightning_meta.execution.functional import exclusive

# Traced in about fifteen seconds; a recording keeps about a quarter of them.
MOST_OPERATIONS = 60_000

_aten = torch.ops.aten

# What gives the same memory another shape from its start on. `_unsafe_view` does so, whatever its signature says.
_SHAPE_CHANGES = frozenset(
    (
        *(_aten._unsafe_view.default, _aten.alias.default, _aten.detach.default, _aten.expand.default, _aten.t.default),
        *(_aten.permute.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.transpose.int),
        *(_aten.unsqueeze.default, _aten.view.default),
    )
)


class Autocast(NamedTuple):
    """The mixed precision in force, none if there is no dtype; recordings contain its conversions."""

    device_type: str
    dtype: torch.dtype | None

    @classmethod
    def now(cls, device_type: str) -> Self:
        """Return what is in force for a type of device."""
        enabled = torch.is_autocast_enabled(device_type)
        return cls(device_type, torch.get_autocast_dtype(device_type) if enabled else None)

    def off(self) -> AbstractContextManager[Any]:
        """A context without it, in which to replay recordings."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, enabled=False)


class Recording:
    """The operations that a function computed, to be replayed on other values of the same shapes.

    Args:
        function: A pure function of pytrees of tensors and None.
        arguments: Arguments of the shapes with which it will be called.
        compiled: Whether to compile the operations; then there may be any number of them.

    Raises:
        Exception: Of any kind, if the function cannot be captured, as when it branches on the result of an operation.
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

        # While one function is traced, torch's own way to call modules is changed in all threads.
        with torch.no_grad(), exclusive():
            graph = make_fx(flat, tracing_mode=_tracing_mode(tensors), _allow_non_fake_inputs=True)(*tensors)
        torch.clear_autocast_cache()
        simplify(graph)
        self.draws = any(map(_draws, graph.graph.nodes))  # random numbers
        self.operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        self._graph = graph
        # `forward`, because a module's own call looks for hooks.
        self._run: Callable[..., Any] = compiled_graph(graph) if compiled else graph.forward

    def __call__(self, tensors: list[Tensor]) -> Any:
        """Replay the operations on the arguments' leaves that are not None; autocast must be off."""
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


def simplify(graph_module: GraphModule) -> None:
    """Remove operations without use, and replace each chain of shape changes, of which there are many, by one or none.

    In place; the results stay bit-identical.
    """
    graph = graph_module.graph
    if not any(torch.Tag.inplace_view in _tags(node) for node in graph.nodes):
        _merge_shape_changes(graph_module)
    # A draw without use stays: without it, the following draws would be others.
    graph.eliminate_dead_code(is_impure_node=lambda node: node.is_impure() or _draws(node))
    graph_module.recompile()


def _merge_shape_changes(graph_module: GraphModule) -> None:
    graph = graph_module.graph
    sources: dict[Node, Node] = {}
    merged: dict[tuple[Node, torch.Size, tuple[int, ...]], Node] = {}
    for node in graph.nodes:
        if node.target not in _SHAPE_CHANGES:
            continue
        source = sources.get(node.args[0], node.args[0])
        if _is_view(source):
            sources[node] = source
            continue
        value, memory = node.meta["val"], source.meta["val"]
        replacement = source
        if value.shape != memory.shape or value.stride() != memory.stride():
            form = (source, value.shape, value.stride())
            if form not in merged:
                with graph.inserting_before(node):
                    arguments = source, list(value.shape), list(value.stride())
                    merged[form] = graph.call_function(_aten.as_strided.default, arguments)
                merged[form].meta = dict(node.meta)
                sources[merged[form]] = source
            replacement = merged[form]
        node.replace_all_uses_with(replacement)


def _is_view(node: Any) -> bool:
    """Whether a value may lie inside another's memory, where compilers count `as_strided` from the other's start."""
    op = node.target
    if op is operator.getitem:
        return _is_view(node.args[0])
    return isinstance(op, torch._ops.OpOverload) and any(result.alias_info for result in op._schema.returns)


def _draws(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in _tags(node)


def _tags(node: Node) -> list[torch.Tag]:
    return node.target.tags if isinstance(node.target, torch._ops.OpOverload) else []
