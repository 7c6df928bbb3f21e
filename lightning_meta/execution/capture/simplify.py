"""Fewer operations for the same numbers: captured graphs consist mostly of changes of shape, in long chains."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten

# What gives the same memory another shape from its start on. `_unsafe_view` does so, whatever its signature says.
_SHAPE_CHANGES = frozenset(
    (
        *(_aten._unsafe_view.default, _aten.alias.default, _aten.detach.default, _aten.expand.default, _aten.t.default),
        *(_aten.permute.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.transpose.int),
        *(_aten.unsqueeze.default, _aten.view.default),
    )
)


def simplify(graph_module: GraphModule) -> None:
    """Remove operations without use, and replace each chain of shape changes by one or none; in place.

    The results stay bit-identical.
    """
    graph = graph_module.graph
    if not any(torch.Tag.inplace_view in _tags(node) for node in graph.nodes):
        _merge_shape_changes(graph_module)
    # A draw without use stays: without it, the following draws would be others.
    graph.eliminate_dead_code(is_impure_node=lambda node: node.is_impure() or _draws(node))
    graph_module.recompile()


def draws_random_numbers(graph_module: GraphModule) -> bool:
    """Whether a captured graph calls a random number generator."""
    return any(map(_draws, graph_module.graph.nodes))


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
