"""Learners and data modules from checkpoints, whose content is data and never decides what code runs."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePath
from textwrap import dedent
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_meta.checkpoints import object_text
from lightning_meta.checkpoints.checked_io import Source, read_checkpoint
from lightning_meta.checkpoints.content import fault_of_values, shortened
from lightning_meta.checkpoints.hyperparameters import constructor_parameters, stored_name
from lightning_meta.checkpoints.object_text import class_path, is_of_package, known_class

Learner = TypeVar("Learner", bound=LightningModule)
DataModule = TypeVar("DataModule", bound=LightningDataModule)
Allowed = Iterable[str | Callable[..., Any]]

_LIGHTNINGS = ("_instantiator", "_class_path")  # of its command line, which would import what they name
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
_MORE_WEIGHTS = 2**20  # than the checkpoint has: a subclass may pass on arguments that it does not keep


def load_learner(
    cls: type[Learner],
    source: Source,
    map_location: Any,
    hparams_file: Any,
    strict: bool | None,
    weights_only: bool | None,
    allow: Allowed,
    given: Mapping[str, Any],
) -> Learner:
    """Build a learner from a checkpoint; arguments and errors as in `TaskLearner.load_from_checkpoint`."""
    checkpoint = read_checkpoint(source, map_location or _to_host, weights_only)
    allowed = _by_path(allow)
    learner_class = _learner_class(cls, checkpoint, allowed)
    stored = _stored(checkpoint, cls.CHECKPOINT_HYPER_PARAMS_KEY, hparams_file)
    for name, description in checkpoint.get("meta_learner_left_out", {}).items():
        if name in given or name in stored:
            continue
        lost = f"the checkpoint was trained with {name}={shortened(description)}, which it cannot keep"
        if name not in object_text.TRAINING_ALONE:
            cure = f"pass {name}=..." if name.isidentifier() else "name its arguments where the learner is made"
            raise ValueError(
                f"{lost} (it keeps plain values, and modules of torch.nn and lightning_meta that their arguments "
                f"describe): {cure}"
            )
        rank_zero_warn(f"{lost}: to train on with it, pass {name}=...")
    tensors = [value for value in checkpoint["state_dict"].values() if isinstance(value, torch.Tensor)]
    most_weights = sum(tensor.numel() for tensor in tensors) + _MORE_WEIGHTS
    learner = _construct(learner_class, stored, given, allowed, most_weights=most_weights)
    if is_overridden("configure_model", learner):
        learner.configure_model()
    learner.on_load_checkpoint(checkpoint)
    strict = learner.strict_loading if strict is None else strict
    keys = learner.load_state_dict(checkpoint["state_dict"], strict=strict)
    for problem, names in (("lacks", keys.missing_keys), ("also has", keys.unexpected_keys)):
        if names:  # with strict, this raised an error
            rank_zero_warn(f"the checkpoint {problem} {names}")
    return learner.to(tensors[0].device) if tensors else learner


def load_data_module(
    cls: type[DataModule],
    source: Source,
    map_location: Any,
    hparams_file: Any,
    weights_only: bool | None,
    allow: Allowed,
    given: Mapping[str, Any],
) -> DataModule:
    """Build a data module from a checkpoint; arguments and errors as in `TaskDataModule.load_from_checkpoint`."""
    checkpoint = read_checkpoint(source, map_location or _to_host, weights_only)
    stored = _stored(checkpoint, cls.CHECKPOINT_HYPER_PARAMS_KEY, hparams_file)
    data = _construct(cls, stored, given, _by_path(allow), kinds=())
    if type(data).__qualname__ in checkpoint:
        data.load_state_dict(checkpoint[type(data).__qualname__])
    return data


def check_learner_class(
    checkpoint: Mapping[str, Any], cls: type, allowed: Collection[str] = (), cure: str | None = None
) -> None:
    """Raise a ValueError unless a learner of this class, or of an allowed one, saved the checkpoint.

    Args:
        checkpoint: The checkpoint.
        cls: The class.
        allowed: The paths of other classes.
        cure: What the message says to do; None: what to do in Python.
    """
    if "meta_learner_arguments" not in checkpoint:
        raise ValueError("the checkpoint was not saved by a TaskLearner: load its weights into the model instead")
    saved_by = checkpoint.get("meta_learner_class")
    if saved_by is None:
        rank_zero_warn("the checkpoint does not name its learner's class, which is not checked")
    elif not _is_name_of(str(saved_by), cls) and saved_by not in allowed:
        raise ValueError(
            f"the checkpoint was saved by {shortened(saved_by)}, and this is {class_path(cls)}: "
            + (
                cure
                or f"load it with its own class, or, if the two fit together, with {cls.__name__}.load_from_checkpoint("
                f"..., allow=({shortened(saved_by)!r},))"
            )
        )


def check_preparation(trained: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> None:
    """Raise a ValueError if data are prepared otherwise than those of the training."""
    if trained is None or own is None:
        return
    for name in sorted(trained.keys() | own.keys()):
        if trained.get(name) != own.get(name):
            raise ValueError(
                f"the checkpoint was trained on data prepared with {name}={shortened(trained.get(name))}, and the data "
                f"module has {shortened(own.get(name))}: give the data module the arguments and training data of the "
                "training"
            )


def check_callback_paths(checkpoint: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Remove the paths of others' files, which `ModelCheckpoint` would delete as its own, from callbacks' states.

    A file is a callback's own if it is in a folder of this run's checkpoints and has their ending.

    Raises:
        ValueError: If a path is one that no callback writes.
    """
    folders = [str(folder) for c in trainer.checkpoint_callbacks if (folder := getattr(c, "dirpath", None))]
    endings = tuple(str(getattr(callback, "FILE_EXTENSION", ".ckpt")) for callback in trainer.checkpoint_callbacks)
    if trainer.ckpt_path is not None and not _is_address(str(trainer.ckpt_path)):
        folders.append(os.path.dirname(trainer.ckpt_path) or ".")

    def is_own(path: Any, claimed: str) -> bool:
        if not isinstance(path, str):
            raise ValueError(f"the checkpoint's ModelCheckpoint names {shortened(path)}, which is no path")
        inside = any(_is_in(path, folder) for folder in folders)
        if not inside and not _is_in(path, claimed) and (_is_address(path) or ".." in PurePath(path).parts):
            raise ValueError(
                f"the checkpoint's ModelCheckpoint names {shortened(path)}, outside its folder "
                f"{' and '.join(folders)}: it was changed after it was saved; load its weights alone, with "
                "load_from_checkpoint"
            )
        return inside and path.endswith(endings)

    for state in checkpoint.get("callbacks", {}).values():
        if not isinstance(state, dict) or state.keys().isdisjoint((*_PATHS, "best_k_models")):
            continue
        claimed, best = str(state.get("dirpath")), state.get("best_k_models", {})
        if not isinstance(best, dict):
            raise ValueError("the checkpoint's ModelCheckpoint has best_k_models that are no dictionary")
        if "best_k_models" in state:
            state["best_k_models"] = {path: score for path, score in best.items() if is_own(path, claimed)}
        for name in _PATHS:
            if state.get(name) and not is_own(state[name], claimed):
                state[name] = ""


