"""Compiled functions that continue uncompiled if the compiler fails, and comparing results with the function's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

# Far above rounding, which compilers change, and far below what a missing operation would change.
_TOLERANCE = 1e-2

# Batches of many shapes, or a model that changes in every step, reach the compiler's limit each time.
_MOST_FAILURES = 3


@dataclass(eq=False)
class Compiled:
    """A function that is compiled at its first call.

    If that fails, with an error of any kind, it warns once and calls the plain function; an error that is the model's
    own is then raised there.
    """

    compiler: Callable[..., Callable[..., Any]]  # makes the compiled function from arguments
    plain: Callable[..., Any]  # computes the same without a compiler
    asked: str = "compile=True"  # the user's argument
    compiled: Callable[..., Any] | None = None
    failures: int = 0
    worked: bool = False

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function, or the plain one."""
        if self.failures >= (_MOST_FAILURES if self.worked else 1):
            return self.plain(*arguments)
        try:
            if self.compiled is None:
                self.compiled = self.compiler(*arguments)
            results = self.compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            results = self.plain(*arguments)
            self.failures += 1
            if self.failures == 1:
                reason = first_line(error)
                rank_zero_warn(f"{self.asked}: the step cannot be compiled and runs as it is; the reason: {reason}")
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


class RandomState:
    """The state of torch's random generators, to draw from it again."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._states = self._now()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from this state inside the block; after it the generators are as before."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    def moved(self) -> bool:
        """Whether random numbers were drawn since."""
        return not all(map(torch.equal, self._states, self._now()))

    def _now(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]


def agree(found: Any, expected: Any, slack: float = 1.0) -> bool:
    """Whether results are close, part by part; in a part, small tensors are compared on the scale of the largest."""
    for ours, theirs in zip(found, expected, strict=True):
        distance = size = 0.0
        for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
            if a is None:
                continue
            finite = b.isfinite()  # logits of absent classes can be -inf
            if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
                return False
            distance += float((a[finite].double() - b[finite].double()).norm())
            size += float(b[finite].double().norm())
        if not distance <= slack * _TOLERANCE * size:
            return False
    return True
