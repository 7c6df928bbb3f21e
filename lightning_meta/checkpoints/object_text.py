"""Objects as class paths with arguments: how a checkpoint keeps them, and how they are built again.

The form is the command line's, ``{"class_path": ..., "init_args": {...}}``; a torch container has its modules under
``"modules"``. A checkpoint may come from anyone, so nothing that it names is imported: it may name only loaded classes
of torch or this package, of the kind that the argument takes.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_leaves

from lightning_meta.checkpoints.content import shortened
from lightning_meta.inner.meta_gradients import MetaGradient
from lightning_meta.inner.update_rules import GradientTransform, UpdateRule

TRAINING_ALONE = ("optimizer", "lr_scheduler")
"""The arguments that only training needs."""

PARTS = (UpdateRule, GradientTransform, MetaGradient)
"""Bases of this library's objects that learners take as arguments."""

_TRUSTED = ("torch.nn.modules.", "torch.optim.", "lightning_meta.")
_PUBLIC = tuple(f"lightning_meta{package}" for package in ("", ".models", ".inner"))
_PLACES = ("torch.", "lightning_meta", "lightning.pytorch.cli")  # where their names, and aliases, are looked up
_FACTORIES = (Optimizer, LRScheduler)  # built when training starts, as their other arguments exist only then
_KINDS: dict[str, type] = {
    "model": nn.Module,
    "loss_fn": nn.Module,
    "encoder": nn.Module,
    "inner_optimizer": UpdateRule,
    "meta_gradient": MetaGradient,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
}
_PLAIN = (Real, str, type(None))
_CONTAINERS: dict[type, Callable[[Mapping[str, nn.Module]], nn.Module]] = {
    nn.Sequential: lambda modules: nn.Sequential(OrderedDict(modules)),
    nn.ModuleList: lambda modules: nn.ModuleList(modules.values()),
    nn.ModuleDict: lambda modules: nn.ModuleDict(modules),
}


class NotKeptError(Exception):
    """A value that a checkpoint cannot keep."""


def class_path(cls: Any) -> str:
    """Return where a class or function is defined."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_plain(value: Any) -> bool:
    """Whether a value is a number, text or None, or consists of such values."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(map(is_plain, value)))


def to_text(value: Any) -> Any:
    """Return the form in which a checkpoint keeps a value.

    Raises:
        NotKeptError: If an equal value could not be built from it.
    """
    if inspect.isfunction(value) and loss_named(class_path(value)) is value:
        return class_path(value)
    text = _to_text(value)
    if is_plain(value):
        return text
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # without memory or time for values
            kept = _same(value, build(resolve(text, "", (nn.Module, *PARTS, *_FACTORIES))))
    except Exception as error:  # constructors raise many kinds for arguments that do not fit together
        raise NotKeptError from error
    if not kept:
        raise NotKeptError
    return text


def _to_text(value: Any) -> Any:
    if is_plain(value):
        return _builtin(value)
    if isinstance(value, list | tuple):
        return [_to_text(item) for item in value]
    if isinstance(value, (nn.Module, *PARTS)):
        text: dict[str, Any] = {"class_path": class_path(type(value)), "init_args": _init_args(value)}
        if isinstance(value, nn.Module) and type(value) in _CONTAINERS:
            text["modules"] = {name: _to_text(module) for name, module in value.named_children()}
        return text
    if isinstance(value, type) and issubclass(value, _FACTORIES):
        return {"class_path": class_path(value), "init_args": {}}
    if isinstance(value, partial) and isinstance(value.func, type) and not value.args and is_plain(value.keywords):
        return {"class_path": class_path(value.func), "init_args": _builtin(value.keywords)}
    raise NotKeptError


def _builtin(value: Any) -> Any:
    """Return a plain value in Python's own types, the only ones that weights-only unpickling takes."""
    if isinstance(value, dict):
        return {_builtin(key): _builtin(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_builtin, value)) if isinstance(value, tuple) else list(map(_builtin, value))
    if value is None or isinstance(value, bool):
        return value
    return str.__str__(value) if isinstance(value, str) else int(value) if isinstance(value, Integral) else float(value)


def _init_args(value: Any) -> dict[str, Any]:
    """Return the constructor arguments that can be read from an object, most as attributes of the same names."""
    names = [name for name in inspect.signature(type(value).__init__).parameters if name not in ("self", "device")]
    found = {name: getattr(value, name) for name in names if hasattr(value, name)}
    if isinstance(value, PARTS):
        return {name: _to_text(part) for name, part in found.items()}
    # Of this package's modules, an argument that is a module is the attribute of its name.
    wrapped = {n: _to_text(part) for n, part in found.items() if isinstance(part, nn.Module) and _is_own(type(value))}
    found = wrapped | {name: _builtin(part) for name, part in found.items() if is_plain(part)}
    if type(value) is nn.TransformerEncoder:
        norm = None if value.norm is None else _to_text(value.norm)
        return found | {"encoder_layer": _to_text(value.layers[0]), "norm": norm}
    if type(value) is nn.TransformerEncoderLayer:
        return found | {
            "d_model": value.self_attn.embed_dim,
            "nhead": value.self_attn.num_heads,
            "dim_feedforward": value.linear1.out_features,
            "dropout": value.dropout.p,
            "activation": "gelu" if value.activation is F.gelu else "relu",
            "layer_norm_eps": value.norm1.eps,
            "batch_first": value.self_attn.batch_first,
            "bias": value.linear1.bias is not None,
        }
    return found


