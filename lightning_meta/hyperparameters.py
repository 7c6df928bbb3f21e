"""Which constructor arguments a checkpoint keeps.

A checkpoint must load with weights-only unpickling, so objects go into it as text, see `object_text`. What has no such
form is left out, and must be given again to ``load_from_checkpoint``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from lightning_meta.inner.update_rules import UpdateRule
from lightning_meta.object_text import TRAINING_ALONE, NotKeptError, is_plain, to_text


def keep_hyperparameters(learner: LightningModule, frame: FrameType) -> tuple[dict[str, str], dict[str, str]]:
    """Save the learner's constructor arguments, so that a checkpoint needs as few of them again as possible.

    Args:
        learner: The learner under construction.
        frame: The frame of its ``__init__``; the frames of derived classes are found from it.

    Returns:
        A description of each argument that decides what was learned and is an object, to tell one from another; and
        one of each argument that was left out and must be given again.
    """
    calls = list(_constructor_calls(learner, frame))
    everything = {name: value for arguments in calls for name, value in arguments.items()}
    decisive = {name: value for name, value in everything.items() if name not in ("model", *TRAINING_ALONE)}
    described = {name: _describe(value) for name, value in decisive.items() if not is_plain(value)}
    try:
        # Present only when the command line builds the learner: then Lightning knows the arguments as text.
        learner.save_hyperparameters("_instantiator", frame=frame)
    except KeyError:
        kept, left_out = {}, {}
        for name, value in calls[-1].items():  # what the class itself was given; the rest is of its own making
            try:
                if name.startswith("*"):
                    raise NotKeptError
                kept[name] = to_text(value)
            except NotKeptError:
                left_out[name] = _name(value)
        learner.save_hyperparameters(kept, frame=frame)
        return described, {name: value for name, value in left_out.items() if name not in TRAINING_ALONE}
    learner.save_hyperparameters(frame=frame)
    return described, {}


def _constructor_calls(learner: object, frame: FrameType | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each ``__init__`` that is under way by name, the base's first."""
    inner: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__":
        names, others, options = inspect.getargs(frame.f_code)
        values = frame.f_locals
        if not names or values.get(names[0]) is not learner:
            return
        own = {name: values[name] for name in names[1:]}
        inner = own | _unnamed(others, values, inner, own) | values.get(options or "", {})
        yield inner
        frame = frame.f_back


def _unnamed(others: str | None, values: dict[str, Any], inner: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a class takes without a name, by the names that they have where it hands them on."""
    names = iter(inner)
    unnamed = values[others] if others else ()
    found = {}
    for value in unnamed:
        name = next((name for name in names if name not in own and inner[name] is value), None)
        if name is None:
            return {f"*{others}": unnamed}
        found[name] = value
    return found


def _describe(value: Any) -> str:
    if isinstance(value, nn.Module):
        return repr(value)
    if isinstance(value, UpdateRule):
        return f"{type(value).__qualname__}({vars(value)})"
    return _name(value)


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
