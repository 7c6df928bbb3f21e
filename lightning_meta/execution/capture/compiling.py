"""Compiled functions that go on uncompiled where the compiler fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

# Batches of many shapes, or a model that changes in every step, meet the compiler's limit each time.
_MOST_FAILURES = 3


class Compiled:
    """A function that is compiled at its first call.

    Where that fails, which takes many forms, it warns once and calls the plain function; a model at fault then raises
    by itself.

    Args:
        compiler: Makes the compiled function, given arguments.
        plain: What computes the same without compiler.
        asked: The argument that asked for it.
    """

    def __init__(
        self, compiler: Callable[..., Callable[..., Any]], plain: Callable[..., Any], asked: str = "compile=True"
    ) -> None:
        self._asked = asked
        self._compiler = compiler
        self._compiled: Callable[..., Any] | None = None
        self._plain = plain
        self._failures = 0
        self.worked = False

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function, or the plain one."""
        if self._failures >= (_MOST_FAILURES if self.worked else 1):
            return self._plain(*arguments)
        try:
            if self._compiled is None:
                self._compiled = self._compiler(*arguments)
            results = self._compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            results = self._plain(*arguments)
            self._failures += 1
            if self._failures == 1:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                rank_zero_warn(f"{self._asked}: the step cannot be compiled and runs as it is; the reason: {reason}")
            return results
        self.worked = True
        return results


def compiled_graph(graph: GraphModule) -> Compiled:
    """Return a recorded graph, compiled for the shapes that it was recorded with and without a check of them."""

    def compiler(*tensors: Tensor) -> Callable[..., Any]:
        return torch._inductor.compile(graph, list(tensors), options=_options(tensors))

    return Compiled(compiler, graph.forward)


def compiled_trace(graph: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
    """Return what `torch.compile` traced, compiled; for use inside a backend of its own."""
    from torch._inductor.compile_fx import compile_fx  # takes seconds to import

    kernels: Any = compile_fx(graph, list(examples), config_patches=_options(examples))
    return kernels


def _options(arguments: Any) -> dict[str, Any] | None:
    on_cpu = all(leaf.device.type == "cpu" for leaf in tree_leaves(arguments) if leaf is not None)
    # On a CPU, calling small kernels from Python would take a tenth of the time.
    return {"cpp_wrapper": True} if on_cpu else None
