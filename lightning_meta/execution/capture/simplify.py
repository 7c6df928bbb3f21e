"""Fewer operations for the same numbers: recorded graphs are mostly changes of shape, one on top of the other."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten

# What gives the same memory another shape from its start on. `_unsafe_view` does so, whatever its signature says.
_SHAPE_CHANGES = frozenset(
    {
        _aten._unsafe_view.default,
        _aten.alias.default,
        _aten.detach.default,
        _aten.expand.default,
        _aten.permute.default,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.t.default,
        _aten.transpose.int,
        _aten.unsqueeze.default,
        _aten.view.default,
    }
)


def simplify(graph_module: GraphModule) -> None:
    """Drop what has no use, and make of each chain of shape changes one, or none; in place.

    The results stay the same to the last bit.
    """
    graph = graph_module.graph
    if not any(torch.Tag.inplace_view in _tags(node) for node in graph.nodes):
        _merge_shape_changes(graph_module)
    graph.eliminate_dead_code(is_impure_node=_must_stay)
    graph_module.recompile()


def draws_random_numbers(graph_module: GraphModule) -> bool:
    """Whether a recorded graph calls a random number generator."""
    return any(torch.Tag.nondeterministic_seeded in _tags(node) for node in graph_module.graph.nodes)


def _merge_shape_changes(graph_module: GraphModule) -> None:
    graph = graph_module.graph
    sources: dict[Node, Node] = {}
    merged: dict[tuple[Node, torch.Size, tuple[int, ...]], Node] = {}
    for node in graph.nodes:
        if node.target not in _SHAPE_CHANGES:
            continue
        argument = node.args[0]
        source = sources.get(argument, argument)
        if _is_view(source):
            sources[node] = source
            continue
        value, memory = node.meta["val"], source.meta["val"]
        if value.shape == memory.shape and value.stride() == memory.stride():
            replacement = source
        else:
            form = (source, value.shape, value.stride())
            if form not in merged:
                with graph.inserting_before(node):
                    merged[form] = graph.call_function(
                        _aten.as_strided.default, (source, list(value.shape), list(value.stride()))
                    )
                merged[form].meta = dict(node.meta)
                sources[merged[form]] = source
            replacement = merged[form]
        node.replace_all_uses_with(replacement)


def _is_view(node: Any) -> bool:
    """Whether a value may lie inside another's memory, where compilers count `as_strided` from the other's start."""
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    op = node.target
    return isinstance(op, torch._ops.OpOverload) and any(result.alias_info for result in op._schema.returns)


def _must_stay(node: Node) -> bool:
    # Without a draw that nothing uses, the following draws would be others.
    return node.is_impure() or torch.Tag.nondeterministic_seeded in _tags(node)


def _tags(node: Node) -> list[torch.Tag]:
    return node.target.tags if isinstance(node.target, torch._ops.OpOverload) else []