def _is_in(path: str, folder: str) -> bool:
    """Whether a path leads into a folder, with links followed; an address must begin with the folder's."""
    if ".." in PurePath(path).parts:
        return False
    if _is_address(folder):
        below = path.removeprefix(f"{folder.rstrip('/')}/")
        return below != path and not _is_address(below)
    return not _is_address(path) and Path(folder).resolve() in [(up := Path(path).parent.resolve()), *up.parents]


def _is_address(path: str) -> bool:
    return "://" in path or "::" in path


def _learner_class(cls: type[Learner], checkpoint: dict[str, Any], allowed: Collection[str]) -> type[Learner]:
    """Return the class to build: this one or, if it is abstract, the one that the checkpoint names."""
    if inspect.isabstract(cls):
        saved_by = str(checkpoint.get("meta_learner_class"))
        found = known_class(saved_by)
        if found is None or not issubclass(found, cls) or inspect.isabstract(found):
            raise ValueError(
                f"the checkpoint was saved by {shortened(saved_by)}: load it with that class, {cls.__name__} is "
                "abstract"
            )
        cls = found
    check_learner_class(checkpoint, cls, allowed)
    return cls


def _is_name_of(path: str, cls: type) -> bool:
    known = known_class(path)
    module, _, name = path.rpartition(".")
    if path == class_path(cls) or known is cls:
        return True
    # While a script runs, its own classes are in "__main__"; packages may export classes that their modules define.
    if "__main__" in (cls.__module__, module) and not is_of_package(cls) and known is None:
        return path.endswith(f".{cls.__qualname__}")
    return cls.__module__.startswith(f"{module}.") and getattr(sys.modules.get(module), name, None) is cls


