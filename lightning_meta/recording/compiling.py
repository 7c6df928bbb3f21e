"""Compiled functions that go on uncompiled where the compiler fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._inductor
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves


class Compiled:
    """A function that is compiled at its first call.

    Where that fails, which takes many forms, it warns once and calls the plain function; a model at fault then raises
    by itself.

    Args:
        compiler: Makes the compiled function, given arguments.
        plain: What computes the same without compiler.
    """

    def __init__(self, compiler: Callable[..., Callable[..., Any]], plain: Callable[..., Any]) -> None:
        self._compiler = compiler
        self._compiled: Callable[..., Any] | None = None
        self._plain = plain
        self._failed = self._warned = False
        self.worked = False

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function, or the plain one."""
        if self._failed:
            return self._plain(*arguments)
        try:
            if self._compiled is None:
                self._compiled = self._compiler(*arguments)
            results = self._compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            results = self._plain(*arguments)
            if not self._warned:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                rank_zero_warn(f"compile=True: the step cannot be compiled and runs as it is; the reason: {reason}")
            self._warned = True
            self._failed = not self.worked  # else batches of many shapes may have met the compiler's limit
            return results
        self.worked = True
        return results


def compiled_graph(graph: GraphModule) -> Compiled:
    """Return a recorded graph, compiled for the shapes that it was recorded with and without a check of them."""

    def compiler(*tensors: Tensor) -> Callable[..., Any]:
        return torch._inductor.compile(graph, list(tensors), options=_options(tensors))

    return Compiled(compiler, graph.forward)


def compiled_function(function: Callable[..., Any], plain: Callable[..., Any]) -> Compiled:
    """Return a function of pytrees of tensors, compiled anew for each kind of them."""

    def compiler(*arguments: Any) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, options=_options(arguments))

    return Compiled(compiler, plain)


def _options(arguments: Any) -> dict[str, Any] | None:
    on_cpu = all(leaf.device.type == "cpu" for leaf in tree_leaves(arguments) if leaf is not None)
    # On a CPU, calling small kernels from Python would take a tenth of the time.
    return {"cpp_wrapper": True} if on_cpu else None
