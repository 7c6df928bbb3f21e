"""What a recording of a learner's training step rests on, for learners made of torch's and this library's code alone.

A recording holds as long as everything that its function reads stays as it was. What arbitrary Python reads cannot be
found out by looking at it: values in containers, class attributes, properties, helper functions, the environment, a
clock. So the world is closed: every module, loss function and update rule must be of a class of ``torch.nn`` or of this
library, whose code reads its arguments, its own attributes and those of its parts, and nothing else. These are
compared in every step. One object from elsewhere opens the world, and nothing is recorded.

Replaced functions are seen where they are attributes of these classes, of `torch`, `torch.Tensor` or
`torch.nn.functional`, or global names of the modules that define the classes; elsewhere inside torch and this library
they are not.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_meta.execution.capture.trust import (
    TRUSTED_BASES,
    OpenWorldError,
    Trust,
    TrustedClass,
    check_surroundings,
    described,
    functions_in,
    is_torch_function,
)
from lightning_meta.execution.functional import exclusive

_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.Size}
)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = tuple(name for name in _MODULE_ATTRIBUTES if name.endswith("_hooks"))
_MODULE_PACKAGES = ("torch.nn.", "lightning_meta.")
_LEARNER_PACKAGES = ("torch.nn.", "lightning.", "lightning_meta.")

# What a learner's subclass may define without changing what a recording contains.
_NOT_RECORDED = frozenset(dir(L.LightningModule)) | {
    "task_metrics",
    "after_batch",
    "adapt",
    "evaluate",
    "adaptation",
    "output_shape",
    "prepare_support",
}
_SUBCLASS_DUNDERS = frozenset(
    {"__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"}
    | {"__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__", "__annotate_func__"}
)
# What per-task functions read of a learner's private attributes.
_PRIVATE = frozenset({"_local", "_dropped_buffers", "_frozen"})


class _Identity:
    """Compares by identity, and keeps what it compares."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class ClosedWorld:
    """Everything that a learner's per-task functions read besides their arguments.

    Args:
        learner: The learner, as a module whose attributes and classes are looked at.
        phase: Returns what its per-task functions depend on that changes with the trainer's progress.
    """

    def __init__(self, learner: nn.Module, phase: Callable[[], Hashable]) -> None:
        self._learner = learner
        self._phase = phase
        self._classes: dict[type, TrustedClass] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies look at the classes anew."""
        return {**self.__dict__, "_classes": {}}

    def state(self) -> Hashable:
        """Return a key that compares equal as long as nothing has changed.

        It holds plain attributes of the learner, its loss and all modules, and the identity, version and memory of
        buffers and frozen parameters.

        Raises:
            OpenWorldError: If an object is of a class from elsewhere, has hooks, or holds such an object.
        """
        try:
            with exclusive():  # no other thread has put other parameters or hooks into the modules
                return self._state()
        except RecursionError:
            raise OpenWorldError("an attribute holds itself") from None

    def _state(self) -> Hashable:
        check_surroundings()
        learner = self._learner
        state: list[Any] = [self._phase(), torch.get_default_dtype()]
        state.append(torch.are_deterministic_algorithms_enabled())
        look = _Look(self._classes, state)
        read = look.check_learner(learner)
        attributes = vars(learner)
        for name in attributes:
            if name in read:
                state += (name, look.at(attributes[name], f"its attribute {name}"))
        for name, child in attributes["_modules"].items():
            if child is not None and name in read:
                look.add_module(child, name)
        return tuple(state)


class _Look:
    """One look at a learner; flat, because it is taken in every step.

    Args:
        classes: The classes found to be trusted.
        state: What the key is made of.
    """

    def __init__(self, classes: dict[type, TrustedClass], state: list[Any]) -> None:
        self._trust = Trust(classes)
        self._state = state
        self._modules: dict[int, int] = {}

    def check_learner(self, learner: nn.Module) -> frozenset[str]:
        """Check the learner's classes; return the names of the attributes that its per-task functions may read."""
        cls: Any = type(learner)
        read, defined = _names(cls)
        for base in cls.__mro__[:-1]:
            if base in TRUSTED_BASES or base.__module__.startswith(_LEARNER_PACKAGES):
                self._trust.check_code(base)
                continue
            for name in vars(base):
                if name in _SUBCLASS_DUNDERS:
                    continue
                if name.startswith("__") or name in read or name in defined:
                    raise OpenWorldError(f"{base.__qualname__} defines {name}")
        own = vars(learner)
        for name in own.keys() & defined:
            if type(own[name]) not in _PLAIN:
                raise OpenWorldError(f"{name} is replaced on the learner itself")
        return read

    def add_module(self, module: nn.Module, path: str) -> None:
        """Append what a module and its parts are like."""
        state = self._state
        if id(module) in self._modules:
            state.append(self._modules[id(module)])
            return
        self._modules[id(module)] = len(self._modules)
        cls: Any = type(module)
        if cls not in self._trust.checked:
            self._trust.check_class(cls, path, _MODULE_PACKAGES)
        attributes = vars(module)
        if any(map(attributes.__getitem__, _HOOKS)):
            raise OpenWorldError(f"{path} has hooks")
        state += (cls, path)
        defined = _attributes_of(cls)
        own_private = cls.__module__.startswith("lightning_meta.")
        for name, value in attributes.items():
            if name in _MODULE_ATTRIBUTES or (own_private and name.startswith("_")):
                continue
            if name in defined:
                raise OpenWorldError(f"{path}.{name} replaces what its class defines")
            kind = type(value)
            state += (name, kind, value) if kind in _PLAIN else (name, self.at(value, f"{path}.{name}"))
        for name, p in attributes["_parameters"].items():
            state += (name, id(p) if p is not None and p.requires_grad else self._of_tensor(p, path))
        for name, buffer in attributes["_buffers"].items():
            state += (name, self._of_tensor(buffer, path))
        for name, part in attributes["_modules"].items():
            if part is not None:
                self.add_module(part, f"{path}.{name}")
        state.append(None)  # its end

    def at(self, value: Any, path: str) -> Hashable:
        """What a value is like."""
        kind: Any = type(value)
        if kind in _PLAIN or isinstance(value, np.generic):
            return kind, value
        if kind is Tensor or kind is nn.Parameter:
            if value.numel() > 1:
                return self._of_tensor(value, path)
            # Torch makes a number of it, which the recording would keep.
            if value.device.type != "cpu":
                raise OpenWorldError(f"{path} is a tensor of one number on a device, which is slow to compare")
            return _Identity(value), value.dtype, value.tolist()
        if kind in (tuple, list):
            return kind, *[self.at(item, path) for item in value]
        if kind in (set, frozenset):
            return kind, *[self.at(item, path) for item in sorted(value, key=repr)]
        if kind is dict:
            return kind, *[(self.at(k, path), self.at(v, path)) for k, v in value.items()]
        if kind is functools.partial:
            return kind, *[self.at(part, path) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, nn.Module):
            self.add_module(value, path)
            return None
        if is_torch_function(value):
            return _Identity(value)
        if kind.__module__.startswith("lightning_meta."):
            self._trust.check_class(kind, path, ("lightning_meta.",))
            return kind, *[(name, self.at(own, path)) for name, own in vars(value).items()]
        raise OpenWorldError(f"{path} is {described(value)}")

    def _of_tensor(self, value: Tensor | None, path: str) -> Hashable:
        """What a tensor is like whose numbers the recording reads anew each time."""
        if value is None:
            return None
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
            raise OpenWorldError(f"{path} holds a {type(value).__qualname__} of layout {value.layout}")
        if value.requires_grad:  # trained, so that its version counts steps
            return _Identity(value), value.data_ptr()
        if value.is_inference():
            raise OpenWorldError(f"{path} holds an inference tensor, whose changes are not counted")
        return _Identity(value), value._version, value.data_ptr()


def _names(cls: type) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that this library's per-task functions name, and the names that its learners define.

    Names that begin with an underscore are this library's own.
    """
    names = _NAMES.get(cls)
    if names is None:
        own = [vars(base) for base in cls.__mro__ if base.__module__.startswith("lightning_meta.")]
        defined = frozenset().union(*own) - _NOT_RECORDED
        functions = [value for space in own for name, value in space.items() if name in defined]
        code = [function.__code__ for value in functions for function in functions_in(value)]
        read = frozenset(name for each in code for name in _named_in(each) if not name.startswith("_")) | _PRIVATE
        names = _NAMES[cls] = read, frozenset(name for name in defined if not name.startswith("__"))
    return names


_NAMES: weakref.WeakKeyDictionary[type, tuple[frozenset[str], frozenset[str]]] = weakref.WeakKeyDictionary()


def _attributes_of(cls: type) -> frozenset[str]:
    names = _ATTRIBUTES.get(cls)
    if names is None:
        names = _ATTRIBUTES[cls] = frozenset(dir(cls))
    return names


_ATTRIBUTES: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()


def _named_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named_in(constant)
