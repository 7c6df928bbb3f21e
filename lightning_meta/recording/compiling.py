"""Compiled functions that go on uncompiled where the compiler fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn


class Compiled:
    """A function compiled by `torch.compile`.

    Where that fails, which takes many forms, it warns once and calls the plain function; a model at fault then raises
    by itself.

    Args:
        function: What to compile.
        plain: What computes the same without compiler.
        on_cpu: Whether the tensors are on the CPU.
    """

    def __init__(self, function: Callable[..., Any], plain: Callable[..., Any], on_cpu: bool) -> None:
        # On a CPU, calling small kernels from Python would take a tenth of the time.
        options: dict[str, Any] | None = {"cpp_wrapper": True} if on_cpu else None
        self._compiled = torch.compile(function, fullgraph=True, options=options)
        self._plain = plain
        self._failed = self._warned = False
        self.worked = False

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function, or the plain one."""
        if self._failed:
            return self._plain(*arguments)
        try:
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
