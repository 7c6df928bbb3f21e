"""Everything that a captured training step depends on, for learners made of torch's and this library's code alone.

A capture holds as long as everything that its function reads stays as it was. What arbitrary Python reads cannot be
listed: values in containers, class attributes, properties, helper functions, the environment, a clock. So the world is
closed: every module, loss function and update rule must be of a class of ``torch.nn`` or of this library, whose code
reads only its arguments, its own attributes and those of its parts. These are compared in every step. A single other
object opens the world, and nothing is captured.

A replaced function is noticed if it is an attribute of these classes, of `torch`, `torch.Tensor` or
`torch.nn.functional`, or a global name of a module that defines such a class; elsewhere in torch and this library it is
not.
"""

import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_meta.execution.capture import trust
from lightning_meta.execution.capture.trust import OpenWorldError, described
from lightning_meta.execution.functional import exclusive

_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.Size}
)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = tuple(name for name in _MODULE_ATTRIBUTES if name.endswith("_hooks"))
_MODULE_PACKAGES = ("torch.nn.", "lightning_meta.")
_LEARNER_PACKAGES = ("torch.nn.", "lightning.", "lightning_meta.")

# What a learner's subclass may define without a change of what is captured.
_NOT_CAPTURED = frozenset(dir(L.LightningModule)) | frozenset(
    ("task_metrics", "after_batch", "adapt", "evaluate", "adaptation", "output_shape", "prepare_support")
)
_SUBCLASS_DUNDERS = frozenset(
    {"__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"}
    | {"__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__", "__annotate_func__"}
)
# What per-task functions read of a learner's private attributes.
_PRIVATE = frozenset({"_local", "_dropped_buffers", "_frozen"})
_attributes_of = functools.lru_cache(lambda cls: frozenset(dir(cls)))


class ClosedWorld:
    """Everything that a learner's per-task functions read besides their arguments.

    Args:
        learner: The learner, as a module whose attributes and classes are looked at.
        phase: Returns what its per-task functions depend on that changes with the trainer's progress.
    """

    def __init__(self, learner: nn.Module, phase: Callable[[], Hashable]) -> None:
        self._learner = learner
        self._phase = phase
        self._classes: dict[type, trust.Names] = {}
        self._names: dict[type, tuple[frozenset[str], frozenset[str]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_classes": {}, "_names": {}}

    def state(self) -> Hashable:
        """Return a key that compares equal as long as nothing has changed.

        It holds plain attributes of the learner, its loss and all modules, and the identity, version and memory of
        buffers and frozen parameters.

        Raises:
            OpenWorldError: If an object is of another class, has hooks, or holds such an object.
        """
        try:
            with exclusive():  # no other thread has put other parameters or hooks into the modules
                return self._state()
        except RecursionError:
            raise OpenWorldError("an attribute holds itself") from None

    def _state(self) -> Hashable:
        trust.check_surroundings()
        state: list[Any] = [self._phase(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()]
        look = _Look(self._classes, state)
        cls = type(self._learner)
        read, defined = self._names.get(cls) or self._names.setdefault(cls, _names(cls))
        look.check_learner(self._learner, read, defined)
        attributes = vars(self._learner)
        for name in attributes:
            if name in read:
                state += (name, look.at(attributes[name], f"its attribute {name}"))
        for name, child in attributes["_modules"].items():
            if child is not None and name in read:
                look.add_module(child, name)
        return tuple(state)


class _Look:
    """One look at a learner, which extends the key; in every step, so the key is flat."""

    def __init__(self, classes: dict[type, trust.Names], state: list[Any]) -> None:
        self._trust = trust.Trust(classes)
        self._state = state
        self._modules: dict[int, int] = {}

    def check_learner(self, learner: nn.Module, read: frozenset[str], defined: frozenset[str]) -> None:
        """Check that nothing from elsewhere defines what per-task functions read, or this library's learners define."""
        for base in type(learner).__mro__[:-1]:
            if base in trust.TRUSTED_BASES or base.__module__.startswith(_LEARNER_PACKAGES):
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

    def add_module(self, module: nn.Module, path: str) -> None:
        """Append the state of a module and its parts."""
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
        """Return the state of a value, with the ``id`` of what the key also holds: no other object can get that id."""
        kind: Any = type(value)
        if kind in _PLAIN or isinstance(value, np.generic):
            return kind, value
        if kind is Tensor or kind is nn.Parameter:
            if value.numel() > 1:
                return self._of_tensor(value, path)
            # Torch makes a number of it, which the capture would keep.
            if value.device.type != "cpu":
                raise OpenWorldError(f"{path} is a tensor of one number on a device, which is slow to compare")
            return id(value), value, value.dtype, repr(value.tolist())
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
        if trust.is_torch_function(value):
            return id(value), value
        if kind.__module__.startswith("lightning_meta."):
            self._trust.check_class(kind, path, ("lightning_meta.",))
            return kind, *[(name, self.at(own, path)) for name, own in vars(value).items()]
        raise OpenWorldError(f"{path} is {described(value)}")

    def _of_tensor(self, value: Tensor | None, path: str) -> Hashable:
        """Return the state of a tensor whose values each replay reads."""
        if value is None:
            return None
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
            raise OpenWorldError(f"{path} holds a {type(value).__qualname__} of layout {value.layout}")
        if value.requires_grad:  # trained, so that its version counts steps
            return id(value), value, value.data_ptr()
        if value.is_inference():
            raise OpenWorldError(f"{path} holds an inference tensor, whose changes are not counted")
        return id(value), value, value._version, value.data_ptr()


def _names(cls: type) -> tuple[frozenset[str], frozenset[str]]:
    """Return the attributes that this library's per-task functions name, and the names that its learners define.

    Names that begin with an underscore are this library's own.
    """
    own = [vars(base) for base in cls.__mro__ if base.__module__.startswith("lightning_meta.")]
    defined = frozenset().union(*own) - _NOT_CAPTURED
    functions = [value for space in own for name, value in space.items() if name in defined]
    code = [function.__code__ for value in functions for function in trust.functions_in(value)]
    read = frozenset(name for each in code for name in _named_in(each) if not name.startswith("_")) | _PRIVATE
    return read, frozenset(name for name in defined if not name.startswith("__"))


def _named_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named_in(constant)
