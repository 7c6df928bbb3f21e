"""Functions that `torch.compile` traces, for what reads more than a closed world: its guards see what Python reads.

The guards, evaluated before every call, cover global variables, closures, containers, attributes of objects, modules
and classes. What they cannot trace (a clock, random numbers from outside torch, hooks of some kinds) is called as it
is. What they do not see:

- ``os.getenv``, which is traced as a constant: therefore the environment is compared before every call here;
- a helper's cache (`functools.lru_cache`): it is traced through, so that what it would have kept is computed anew.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.fx import GraphModule

from lightning_meta.execution.attention import differentiable_attention
from lightning_meta.execution.capture.autocast import autocast_now
from lightning_meta.execution.capture.compiling import Compiled, compiled_trace
from lightning_meta.execution.capture.graph import Recording
from lightning_meta.execution.capture.proof import RandomState, agree


class Guarded:
    """A function that is traced anew whenever its guards fail.

    Args:
        function: A pure function of pytrees of tensors, and of whatever Python it reads.
        plain: What computes the same, untraced.
        compiled: Whether to compile what was traced; else its tensor operations are repeated as they are.

    Attributes:
        recordings: What was recorded; nothing if compiled.
    """

    def __init__(self, function: Callable[..., Any], plain: Callable[..., Any], compiled: bool) -> None:
        self._function = function
        self._plain = plain
        self._compiled = compiled
        self._asked = "compile=True" if compiled else 'compile="record"'
        self.recordings: list[Recording] = []
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        """Copies trace anew."""
        return {"_function": self._function, "_plain": self._plain, "_compiled": self._compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_function"], state["_plain"], state["_compiled"])  # type: ignore[misc]

    def __call__(self, *arguments: Any) -> Any:
        """Call what was traced where its guards hold."""
        if dict(os.environ) != self._environment:
            self._start()
        with differentiable_attention():
            return self._traced(*arguments)

    @property
    def worked(self) -> bool:
        """Whether a call was traced so far."""
        return self._traced.worked

    def _start(self) -> None:
        self._environment = dict(os.environ)
        self.recordings = []
        self._traced = Compiled(self._compiler, self._plain, self._asked)

    def _compiler(self, *arguments: Any) -> Callable[..., Any]:
        function = self._function

        def call(*arguments: Any) -> Any:
            return function(*arguments)

        # What is traced is kept, and counted against a limit, by code object: one for each learner.
        call = types.FunctionType(call.__code__.replace(), globals(), "call", (), call.__closure__)
        return torch.compile(call, fullgraph=True, dynamic=False, backend=self._backend)

    def _backend(self, graph: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
        """Record or compile what was traced, for tensors like these.

        Its first results are compared with those of the traced operations. The function itself is not called for that:
        whatever it changes in Python would change twice.
        """
        if self._compiled:
            return _Proven(compiled_trace(graph, examples), graph.forward, self._asked, draws_alike=False)
        differentiates = torch.is_grad_enabled()  # as when it was traced, which left out what would have no effect

        def call(*tensors: Tensor) -> Any:
            with torch.set_grad_enabled(differentiates):
                return graph.forward(*tensors)

        with torch._guards.tracing(None):
            recording = Recording(call, tuple(map(_like, examples)), compiled=False)
        self.recordings.append(recording)
        autocast = autocast_now(examples[0].device.type)

        def repeat(*tensors: Tensor) -> Any:
            with autocast.off():
                return recording(list(tensors))

        return _Proven(repeat, call, self._asked, draws_alike=True)


class _Proven:
    """Computes what a traced graph does, by other means once their first results were found equal.

    Args:
        fast: The other means.
        traced: The graph's own operations.
        asked: The argument that asked for it.
        draws_alike: Whether random numbers are drawn in the same order.
    """

    def __init__(self, fast: Callable[..., Any], traced: Callable[..., Any], asked: str, draws_alike: bool) -> None:
        self._fast, self._traced, self._asked, self._draws_alike = fast, traced, asked, draws_alike
        self._call: Callable[..., Any] = self._first

    def __call__(self, *tensors: Tensor) -> Any:
        return self._call(*tensors)

    def _first(self, *tensors: Tensor) -> Any:
        drawn_from = RandomState(tensors[0].device)
        with drawn_from.again():
            expected = self._traced(*tensors)
            draws = drawn_from.moved()
        results = self._fast(*tensors)
        if agree([results], [expected]) or (draws and not self._draws_alike):
            self._call = self._fast
            return results
        rank_zero_warn(f"{self._asked}: the traced step differs from its own operations, which are run instead.")
        self._call = self._traced
        return expected


def _like(example: Tensor) -> Tensor:
    """A tensor of zeros in the same form; examples hold no numbers."""
    size, stride = tuple(map(int, example.shape)), tuple(map(int, example.stride()))
    return torch.empty_strided(size, stride, dtype=example.dtype, device=example.device).zero_()
