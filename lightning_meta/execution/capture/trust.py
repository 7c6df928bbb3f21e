"""Which code a captured step may rest on: that of torch and this library, as it was when first seen."""

from __future__ import annotations

import abc
import contextlib
import functools
import inspect
import operator
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
import typing_extensions
from torch import Tensor
from torch.nn.modules import module as torch_module

_GLOBAL_HOOKS = tuple(
    vars(torch_module)[name]
    for name in vars(torch_module)
    if name.startswith("_global_") and name.endswith("_hooks") and "registration" not in name
)
_TORCH_FUNCTIONS = (F, torch, torch.special, torch._C._nn)

# Where trusted code lies: torch, Lightning, this library, and what their classes take from the standard library.
_TRUSTED_FOLDERS = (
    *(f"{Path(str(package.__file__)).parent}/" for package in (torch, L)),
    f"{Path(__file__).parents[2]}/",
    *(str(inspect.getsourcefile(module)) for module in (contextlib, functools, typing, typing_extensions)),
)
TRUSTED_BASES = (object, abc.ABC, typing.Generic)

# What may change in a class without changing what its code does; `training_phase` has what depends on the epoch.
_IGNORED_IN_CLASSES = frozenset({"_abc_impl", "current_epoch"})
# What `dataclasses` writes, in no file.
_GENERATED = frozenset(
    {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__", "__match_args__"}
)


class OpenWorldError(Exception):
    """Says which object may read what cannot be compared."""


class ReplacedError(OpenWorldError):
    """Says what of torch itself was replaced or switched, which the guards of `torch.compile` do not see either."""


class Trust:
    """Classes that were found to be of trusted packages and as when first seen; for one look at everything.

    Args:
        classes: What earlier looks found.
    """

    def __init__(self, classes: dict[type, TrustedClass]) -> None:
        self._classes = classes
        self.checked: set[type] = set()
        self._spaces: set[str] = set()

    def check_class(self, cls: Any, path: str, packages: tuple[str, ...]) -> None:
        """Check a class and its bases."""
        for base in cls.__mro__[:-1]:
            if base not in TRUSTED_BASES and not base.__module__.startswith(packages):
                raise OpenWorldError(f"{path} is of the class {cls.__module__}.{cls.__qualname__}")
            self.check_code(base)

    def check_code(self, cls: type) -> None:
        """Check that a class and its code are those of a trusted package, and as when first seen."""
        if cls in self.checked:
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
        self.checked.add(cls)


class TrustedClass(NamedTuple):
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


_code_of = operator.attrgetter("__code__")


def _trusted(cls: type) -> TrustedClass:
    """Check that a class and its code are those of a trusted package."""
    _check_place(cls)
    ignored = _IGNORED_IN_CLASSES | (_GENERATED if "__dataclass_fields__" in vars(cls) else frozenset())
    for name, value in vars(cls).items():
        if name not in ignored and not all(map(_is_trusted_code, functions_in(value))):
            raise OpenWorldError(f"{cls.__qualname__}.{name} was replaced")
    own = cls.__module__.startswith("lightning_meta.")
    values = vars(cls).items()
    functions = tuple(f for name, value in values if own or name == "forward" for f in functions_in(value))
    return TrustedClass(_Space(cls), functions, [function.__code__ for function in functions])


def _check_space(name: str, owner: Any) -> None:
    """Check that no function of a namespace was replaced since it was first seen, or in torch's before."""
    if name not in _SPACES:
        if owner in (F, Tensor):
            for value in vars(owner).values():
                if not all(map(_is_trusted_code, functions_in(value))):
                    raise OpenWorldError(f"a function of {name} was replaced by {described(value)}")
        _SPACES[name] = _Space(owner)
    changed = _SPACES[name].changed()
    if changed is not None:
        raise OpenWorldError(f"{name}.{changed} was replaced")


def check_surroundings() -> None:
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


def is_torch_function(value: Any) -> bool:
    """Whether a value is one of torch's functions, as torch defines it."""
    name = getattr(value, "__name__", None)
    known = isinstance(name, str) and any(vars(space).get(name) is value for space in _TORCH_FUNCTIONS)
    return known and not isinstance(value, type) and all(map(_is_trusted_code, functions_in(value)))


def described(value: Any) -> str:
    """A class, function or object in the words of a message."""
    if isinstance(value, type | types.FunctionType):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__module__}.{value.__qualname__}"
    return f"an object of the class {type(value).__module__}.{type(value).__qualname__}"


def _is_trusted_code(function: types.FunctionType) -> bool:
    """Whether a function, and those that it wraps, are written in a trusted place."""
    if not function.__code__.co_filename.startswith(_TRUSTED_FOLDERS):
        return False
    inside = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    return all(_is_trusted_code(other) for value in inside for other in functions_in(value) if other is not function)


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (the look-up is what may fail)
    except ValueError:
        return True
    return False


def functions_in(value: Any) -> Iterator[types.FunctionType]:
    """The functions behind a class's attribute: methods, properties, partial functions."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from functions_in(value.__func__)
    elif isinstance(value, property):
        for accessor in (value.fget, value.fset, value.fdel):
            yield from functions_in(accessor)
    elif isinstance(value, functools.partial | functools.partialmethod):
        yield from functions_in(value.func)
