"""What a learner's per-task functions read besides their arguments, so that a recording is only used while it holds."""

from __future__ import annotations

import enum
import functools
import numbers
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_meta.learner import MetaLearner

_PLAIN = (
    type(None),
    numbers.Number,
    str,
    bytes,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.memory_format,
    type,
    types.BuiltinFunctionType,
)
_PLAINEST = frozenset({type(None), bool, int, float, str})  # found at once
_NOT_OWN = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = tuple(name for name in _NOT_OWN if name.endswith("_hooks"))

# What a subclass may override without a recording noticing, because recordings do not contain it.
_OUTSIDE = frozenset(dir(L.LightningModule)) | {
    "task_metrics",
    "after_batch",
    "query_samples",
    "training_phase",
    "draws",
}


class _UnknownError(Exception):
    """Raised where an object may change in ways that cannot be seen."""


class _Identity:
    """Compares by identity, and keeps what it compares."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def python_state(learner: MetaLearner) -> Hashable | None:
    """Return what must stay as it is for a recording of the learner's per-task functions to hold.

    Returns:
        A key that compares equal as long as nothing has changed: plain attributes of the learner, its loss and all
        modules, and the identity of functions, buffers and frozen parameters. None where that cannot be told: where a
        subclass from outside this library overrides a per-task function, a module has hooks, or holds objects of
        other kinds.
    """
    if _overrides(type(learner)):
        return None
    try:
        read = _read_by_library(type(learner))
        own = [(name, _state(value)) for name, value in vars(learner).items() if name in read]
        modules: list[Any] = []
        for name, child in learner._modules.items():
            cls: Any = type(child)
            if child is not None and (name in ("model", "loss_fn") or _of_library(cls)):
                _add_module(child, modules)
        return (learner.training_phase(), *own, *modules)
    except (_UnknownError, RecursionError):
        return None


@functools.cache
def _overrides(cls: type) -> bool:
    """Whether a class from elsewhere redefines what per-task functions of this library consist of."""
    library: set[str] = set()
    for c in reversed(cls.__mro__):
        if _in_library(c):
            library |= {name for name in vars(c) if name != "_abc_impl" and not name.startswith("__")} - _OUTSIDE
        elif library & vars(c).keys():
            return True
    return False


def _in_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "lightning_meta"


@functools.cache
def _of_library(cls: type) -> bool:
    return any(map(_in_library, cls.__mro__))


@functools.cache
def _read_by_library(cls: type) -> frozenset[str]:
    """The public attributes that this library's methods name, but for those of Lightning's own steps."""
    functions = [
        value
        for c in cls.__mro__
        if _in_library(c)
        for name, value in vars(c).items()
        if isinstance(value, types.FunctionType) and name not in _OUTSIDE
    ]
    return frozenset(name for function in functions for name in _names(function.__code__) if not name.startswith("_"))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _add_module(module: nn.Module, state: list[Any]) -> None:
    """Append what a module and its parts are like. Flat, because this runs in every step."""
    attributes = vars(module)
    if any(map(attributes.__getitem__, _HOOKS)):
        raise _UnknownError
    cls: Any = type(module)
    state.append(cls)
    for name, value in attributes.items():
        if name not in _NOT_OWN:
            state += (name, value if type(value) in _PLAINEST else _state(value))
    state += [_state(p) for p in attributes["_parameters"].values() if p is None or not p.requires_grad]
    state += map(_state, attributes["_buffers"].values())
    names = _class_names(cls)
    if names:
        state += _current(names)
    for part in attributes["_modules"].values():
        if part is not None:
            _add_module(part, state)
    state.append(None)  # its end


def _module_state(module: nn.Module) -> Hashable:
    state: list[Any] = []
    _add_module(module, state)
    return tuple(state)


def _state(value: Any) -> Hashable:
    if type(value) in _PLAINEST or isinstance(value, _PLAIN):
        return value
    if isinstance(value, nn.Parameter) and value.requires_grad:
        return _Identity(value)
    if isinstance(value, Tensor):
        if value.is_inference():  # whose changes are not counted
            raise _UnknownError
        return _Identity(value), value._version
    if isinstance(value, nn.Module):
        return _module_state(value)
    if isinstance(value, types.FunctionType):
        read = _globals_read((value,))
        return _Identity(value), *map(_state, (value.__defaults__, *_closure(value))), *_current(read)
    return type(value), *map(_state, _contents(value))


def _contents(value: Any) -> Iterable[Any]:
    if isinstance(value, tuple | list):
        return value
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    cls: Any = type(value)
    if _of_library(cls):
        return vars(value).items()
    raise _UnknownError


def _closure(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            raise _UnknownError from None


@functools.cache
def _class_names(cls: type) -> tuple[tuple[Mapping[str, Any], str], ...]:
    """Where a user's module reads attributes of its classes and global variables."""
    found: list[tuple[Mapping[str, Any], str]] = []
    for c in cls.__mro__:
        if c.__module__.partition(".")[0] not in ("torch", "lightning", "lightning_meta", "builtins"):
            functions = tuple(value for value in vars(c).values() if isinstance(value, types.FunctionType))
            found += [(vars(c), name) for name in vars(c) if not name.startswith("__")]
            found += _globals_read(functions)
    return tuple(found)


@functools.cache
def _globals_read(functions: tuple[types.FunctionType, ...]) -> tuple[tuple[Mapping[str, Any], str], ...]:
    return tuple((f.__globals__, name) for f in functions for name in _names(f.__code__) if name in f.__globals__)


def _current(names: Iterable[tuple[Mapping[str, Any], str]]) -> Iterator[Hashable]:
    """The values of variables, where they are plain; functions, modules and classes are taken to stay."""
    for namespace, name in names:
        value = namespace.get(name)
        if isinstance(value, (*_PLAIN, Tensor)):
            yield _state(value)
