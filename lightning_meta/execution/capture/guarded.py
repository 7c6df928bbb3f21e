"""Functions that `torch.compile` traces, for learners outside the closed world: its guards compare what Python reads.

The guards, evaluated before every call, cover global variables, closures, containers, and attributes of objects,
modules and classes. What cannot be traced (a clock, random numbers from outside torch, hooks of some kinds) runs
untraced. The guards do not cover:

- ``os.getenv``, which is traced as a constant: therefore the environment is compared here before every call;
- a helper's cache (`functools.lru_cache`), which is traced through: values that it would keep are computed each time.
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
from lightning_meta.execution.capture.compiling import Compiled, RandomState, agree, compiled_trace
from lightning_meta.execution.capture.graph import Autocast, Recording


class Guarded:
    """A pure function that is traced again whenever its guards fail; ``plain`` computes the same, untraced.

    What was traced is compiled, or captured and replayed. Copies trace for themselves.
    """

    def __init__(self, function: Callable[..., Any], plain: Callable[..., Any], compiled: bool) -> None:
        self._function = function
        self._plain = plain
        self._compiled = compiled
        self._asked = "compile=True" if compiled else 'compile="record"'
        self._start()

    def __reduce__(self) -> tuple[Any, ...]:
        return Guarded, (self._function, self._plain, self._compiled)

    def __call__(self, *arguments: Any) -> Any:
        """Call what was traced if its guards hold."""
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
        self.recordings: list[Recording] = []
        self._traced = Compiled(self._compiler, self._plain, self._asked)

    def _compiler(self, *arguments: Any) -> Callable[..., Any]:
        function = self._function

        def call(*arguments: Any) -> Any:
            return function(*arguments)

        # Torch keeps traces, and counts them against a limit, by code object: each learner needs its own.
        call = types.FunctionType(call.__code__.replace(), globals(), "call", (), call.__closure__)
        return torch.compile(call, fullgraph=True, dynamic=False, backend=self._backend)

    def _backend(self, graph: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
        """Capture or compile what was traced, for tensors like these."""
        if self._compiled:
            return self._proven(compiled_trace(graph, examples), graph.forward)
        differentiates = torch.is_grad_enabled()  # as in the trace, which left out what has no effect without gradients

        def call(*tensors: Tensor) -> Any:
            with torch.set_grad_enabled(differentiates):
                return graph.forward(*tensors)

        with torch._guards.tracing(None):
            recording = Recording(call, tuple(map(_like, examples)), compiled=False)
        self.recordings.append(recording)
        autocast = Autocast.now(examples[0].device.type)

        def replay(*tensors: Tensor) -> Any:
            with autocast.off():
                return recording(list(tensors))

        return self._proven(replay, call)

    def _proven(self, fast: Callable[..., Any], traced: Callable[..., Any]) -> Callable[..., Any]:
        """Return the fast function or, if their first results differ, the traced operations themselves.

        The traced operations are compared instead of the function: called twice, it would change twice what it changes
        in Python. Compiled ones may draw other random numbers, with which they cannot be compared.
        """
        chosen: Callable[..., Any] | None = None

        def call(*tensors: Tensor) -> Any:
            nonlocal chosen
            if chosen is not None:
                return chosen(*tensors)
            drawn_from = RandomState(tensors[0].device)
            with drawn_from.again():
                expected = traced(*tensors)
                draws = drawn_from.moved()
            results = fast(*tensors)
            if agree([results], [expected]) or (draws and self._compiled):
                chosen = fast
                return results
            rank_zero_warn(f"{self._asked}: the traced step differs from its own operations, which are run instead.")
            chosen = traced
            return expected

        return call


def _like(example: Tensor) -> Tensor:
    """Return zeros of an example's shape and strides; examples have no values."""
    size, stride = tuple(map(int, example.shape)), tuple(map(int, example.stride()))
    return torch.empty_strided(size, stride, dtype=example.dtype, device=example.device).zero_()
