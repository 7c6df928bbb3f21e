"""Which code a captured step may depend on: that of torch and this library, as it was when first seen."""

import abc
import contextlib
import functools
import inspect
import operator
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import typing_extensions
from torch import Tensor
from torch.nn.modules import module as torch_module

_GLOBAL_HOOKS = tuple(
    hooks
    for name, hooks in vars(torch_module).items()
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

# These may change in a class without a change of what its code does; `training_phase` covers what depends on the epoch.
# Hugging Face's transformers adds the last to `nn.Module`, and alone calls it.
_IGNORED_IN_CLASSES = frozenset({"_abc_impl", "current_epoch", "smart_apply"})
# What `dataclasses` generates, in no file.
_GENERATED = frozenset(
    {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__", "__match_args__"}
)
_SURROUNDINGS: dict[str, Any] = {"torch.nn.functional": F, "torch.Tensor": Tensor, "torch": torch}
_EMPTY_CELL = types.CellType()
_code_of = operator.attrgetter("__code__")


class OpenWorldError(Exception):
    """Names an object that may read values that cannot be compared."""


class ReplacedError(OpenWorldError):
    """Names what of torch itself was replaced or switched, which the guards of `torch.compile` do not see either."""


class Names:
    """The names in a class or module that must keep their values.

    In a class these are all except dunder names without a function; in a module, those of functions and modules. The
    code of the given functions must stay, too: a reload may put other code into them.
    """

    def __init__(self, owner: Any, functions: Sequence[types.FunctionType] = ()) -> None:
        self._owner = owner
        self._kept = self._take()
        self._values = tuple(vars(owner).values())
        self._functions = functions
        self._codes = list(map(_code_of, functions))

    def check(self, path: str) -> None:
        """Raise an OpenWorldError if anything was replaced."""
        values = tuple(vars(self._owner).values())
        if values != self._values:  # fast, as equal objects are mostly the same
            now = self._take()
            for name in self._kept.keys() | (now.keys() if isinstance(self._owner, type) else set()):
                if now.get(name, self) is not self._kept.get(name, self):
                    raise OpenWorldError(f"{path}.{name} was replaced")
            self._values = values
        if list(map(_code_of, self._functions)) != self._codes:
            raise OpenWorldError(f"{path} was replaced")

    def _take(self) -> dict[str, Any]:
        own = vars(self._owner).items()
        if isinstance(self._owner, type):
            return {n: v for n, v in own if (not n.startswith("__") or callable(v)) and n not in _IGNORED_IN_CLASSES}
        return {n: v for n, v in own if isinstance(v, types.ModuleType) or (callable(v) and not isinstance(v, type))}


_SPACES: dict[str, Names] = {}  # of torch's namespaces, and of the modules that define trusted classes


class Trust:
    """One check that classes are of trusted packages, and as when first seen in an earlier one."""

    def __init__(self, classes: dict[type, Names]) -> None:
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
        known.check(cls.__qualname__)
        if cls.__module__ not in self._spaces:
            self._spaces.add(cls.__module__)
            _check_space(cls.__module__, sys.modules[cls.__module__])
        self.checked.add(cls)


def _trusted(cls: type) -> Names:
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not cls:
        raise OpenWorldError(f"{cls.__qualname__} is not the class of that name in {cls.__module__}")
    ignored = _IGNORED_IN_CLASSES | (_GENERATED if "__dataclass_fields__" in vars(cls) else frozenset())
    compared: list[types.FunctionType] = []
    for name, value in vars(cls).items():
        functions = [*functions_in(value)]
        if name not in ignored and not all(map(_is_trusted_code, functions)):
            raise OpenWorldError(f"{cls.__qualname__}.{name} was replaced")
        compared += functions if name == "forward" or cls.__module__.startswith("lightning_meta.") else []
    return Names(cls, compared)


def _check_space(name: str, owner: Any) -> None:
    """Check that no function of a namespace was replaced since it was first seen; in torch's, also before."""
    if name not in _SPACES:
        for value in vars(owner).values() if owner in (F, Tensor) else ():
            if not all(map(_is_trusted_code, functions_in(value))):
                raise OpenWorldError(f"a function of {name} was replaced by {described(value)}")
        _SPACES[name] = Names(owner)
    _SPACES[name].check(name)


def check_surroundings() -> None:
    """Check what changes the meaning of every module and function."""
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


def is_torch_function(value: Any) -> bool:
    """Whether a value is one of torch's functions, as torch defines it."""
    name = getattr(value, "__name__", None)
    known = isinstance(name, str) and any(vars(space).get(name) is value for space in _TORCH_FUNCTIONS)
    return known and not isinstance(value, type) and all(map(_is_trusted_code, functions_in(value)))


def described(value: Any) -> str:
    """Describe a class, function or object for a message."""
    if isinstance(value, type | types.FunctionType):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__module__}.{value.__qualname__}"
    return f"an object of the class {type(value).__module__}.{type(value).__qualname__}"


def _is_trusted_code(function: types.FunctionType) -> bool:
    """Whether a function, and those that it wraps, are written in a trusted place."""
    if not function.__code__.co_filename.startswith(_TRUSTED_FOLDERS):
        return False
    inside = [cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY_CELL]
    return all(_is_trusted_code(other) for value in inside for other in functions_in(value) if other is not function)


def functions_in(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions behind a class's attribute: a method, property or partial function."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from functions_in(value.__func__)
    elif isinstance(value, property):
        for accessor in (value.fget, value.fset, value.fdel):
            yield from functions_in(accessor)
    elif isinstance(value, functools.partial | functools.partialmethod):
        yield from functions_in(value.func)
