"""Learners and data modules from checkpoints, whose content is data and never decides what code runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_meta.checkpoint_io import Source, read_checkpoint
from lightning_meta.object_text import build, class_path, kinds_of, known_class, resolve

Learner = TypeVar("Learner", bound=LightningModule)
DataModule = TypeVar("DataModule", bound=LightningDataModule)
Allowed = Iterable[str | Callable[..., Any]]

_OWN_KEYS = ("_instantiator", "_class_path")
_INSTANTIATORS = (None, "lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")


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
    """Build a learner from a checkpoint; arguments and errors as in `MetaLearner.load_from_checkpoint`."""
    checkpoint = read_checkpoint(source, map_location or _to_host, weights_only)
    allowed = _by_path(allow)
    learner_class = _learner_class(cls, checkpoint, allowed)
    stored = _stored(checkpoint, cls.CHECKPOINT_HYPER_PARAMS_KEY, hparams_file)
    for name, description in checkpoint.get("meta_learner_left_out", {}).items():
        if name not in given and name not in stored:
            raise ValueError(
                f"the checkpoint was trained with {name}={description}, which it cannot keep (it keeps plain values, "
                f"and modules of torch.nn and lightning_meta that their arguments describe): pass {name}=..."
            )
    learner = _construct(learner_class, stored, given, allowed)
    if is_overridden("configure_model", learner):
        learner.configure_model()
    checkpoint["meta_learner_class"] = class_path(type(learner))  # another class was allowed
    learner.on_load_checkpoint(checkpoint)
    keys = learner.load_state_dict(
        checkpoint["state_dict"], strict=learner.strict_loading if strict is None else strict
    )
    for problem, names in (("lacks", keys.missing_keys), ("has besides", keys.unexpected_keys)):
        if names:  # else, with strict, an error was raised
            rank_zero_warn(f"the checkpoint {problem} {names}")
    devices = [value.device for value in checkpoint["state_dict"].values() if isinstance(value, torch.Tensor)]
    return learner.to(devices[0]) if devices else learner


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


def check_learner_class(checkpoint: Mapping[str, Any], cls: type, allowed: Collection[str] = ()) -> None:
    """Raise a ValueError unless a learner of this class, or of one that is allowed, saved the checkpoint."""
    if "meta_learner_arguments" not in checkpoint:
        raise ValueError("the checkpoint was not saved by a MetaLearner: load its weights into the model instead")
    saved_by = checkpoint.get("meta_learner_class")
    if saved_by is None:
        rank_zero_warn("the checkpoint does not name its learner's class: whether it is this one is not known")
    elif not _is_name_of(saved_by, cls) and saved_by not in allowed:
        raise ValueError(
            f"the checkpoint was saved by {saved_by}, and this is {class_path(cls)}: load it with its own class, or, "
            f"if the two fit together, with {cls.__name__}.load_from_checkpoint(..., allow=({saved_by!r},))"
        )


def check_callback_paths(checkpoint: Mapping[str, Any]) -> None:
    """Raise a ValueError if a checkpoint callback would later take files elsewhere for its own, and delete them."""
    for state in checkpoint.get("callbacks", {}).values():
        if not isinstance(state, dict) or "best_k_models" not in state:
            continue
        folder = str(state.get("dirpath"))
        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        for path in map(str, [*state["best_k_models"], *(state.get(name) or "" for name in names)]):
            if ".." in PurePath(path).parts or ("://" in path and not path.startswith(f"{folder.rstrip('/')}/")):
                raise ValueError(
                    f"the checkpoint's ModelCheckpoint names {path}, outside its folder {folder}: it was changed after "
                    "it was saved; load its weights alone, with load_from_checkpoint"
                )


def _learner_class(cls: type[Learner], checkpoint: dict[str, Any], allowed: Collection[str]) -> type[Learner]:
    """The class to build: this one, or where it is abstract, the one that the checkpoint names."""
    if inspect.isabstract(cls):
        saved_by = checkpoint.get("meta_learner_class")
        found = known_class(saved_by) if isinstance(saved_by, str) else None
        if found is None or not issubclass(found, cls) or inspect.isabstract(found):
            raise ValueError(
                f"the checkpoint was saved by {saved_by}: load it with that class, {cls.__name__} is abstract"
            )
        cls = found
    check_learner_class(checkpoint, cls, allowed)
    return cls


def _is_name_of(path: Any, cls: type) -> bool:
    module, _, name = str(path).rpartition(".")
    if path == class_path(cls) or known_class(str(path)) is cls:
        return True
    # While a script runs, its own classes are in "__main__"; packages may show classes that their modules define.
    if "__main__" in (cls.__module__, module):
        return str(path).endswith(f".{cls.__qualname__}")
    return cls.__module__.startswith(f"{module}.") and getattr(sys.modules.get(module), name, None) is cls


def _stored(checkpoint: dict[str, Any], key: str, hparams_file: Any) -> dict[str, Any]:
    stored = checkpoint.get(key, {})
    if hparams_file is not None:
        is_csv = str(hparams_file).endswith(".csv")
        stored = load_hparams_from_tags_csv(hparams_file) if is_csv else load_hparams_from_yaml(hparams_file, False)
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise ValueError(f"the checkpoint's {key} are no arguments by name: {stored!r}")
    return stored


def _construct(
    cls: Any, stored: dict[str, Any], given: Mapping[str, Any], allowed: Mapping[str, Any], kinds: Any = None
) -> Any:
    if stored.get("_instantiator") not in _INSTANTIATORS:
        raise ValueError(
            f"_instantiator={stored['_instantiator']!r} in the checkpoint is refused: learners build themselves"
        )
    named = stored.get("_class_path")
    if named is not None and not _is_name_of(named, cls) and named not in allowed:
        raise ValueError(f"_class_path={named!r} in the checkpoint is refused: it is loaded as {class_path(cls)}")
    parameters = inspect.signature(cls).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wanted = {
        name: text
        for name, text in stored.items()
        if name not in given and name not in _OWN_KEYS and (open_ended or name in parameters)
    }
    # All are looked at before any is built.
    resolved = {
        name: resolve(t, name, kinds_of(name) if kinds is None else kinds, allowed) for name, t in wanted.items()
    }
    needed = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    for name in sorted(needed - resolved.keys() - given.keys()):
        raise ValueError(f"the checkpoint does not hold {name}: pass {name}=...")
    arguments = {}
    for name, call in resolved.items():
        try:
            arguments[name] = build(call)
        except Exception as error:  # constructors raise many kinds for arguments that do not fit
            raise ValueError(
                f"{name}={stored[name]!r} in the checkpoint cannot be built ({error}): pass {name}=..."
            ) from error
    return cls(**arguments, **given)


def _by_path(allow: Allowed) -> dict[str, Any]:
    """What the caller allows; None where it is to be imported."""
    several = (allow,) if isinstance(allow, str) or callable(allow) else allow
    return {one if isinstance(one, str) else class_path(one): None if isinstance(one, str) else one for one in several}


def _to_host(storage: Any, location: str) -> Any:
    """Leave tensors where they were saved, if there is such a device here."""
    kind = location.partition(":")[0]
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return None if present.get(kind, True) else storage.cpu()
