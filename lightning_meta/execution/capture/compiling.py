"""Compiled functions that continue uncompiled if the compiler fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

# Batches of many shapes, or a model that changes in every step, reach the compiler's limit each time.
_MOST_FAILURES = 3


class Compiled:
    """A function that is compiled at its first call.

    If that fails, with an error of any kind, it warns once and calls the plain function; an error that is the model's
    own is then raised there.

    Args:
        compiler: Makes the compiled function from arguments.
        plain: Computes the same without a compiler.
        asked: The user's argument, for the warning.
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
                reason = first_line(error)
                rank_zero_warn(f"{self._asked}: the step cannot be compiled and runs as it is; the reason: {reason}")
            return results
        self.worked = True
        return results


def compiled_graph(graph: GraphModule) -> Compiled:
    """Return a captured graph, compiled for the shapes of its capture, which it does not check."""

    def compiler(*tensors: Tensor) -> Callable[..., Any]:
        return torch._inductor.compile(graph, list(tensors), options=_options(tensors))

    return Compiled(compiler, graph.forward)


def compiled_trace(graph: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
    """Return what `torch.compile` traced, compiled; for use inside its backend."""
    from torch._inductor.compile_fx import compile_fx  # takes seconds to import

    kernels: Any = compile_fx(graph, list(examples), config_patches=_options(examples))
    return kernels


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class without one."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _options(arguments: Any) -> dict[str, Any] | None:
    on_cpu = all(leaf.device.type == "cpu" for leaf in tree_leaves(arguments) if leaf is not None)
    # On a CPU, calling small kernels from Python would take a tenth of the time.
    return {"cpp_wrapper": True} if on_cpu else None
