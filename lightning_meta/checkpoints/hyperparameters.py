"""Which constructor arguments a checkpoint keeps.

A checkpoint must load with weights-only unpickling, so objects go into it as text, see `object_text`. What has no such
form is left out, and must be given again to ``load_from_checkpoint``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import nn

from lightning_meta.checkpoints.object_text import PARTS, TRAINING_ALONE, NotKeptError, is_plain, to_text


def keep_hyperparameters(
    learner: LightningModule, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Save the learner's constructor arguments, so that a checkpoint needs as few of them again as possible.

    Args:
        learner: The learner under construction.
        arguments: What it was given, by name.

    Returns:
        The arguments as they are kept, except by the command line; and a description of each that was left out.
    """
    if _given_hyperparameters.get() is not None:  # the command line builds the learner, and knows them as text
        learner.save_hyperparameters()
        return {}, {}
    kept: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, value in arguments.items():
        try:
            kept[name] = to_text(value)
        except NotKeptError:
            left_out[name] = _name(value)
    learner.save_hyperparameters(kept)
    return kept, left_out


def described(arguments: Mapping[str, Any]) -> dict[str, str]:
    """A description of each argument that decides what was learned and is an object, to tell one from another."""
    decisive = {name: value for name, value in arguments.items() if name not in ("model", *TRAINING_ALONE)}
    return {name: _describe(value) for name, value in decisive.items() if not is_plain(value)}


class NotesArguments:
    """A base that knows what a class was given, before constructors change it.

    It comes behind classes with constructors: so theirs is the signature that a class shows.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments; copies and unpickled objects have none."""
        new = super().__new__(cls)
        new.__dict__["_passed"] = (args, options)
        return new

    def arguments_by_name(self, model: nn.Module) -> dict[str, Any]:
        """What the constructor was given, and no longer kept; what it takes without a name is under ``"*args"``.

        Args:
            model: The model that came of it.
        """
        args, options = self.__dict__.pop("_passed")
        kinds = [parameter.kind for parameter in _parameters(type(self))]
        if args and kinds[0] is inspect.Parameter.VAR_POSITIONAL and kinds[-1] is inspect.Parameter.VAR_KEYWORD:
            # One that hands all on, by the names of the base that takes them.
            signatures = map(_parameters, type(self).__mro__[1:])
            base = next(names for names in signatures if names[0].kind is not inspect.Parameter.VAR_POSITIONAL)
            handed_on = dict(zip((p.name for p in base), args, strict=False))
            if handed_on.get("model") is model:
                return {**handed_on, **options}
        constructor: Any = type(self).__init__
        bound = inspect.signature(constructor).bind_partial(None, *args, **options)  # a decorator may add arguments
        bound.apply_defaults()
        found: dict[str, Any] = {}
        for parameter in (p for p in _parameters(type(self)) if p.name in bound.arguments):
            value = bound.arguments[parameter.name]
            if parameter.kind is parameter.VAR_KEYWORD:
                found |= value
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                found[parameter.name] = value
            elif value:
                found[f"*{parameter.name}"] = value
        return found


def _parameters(cls: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(cls.__init__).parameters.values())[1:]


def _describe(value: Any) -> str:
    return repr(value) if isinstance(value, (nn.Module, *PARTS)) else _name(value)


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
