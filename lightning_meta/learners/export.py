"""Exporting an adapted model as a program of tensor operations, which runs without this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lightning_meta.execution.attention import differentiable_attention
from lightning_meta.execution.functional import exclusive

# A function of a pytree of tensors, and inputs ``[query, ...]``, to outputs ``[query, ...]``.
Predictor = Callable[[Any, Any], Tensor]


def export_predictor(predictor: Predictor, values: Any, example_x: Any, one_by_one: bool) -> ExportedProgram:
    """Export ``predictor(values, x)`` as a function of ``x`` for any number of queries.

    Args:
        predictor: The function, without tensors of its own.
        values: A pytree, whose tensors the program keeps copies of.
        example_x: Inputs ``[query, ...]``, for shapes and dtypes.
        one_by_one: Whether the program passes queries through the predictor one by one, each as a set of its own.

    Raises:
        ValueError: If the predictor cannot be traced for any number of queries.
    """
    if one_by_one:
        single = _Module(lambda values, x: predictor(values, tree_map(lambda leaf: leaf[None], x))[0], values)
        program = _exported(single, tree_map(lambda leaf: leaf[0], example_x), dynamic=False)
        return _exported(_OneByOne(program.module()), example_x, dynamic=True)
    return _exported(_Module(predictor, values), example_x, dynamic=True)


class _Module(nn.Module):
    """A predictor as a module, whose buffers are the tensors among its values."""

    def __init__(self, predictor: Predictor, values: Any) -> None:
        super().__init__()
        leaves, self._form = tree_flatten(values)
        self._predictor = predictor
        self._plain = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"value_{index}", leaf.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, x: Any) -> Tensor:
        buffers = dict(self.named_buffers())
        leaves = [buffers.get(f"value_{index}", leaf) for index, leaf in enumerate(self._plain)]
        return self._predictor(tree_unflatten(leaves, self._form), x)


class _OneByOne(nn.Module):
    """Applies a module of one query to each; a loop in the program, because vectorized sizes could not change."""

    def __init__(self, single: nn.Module) -> None:
        super().__init__()
        self.single = single

    def forward(self, x: Any) -> Tensor:
        from torch._higher_order_ops.map import map as mapped  # here, since it may move between versions of torch

        def call(one: Any) -> Tensor:
            return self.single(one)

        return mapped(call, x)  # type: ignore[arg-type]


def _exported(module: nn.Module, example_x: Any, dynamic: bool) -> ExportedProgram:
    shapes = None
    if dynamic:
        # Sizes of 1 would be taken for constants.
        example_x = tree_map(lambda leaf: leaf if len(leaf) > 1 else torch.cat([leaf, leaf]), example_x)
        query = Dim("query")
        shapes = (tree_map(lambda leaf: {0: query}, example_x),)
    try:
        # Alone, because tracing calls the model, with tensors that only the trace may see.
        with exclusive(), torch.no_grad(), differentiable_attention():
            program = torch.export.export(module, (example_x,), dynamic_shapes=shapes, strict=False)
    except RuntimeError as error:
        sizes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tree_leaves(example_x))
        raise ValueError(
            f"the adapted model cannot be exported for inputs such as {sizes}: its operations must not depend on "
            f"values of tensors or on the number of queries. The tracer says: {error}"
        ) from error
    return _without_unused(program)


def _without_unused(program: ExportedProgram) -> ExportedProgram:
    """Drop tensors that the program does not read, such as the parameters that adapted ones replace."""
    signature, nodes = program.graph_signature, {node.name: node for node in program.graph.nodes}
    kept = []
    for spec in signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind == InputKind.BUFFER and not node.users:
            program.graph.erase_node(node)
            program.state_dict.pop(spec.target, None)
        else:
            kept.append(spec)
    signature.input_specs = kept
    program.graph_module.recompile()
    return program
