"""Which constructor arguments a checkpoint keeps, and in which form.

A checkpoint must load with weights-only unpickling, so objects cannot go into it as they are. Plain values
can; modules of torch and of this library whose class and arguments tell everything are kept as a class path
with arguments, the form in which the command line keeps all objects. The rest is left out, and must be given
again to ``load_from_checkpoint``.
"""

from __future__ import annotations

import inspect
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import nn

from lightning_meta.inner.update_rules import UpdateRule

_TRUSTED = ("torch.nn.", "lightning_meta.")
# The state of these is in the checkpoint, or they matter to training alone.
_REPLACEABLE = ("model", "optimizer", "lr_scheduler")
_PLAIN = (bool, int, float, str, type(None))


def keep_hyperparameters(learner: LightningModule, frame: FrameType) -> dict[str, str]:
    """Save the learner's constructor arguments, so that a checkpoint needs as few of them again as possible.

    Args:
        learner: The learner under construction.
        frame: The frame of its ``__init__``; the frames of derived classes are found from it.

    Returns:
        A description of each argument that decides what was learned and is an object, to tell one from another.
    """
    arguments: dict[str, Any] = {}
    for own in collect_init_args(frame, [], classes=(HyperparametersMixin,)):
        arguments.update(own)
    try:
        # Present only when the command line builds the learner: then Lightning knows the arguments as text.
        learner.save_hyperparameters("_instantiator", frame=frame)
    except KeyError:
        kept = {name: _text_form(value) for name, value in arguments.items() if _has_text_form(value)}
        kept["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
        learner.save_hyperparameters(kept, frame=frame)
    else:
        learner.save_hyperparameters(frame=frame)
    decisive = {name: value for name, value in arguments.items() if name not in _REPLACEABLE}
    return {name: _describe(value) for name, value in decisive.items() if not _is_plain(value)}


def _describe(value: Any) -> str:
    if isinstance(value, nn.Module):
        return repr(value)
    if isinstance(value, UpdateRule):
        return f"{type(value).__qualname__}({vars(value)})"
    return getattr(value, "__qualname__", type(value).__qualname__)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(_is_plain(item) for item in value))


def _has_text_form(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_has_text_form(item) for item in value)
    if isinstance(value, dict):
        return _is_plain(value)
    if isinstance(value, UpdateRule):
        return _class_path(value).startswith(_TRUSTED)
    return isinstance(value, _PLAIN) or (isinstance(value, nn.Module) and _rebuilds(value))


def _text_form(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_text_form(item) for item in value]
    if isinstance(value, nn.Module | UpdateRule):
        return {"class_path": _class_path(value), "init_args": _init_args(value)}
    return value


def _class_path(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _init_args(module: object) -> dict[str, Any]:
    names = [n for n in inspect.signature(type(module).__init__).parameters if n != "self"]
    values = {n: getattr(module, n) for n in names if hasattr(module, n)}
    return {n: _text_form(v) for n, v in values.items() if not isinstance(v, nn.Module) and _has_text_form(v)}


def _rebuilds(module: nn.Module) -> bool:
    """Whether the class and the arguments that can be read off the module give the same module again."""
    if not _class_path(module).startswith(_TRUSTED):
        return False
    try:
        with torch.random.fork_rng(devices=[]):
            again = type(module)(**_init_args(module))
    except (TypeError, ValueError):
        return False
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    return repr(again) == repr(module) and shapes == {name: t.shape for name, t in again.state_dict().items()}
