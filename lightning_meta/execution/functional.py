"""Modules as pure functions of their parameters, for several threads at once.

`torch.func.functional_call` puts the parameters into the module itself during the call. If two threads did so at once,
they would compute with each other's parameters, and could leave them there. So one thread calls at a time; everything
else, derivatives included, runs in parallel.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_lock = threading.RLock()  # reentrant, as a module may call another learner
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined] # its holder did not fork


@contextmanager
def exclusive() -> Iterator[None]:
    """A block in which no other thread calls a module with other parameters, or reads its own."""
    if torch.compiler.is_compiling():  # in one thread, and locks cannot be traced
        yield
        return
    with _lock:
        yield


def call_with(module: nn.Module, parameters: Mapping[str, Tensor | None], *arguments: Any) -> Any:
    """Call a module as a pure function of parameters and buffers by name; those left out are its own."""
    with exclusive():
        return functional_call(module, dict(parameters), arguments)  # type: ignore[arg-type]
