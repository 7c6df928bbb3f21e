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

import abc
import contextlib
import functools
import inspect
import operator
import sys
import types
import typing
import weakref
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
import typing_extensions
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lightning_meta.functional import exclusive

if TYPE_CHECKING:
    from lightning_meta.learner import MetaLearner

_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.Size}
)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = tuple(name for name in _MODULE_ATTRIBUTES if name.endswith("_hooks"))
_GLOBAL_HOOKS = tuple(
    vars(torch_module)[name]
    for name in vars(torch_module)
    if name.startswith("_global_") and name.endswith("_hooks") and "registration" not in name
)
_TORCH_FUNCTIONS = (F, torch, torch.special, torch._C._nn)

# Where trusted code lies: torch, Lightning, this library, and what their classes take from the standard library.
_TRUSTED_FOLDERS = (
    *(f"{Path(str(package.__file__)).parent}/" for package in (torch, L)),
    f"{Path(__file__).parents[1]}/",
    *(str(inspect.getsourcefile(module)) for module in (contextlib, functools, typing, typing_extensions)),
)
_MODULE_PACKAGES = ("torch.nn.", "lightning_meta.")
_LEARNER_PACKAGES = ("torch.nn.", "lightning.", "lightning_meta.")
_TRUSTED_BASES = (object, abc.ABC, typing.Generic)

# What a learner's subclass may define without changing what a recording contains.
_NOT_RECORDED = frozenset(dir(L.LightningModule)) | {"task_metrics", "after_batch", "adapt", "evaluate"}
_SUBCLASS_DUNDERS = frozenset(
    {"__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"}
    | {"__parameters__", "__orig_bases__", "__firstlineno__", "__static_attributes__", "__annotate_func__"}
)
# What may change in a class without changing what its code does; `training_phase` has what depends on the epoch.
_IGNORED_IN_CLASSES = frozenset({"_abc_impl", "current_epoch"})
# What per-task functions read of a learner's private attributes.
_PRIVATE = frozenset({"_local", "_dropped_buffers", "_frozen"})


class OpenWorldError(Exception):
    """Says which object may read what cannot be compared."""


class ReplacedError(OpenWorldError):
    """Says what of torch itself was replaced or switched, which the guards of `torch.compile` do not see either."""


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
        learner: The learner.
    """

    def __init__(self, learner: MetaLearner) -> None:
        self._learner = learner
        self._classes: dict[type, _Class] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies look at the classes anew."""
        return {"_learner": self._learner, "_classes": {}}

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
        _check_surroundings()
        learner = self._learner
        state: list[Any] = [learner.training_phase(), torch.get_default_dtype()]
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


class _Class(NamedTuple):
    """What a class was like when it was found to be trusted.

    Attributes:
        space: Its attributes.
        functions: Those of its functions whose code is compared, too: a reload may put other code into them.
        codes: Their code.
    """

    space: _Space
    functions: tuple[types.FunctionType, ...]
    codes: list[types.CodeType]


class _Space:
    """A class's or module's names, of which those that had a value must keep it."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._lasting = self._take()
        self._values = tuple(vars(owner).values())

    def changed(self) -> str | None:
        """Return the name of what was replaced, if anything was."""
        values = tuple(vars(self._owner).values())
        if values == self._values:  # fast, as equal objects are mostly the same
            return None
        now = self._take()
        for name in self._lasting.keys() | (now.keys() if isinstance(self._owner, type) else set()):
            if name not in now or name not in self._lasting or now[name] is not self._lasting[name]:
                return name
        self._values = values
        return None

    def _take(self) -> dict[str, Any]:
        own = vars(self._owner)
        if isinstance(self._owner, type):
            kept = {n: v for n, v in own.items() if not n.startswith("__") or callable(v)}
        else:
            kept = {n: v for n, v in own.items() if isinstance(v, types.ModuleType) or _is_function(v)}
        return {name: value for name, value in kept.items() if name not in _IGNORED_IN_CLASSES}


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


_SURROUNDINGS: dict[str, Any] = {"torch.nn.functional": F, "torch.Tensor": Tensor, "torch": torch}
_SPACES: dict[str, _Space] = {}  # of these, and of the modules that define trusted classes


class _Look:
    """One look at a learner; flat, because it is taken in every step.

    Args:
        classes: The classes found to be trusted.
        state: What the key is made of.
    """

    def __init__(self, classes: dict[type, _Class], state: list[Any]) -> None:
        self._classes = classes
        self._state = state
        self._checked: set[type] = set()
        self._spaces: set[str] = set()
        self._modules: dict[int, int] = {}

    def check_learner(self, learner: MetaLearner) -> frozenset[str]:
        """Check the learner's classes; return the names of the attributes that its per-task functions may read."""
        cls: Any = type(learner)
        read, defined = _names(cls)
        for base in cls.__mro__[:-1]:
            if base in _TRUSTED_BASES or base.__module__.startswith(_LEARNER_PACKAGES):
                self._check_code(base)
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
        if cls not in self._checked:
            self._check_class(cls, path, _MODULE_PACKAGES)
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
        if _is_torch_function(value):
            return _Identity(value)
        if kind.__module__.startswith("lightning_meta."):
            self._check_class(kind, path, ("lightning_meta.",))
            return kind, *[(name, self.at(own, path)) for name, own in vars(value).items()]
        raise OpenWorldError(f"{path} is {_described(value)}")

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

    def _check_class(self, cls: Any, path: str, packages: tuple[str, ...]) -> None:
        """Check a class and its bases."""
        for base in cls.__mro__[:-1]:
            if base not in _TRUSTED_BASES and not base.__module__.startswith(packages):
                raise OpenWorldError(f"{path} is of the class {cls.__module__}.{cls.__qualname__}")
            self._check_code(base)

    def _check_code(self, cls: type) -> None:
        """Check that a class and its code are those of a trusted package, and as when first seen."""
        if cls in self._checked:
            return
        known = self._classes.get(cls)
        if known is None:
            known = self._classes[cls] = _trusted(cls)
        changed = known.space.changed()
        if changed is not None or list(map(_code_of, known.functions)) != known.codes:
            raise OpenWorldError(f"{cls.__qualname__}{f'.{changed}' if changed else ''} was replaced")
        if cls.__module__ not in self._spaces:
            self._spaces.add(cls.__module__)
            _check_space(cls.__module__, sys.modules[cls.__module__])
        self._checked.add(cls)


