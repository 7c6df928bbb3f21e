"""Which constructor arguments a checkpoint keeps.

A checkpoint must load with weights-only unpickling, so objects are kept as text, see `object_text`. An argument without
such a form is left out, and must be passed again to ``load_from_checkpoint``.
"""

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
    """Save a learner's constructor arguments as its hyperparameters, as far as a checkpoint can keep them.

    Returns:
        The arguments as they are kept, and the names of the objects that were left out.
    """
    if _given_hyperparameters.get() is not None:  # from Lightning's command line, which knows them as text
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
    """Return texts that tell apart the objects among the arguments that decide what is learned."""
    return {
        name: repr(value) if isinstance(value, (nn.Module, *PARTS)) else _name(value)
        for name, value in arguments.items()
        if name not in ("model", *TRAINING_ALONE) and not is_plain(value)
    }


class NotesArguments:
    """Notes a class's arguments before constructors can change them; as the last base, it hides no signature."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the arguments; copies and unpickled objects have none."""
        new = super().__new__(cls)
        new.__dict__["_passed"] = (args, options)
        return new

    def arguments_by_name(self, model: nn.Module) -> dict[str, Any]:
        """Return the constructor's arguments by `stored_name`, once; the base constructor received ``model``."""
        args, options = self.__dict__.pop("_passed")
        own = constructor_parameters(type(self))
        if args and own[0].kind is own[0].VAR_POSITIONAL and own[-1].kind is own[-1].VAR_KEYWORD:
            # If the constructor passes all on, the arguments have the names of the base that takes them.
            signatures = map(constructor_parameters, type(self).__mro__[1:])
            base = next(names for names in signatures if names[0].kind is not inspect.Parameter.VAR_POSITIONAL)
            passed_on = dict(zip((p.name for p in base), args, strict=False))
            if passed_on.get("model") is model:
                return {**passed_on, **options}
        constructor: Any = type(self).__init__
        bound = inspect.signature(constructor).bind_partial(None, *args, **options)  # a decorator may add arguments
        bound.apply_defaults()
        found: dict[str, Any] = {}
        for parameter in (p for p in own if p.name in bound.arguments):
            value = bound.arguments[parameter.name]
            if parameter.kind is parameter.VAR_KEYWORD:
                found |= value
            elif parameter.kind is not parameter.VAR_POSITIONAL or value:
                found[stored_name(parameter)] = value
        return found


def constructor_parameters(cls: Any) -> list[inspect.Parameter]:
    """Return what a class's constructor takes besides ``self``."""
    return list(inspect.signature(cls.__init__).parameters.values())[1:]


def stored_name(parameter: inspect.Parameter) -> str:
    """Return a parameter's name in a checkpoint; positional arguments without a name are under ``"*args"``."""
    return f"*{parameter.name}" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
