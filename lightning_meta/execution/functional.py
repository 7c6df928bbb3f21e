"""Modules as pure functions of their parameters, for several threads at once.

`torch.func.functional_call` puts other parameters into the module itself for the time of the call. Two threads that do
so at once compute with each other's parameters, and may leave them there. So one thread calls at a time; everything
else, derivatives included, goes on side by side.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class _Calls:
    """Which thread may change modules; reentrant, as a module may call another learner."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.lock = threading.RLock()


_calls = _Calls()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_calls.renew)  # the thread that held it is not in the forked process


@contextmanager
def exclusive() -> Iterator[None]:
    """A block in which no other thread calls a module with other parameters, or reads its own."""
    if torch.compiler.is_compiling():  # in one thread, and locks cannot be traced
        yield
        return
    with _calls.lock:
        yield


def call_with(module: nn.Module, parameters: Mapping[str, Tensor | None], *arguments: Any) -> Any:
    """Call a module as a pure function of its parameters and buffers; those not given are its own.

    Args:
        module: The module; it is left as it was.
        parameters: Parameters and buffers by name; a buffer of None is left out.
        *arguments: What the module is called with.
    """
    with exclusive():
        return functional_call(module, dict(parameters), arguments)  # type: ignore[arg-type]