_code_of = operator.attrgetter("__code__")


def _trusted(cls: type) -> _Class:
    """Check that a class and its code are those of a trusted package."""
    _check_place(cls)
    for name, value in vars(cls).items():
        if name not in _IGNORED_IN_CLASSES and not all(map(_is_trusted_code, _functions_in(value))):
            raise OpenWorldError(f"{cls.__qualname__}.{name} was replaced")
    own = cls.__module__.startswith("lightning_meta.")
    values = vars(cls).items()
    functions = tuple(f for name, value in values if own or name == "forward" for f in _functions_in(value))
    return _Class(_Space(cls), functions, [function.__code__ for function in functions])


def _check_space(name: str, owner: Any) -> None:
    """Check that no function of a namespace was replaced since it was first seen, or in torch's before."""
    if name not in _SPACES:
        if owner in (F, Tensor):
            for value in vars(owner).values():
                if not all(map(_is_trusted_code, _functions_in(value))):
                    raise OpenWorldError(f"a function of {name} was replaced by {_described(value)}")
        _SPACES[name] = _Space(owner)
    changed = _SPACES[name].changed()
    if changed is not None:
        raise OpenWorldError(f"{name}.{changed} was replaced")


def _check_surroundings() -> None:
    """Check what changes every module's and function's meaning."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise ReplacedError("a torch function mode or dispatch mode is active")
    if any(_GLOBAL_HOOKS):
        raise ReplacedError("hooks on all modules are active")
    if torch.is_anomaly_enabled():
        raise ReplacedError("anomaly detection is active")
    for name, owner in _SURROUNDINGS.items():
        try:
            _check_space(name, owner)
        except OpenWorldError as error:
            raise ReplacedError(str(error)) from None


def _check_place(cls: type) -> None:
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not cls:
        raise OpenWorldError(f"{cls.__qualname__} is not the class of that name in {cls.__module__}")


def _is_torch_function(value: Any) -> bool:
    name = getattr(value, "__name__", None)
    known = isinstance(name, str) and any(vars(space).get(name) is value for space in _TORCH_FUNCTIONS)
    return known and not isinstance(value, type) and all(map(_is_trusted_code, _functions_in(value)))


def _described(value: Any) -> str:
    if isinstance(value, type | types.FunctionType):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__module__}.{value.__qualname__}"
    return f"an object of the class {type(value).__module__}.{type(value).__qualname__}"


def _is_trusted_code(function: types.FunctionType) -> bool:
    """Whether a function, and those that it wraps, are written in a trusted place."""
    if not function.__code__.co_filename.startswith(_TRUSTED_FOLDERS):
        return False
    inside = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    return all(_is_trusted_code(other) for value in inside for other in _functions_in(value) if other is not function)


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (the look-up is what may fail)
    except ValueError:
        return True
    return False


def _functions_in(value: Any) -> Iterator[types.FunctionType]:
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from _functions_in(value.__func__)
    elif isinstance(value, property):
        for accessor in (value.fget, value.fset, value.fdel):
            yield from _functions_in(accessor)
    elif isinstance(value, functools.partial | functools.partialmethod):
        yield from _functions_in(value.func)


def _names(cls: type) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that this library's per-task functions name, and the names that its learners define.

    Names that begin with an underscore are this library's own.
    """
    names = _NAMES.get(cls)
    if names is None:
        own = [vars(base) for base in cls.__mro__ if base.__module__.startswith("lightning_meta.")]
        defined = frozenset().union(*own) - _NOT_RECORDED
        functions = [value for space in own for name, value in space.items() if name in defined]
        code = [function.__code__ for value in functions for function in _functions_in(value)]
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