def _stored(checkpoint: dict[str, Any], key: str, hparams_file: Any) -> dict[str, Any]:
    if hparams_file is None:
        return checkpoint.get(key, {})
    name = str(hparams_file)
    if not get_filesystem(name).isfile(name):
        raise FileNotFoundError(f"there is no file hparams_file={name!r}")
    try:
        stored = load_hparams_from_tags_csv(name) if name.endswith(".csv") else load_hparams_from_yaml(name, False)
    except Exception as error:  # parsers raise many kinds
        raise ValueError(f"hparams_file={name!r} cannot be read: {error}") from error
    fault = fault_of_values(stored)
    if fault is not None or not isinstance(stored, dict) or not all(isinstance(key, str) for key in stored):
        raise ValueError(f"hparams_file={name!r} holds no arguments by name: {fault or shortened(stored)}")
    return stored


def _construct(
    cls: Any,
    stored: dict[str, Any],
    given: Mapping[str, Any],
    allowed: Mapping[str, Any],
    kinds: tuple[type, ...] | None = None,
    most_weights: int = 0,
) -> Any:
    """Build a class from stored and given arguments, all of which are checked before any is built."""

    def from_stored(function: Callable[[Any], Any], name: str) -> Any:
        try:
            return function(resolved[name])
        except Exception as error:  # constructors raise many kinds for arguments that do not fit
            raise ValueError(
                f"{name}={shortened(stored[name])} in the checkpoint cannot be built ({shortened(error)}): pass "
                f"{name}=..."
            ) from error

    taken = _names(cls)
    resolved = {
        name: object_text.resolve(text, name, object_text.kinds_of(name) if kinds is None else kinds, allowed)
        for name, text in stored.items()
        if name not in given and (name not in _LIGHTNINGS if taken is None else name in taken)
    }
    _bound(cls, {**resolved, **given})
    weights = 0
    for name in resolved:
        weights += from_stored(object_text.number_of_weights, name)
        if weights > most_weights:
            raise ValueError(
                f"{name}={shortened(stored[name])} in the checkpoint has more weights than the checkpoint holds: pass "
                f"{name}=..."
            )
    positional, named = _bound(cls, {**{name: from_stored(object_text.build, name) for name in resolved}, **given})
    return cls(*positional, **named)


def _bound(cls: Any, arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and named arguments as the class takes them."""
    positional, named = [], dict(arguments)
    if any(name.startswith("*") for name in named):  # then those before them must be positional, too
        for parameter in constructor_parameters(cls):
            value = named.pop(stored_name(parameter), ())
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += value
                break
            positional.append(value)
    try:
        inspect.signature(cls.__init__).bind(None, *positional, **named)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} cannot be built from the checkpoint: {error}; pass it by name") from error
    return positional, named


def _names(cls: Any) -> Collection[str] | None:
    """Return the arguments that a class takes, also through ``**kwargs`` for its bases; None: any, or not known."""
    names: set[str] = set()
    fixed: set[str] = set()  # by a call of the base's constructor
    for owner in (base for base in cls.__mro__ if "__init__" in vars(base)):
        parameters = constructor_parameters(owner)
        names |= set(map(stored_name, parameters)) - fixed
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return names
        if not is_of_package(owner):
            return None
        for node in ast.walk(ast.parse(dedent(inspect.getsource(owner.__init__)))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__":
                fixed |= {keyword.arg for keyword in node.keywords if keyword.arg} - names
    return None


def _by_path(allow: Allowed) -> dict[str, Any]:
    """Return what the caller allows by path; None where only the path is known."""
    several = (allow,) if isinstance(allow, str) or callable(allow) else allow
    return {one if isinstance(one, str) else class_path(one): None if isinstance(one, str) else one for one in several}


def _to_host(storage: Any, location: str) -> Any:
    """Leave tensors on the device from which they were saved, if it exists here."""
    kind = location.partition(":")[0]
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return None if present.get(kind, True) else storage.cpu()