def _same(value: Any, again: Any) -> bool:
    """Whether what was built again is the same, except for values that a state dict holds."""
    if is_plain(value):
        return bool(value == again)
    if isinstance(value, list | tuple):
        return len(value) == len(again) and all(map(_same, value, again))
    if isinstance(value, type):
        return again.func is value
    if isinstance(value, partial):
        return (again.func, again.keywords) == (value.func, value.keywords)
    if type(again) is not type(value):
        return False
    if isinstance(value, nn.Module):
        modules = [m for _, m in value.named_modules(remove_duplicate=False)]
        if any(m._non_persistent_buffers_set for m in modules):  # a state dict does not hold them
            return False
        return has_structure(value, structure(again)) and _tensors_of(value) == _tensors_of(again)
    own, others = vars(value), vars(again)
    return own.keys() == others.keys() and all(_same(own[name], others[name]) for name in own)


def structure(model: nn.Module) -> list[tuple[str, type, dict[str, Any]]]:
    """Return all that a module consists of, hooks and patched methods included, except its tensors and its mode."""
    apart = ("training", "_modules", "_parameters", "_buffers", "_compiled_call_impl")
    return [
        (name, type(m), {key: copy.copy(value) for key, value in vars(m).items() if key not in apart})
        for name, m in model.named_modules(remove_duplicate=False)
    ]


def has_structure(model: nn.Module, expected: list[tuple[str, type, dict[str, Any]]]) -> bool:
    """Whether a model's `structure` is the one expected."""
    try:
        return structure(model) == expected
    except Exception:  # a later attribute cannot be copied or compared
        return False


def _tensors_of(model: nn.Module) -> tuple[Any, ...]:
    """Return the forms of a model's tensors, and which modules and tensors it shares.

    One in several places has one set of adapted values, so it must be shared after it is built again, too.
    """

    def first_places(objects: list[Any]) -> list[int]:
        first: dict[int, int] = {}
        return [first.setdefault(id(one), position) for position, one in enumerate(objects)]

    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {
        (path, kind, name): tensor
        for path, m in modules.items()
        for kind in ("_parameters", "_buffers")
        for name, tensor in vars(m)[kind].items()
    }
    forms = [None if t is None else (type(t), t.shape, t.dtype, t.requires_grad) for t in tensors.values()]
    return [*tensors], forms, first_places([*modules.values()]), first_places([*tensors.values()])


class Call(NamedTuple):
    """A class that may be built, with its arguments, or a container with its modules."""

    cls: type
    arguments: dict[str, Any]
    modules: dict[str, Any]


def kinds_of(name: str) -> tuple[type, ...]:
    """Return the classes from which an object derives that a learner's argument of this name takes."""
    return (_KINDS[name],) if name in _KINDS else (nn.Module, *PARTS)


