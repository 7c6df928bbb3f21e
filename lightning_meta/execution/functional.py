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
        places = list(module.named_modules(remove_duplicate=False))
        in_two_places = len({id(part) for _, part in places}) < len(places)
        given = _with_tied(module, parameters) if in_two_places else dict(parameters)
        return functional_call(module, given, arguments, tie_weights=not in_two_places)  # type: ignore[arg-type]


def _with_tied(module: nn.Module, parameters: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Add the other names of tied tensors, but only one name for each part of the module.

    `functional_call` would add all names, and so replace the tensors of a part that is in two places twice; what it
    then puts back the second time are the given tensors, which would stay in the module.
    """
    names: dict[Tensor, list[str]] = {}
    for prefix, part in module.named_modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                names.setdefault(tensor, []).append(f"{prefix}.{name}" if prefix else name)
    same = {name: tied for tied in names.values() for name in tied}
    return {name: value for given, value in parameters.items() for name in same.get(given, [given])}