def resolve(text: Any, name: str, kinds: tuple[type, ...], allow: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Find the classes in a stored argument; what is not allowed is neither imported nor looked up nor called.

    Args:
        text: The stored form: plain values, or class paths with arguments.
        name: The argument's name.
        kinds: Bases of the classes of torch or this package that it may name.
        allow: Other classes and functions that it may name, by their paths; None: to be imported.

    Returns:
        The same with a `Call` in the place of each class path, for `build`.

    Raises:
        ValueError: If a class path names something else, or the form holds what is neither plain nor a class path.
    """
    if isinstance(text, str) and name in _KINDS and name != "inner_optimizer":  # functions, from the command line
        if name == "loss_fn" and (function := loss_named(text)) is not None:
            return function
        if text not in allow:
            raise _refusal(name, text, kinds)
        return _import(text, name, allow)
    return _resolve(text, name, kinds, allow)


def build(resolved: Any) -> Any:
    """Build the objects that `resolve` found; optimizers and schedules become functions that build them."""
    if isinstance(resolved, Call):
        if resolved.cls in _CONTAINERS:
            return _CONTAINERS[resolved.cls](build(resolved.modules))
        arguments = build(resolved.arguments)
        return partial(resolved.cls, **arguments) if issubclass(resolved.cls, _FACTORIES) else resolved.cls(**arguments)
    if isinstance(resolved, list | tuple):
        return type(resolved)(map(build, resolved))
    if isinstance(resolved, dict):
        return {key: build(item) for key, item in resolved.items()}
    return resolved


def describe_the_same(text: Any, other: Any, name: str) -> bool:
    """Whether objects of torch or this package, built from two stored forms of an argument, are the same."""
    if not (isinstance(text, dict) and isinstance(other, dict)):
        return False
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return _same(*(build(resolve(one, name, kinds_of(name))) for one in (text, other)))
    except Exception:  # what is not known here, or constructors refuse
        return False


def number_of_weights(resolved: Any) -> int:
    """Count the values of the modules that `resolve` found, without memory; 0 if the caller allowed classes."""
    if not all(is_of_package(part) for part in tree_leaves(resolved) if isinstance(part, type)):
        return 0
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        modules = [m for m in tree_leaves(build(resolved)) if isinstance(m, nn.Module)]
    return sum(tensor.numel() for m in modules for tensor in (*m.parameters(), *m.buffers()))


def known_class(path: str) -> type | None:
    """Return the loaded class of torch or this package that a path names, if it names one; nothing is imported.

    A class of this package is also known by its name alone: earlier versions defined it in other files.
    """
    module, _, name = path.rpartition(".")
    places = [module] if module.startswith(_PLACES) and module in sys.modules else []
    places += [place for place in _PUBLIC if module.startswith("lightning_meta.") and place in sys.modules]
    found = next((vars(sys.modules[place])[name] for place in places if name in vars(sys.modules[place])), None)
    return found if isinstance(found, type) and is_of_package(found) else None


def is_of_package(cls: type) -> bool:
    """Whether a class is one of torch's or this package's."""
    return cls is ReduceLROnPlateau or cls.__module__.startswith(_TRUSTED)


def _is_own(cls: type) -> bool:
    return cls.__module__.startswith("lightning_meta.")


def loss_named(path: str) -> Callable[..., Any] | None:
    """Return the loss function of ``torch.nn.functional`` that a path names, if it names one."""
    module, _, name = path.rpartition(".")
    is_loss = module == F.__name__ and name.endswith(("_loss", "cross_entropy", "cross_entropy_with_logits", "kl_div"))
    function = vars(F).get(name) if is_loss and not name.startswith("_") else None
    return function if inspect.isfunction(function) else None


def _resolve(text: Any, name: str, kinds: tuple[type, ...], allow: Mapping[str, Any]) -> Any:
    if isinstance(text, list | tuple):
        items = [_resolve(item, name, kinds, allow) for item in text]
        return tuple(items) if isinstance(text, tuple) else items
    if isinstance(text, dict) and "class_path" in text:
        return _resolve_call(text, name, kinds, allow)
    if isinstance(text, dict):
        return {key: _resolve(item, name, kinds, allow) for key, item in text.items()}
    if not isinstance(text, _PLAIN):
        raise ValueError(f"{name} in the checkpoint holds a {type(text).__name__}, which is not taken: pass {name}=...")
    return text


def _resolve_call(text: dict[str, Any], name: str, kinds: tuple[type, ...], allow: Mapping[str, Any]) -> Call:
    path = text["class_path"]
    init_args, dict_kwargs, modules = (text.get(key) or {} for key in ("init_args", "dict_kwargs", "modules"))
    well_formed = isinstance(path, str) and text.keys() <= {"class_path", "init_args", "dict_kwargs", "modules"}
    if not well_formed or not all(isinstance(part, dict) for part in (init_args, dict_kwargs, modules)):
        raise ValueError(f"{name}={shortened(text)} in the checkpoint is no class path with arguments: pass {name}=...")
    cls: Any = _import(path, name, allow) if path in allow else known_class(path)
    fits = isinstance(cls, type) and issubclass(cls, kinds) and not issubclass(cls, LightningModule)
    if not fits and not (path in allow and isinstance(cls, type) and name not in _KINDS):
        raise _refusal(name, path, kinds)
    if modules and cls not in _CONTAINERS:
        raise ValueError(
            f"{name}={shortened(path)!r} in the checkpoint has modules but is no container: pass {name}=..."
        )
    of_class = next((kinds for kinds in ((nn.Module,), PARTS) if issubclass(cls, kinds)), ())
    inner = kinds_of("") if path in allow else of_class
    arguments = {key: _resolve(part, name, inner, allow) for key, part in {**init_args, **dict_kwargs}.items()}
    return Call(cls, arguments, {key: _resolve(part, name, inner, allow) for key, part in modules.items()})


def _import(path: str, name: str, allow: Mapping[str, Any]) -> Any:
    if allow[path] is not None:
        return allow[path]
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}={path!r} in the checkpoint cannot be imported ({error}): pass {name}=...") from error


def _refusal(name: str, path: str, kinds: tuple[type, ...]) -> ValueError:
    known = " or ".join(f"a {kind.__name__} of torch or lightning_meta" for kind in kinds) or "plain values"
    return ValueError(
        f"{name}={shortened(path)!r} in the checkpoint is refused, as it could run any code (known here: {known}): "
        f"pass {name}=..., or, if you trust the checkpoint, allow=({shortened(path)!r},)"
    )
