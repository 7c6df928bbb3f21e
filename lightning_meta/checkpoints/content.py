"""What a checkpoint may hold, looked at before anything else is done with it, because it may come from anyone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

MOST_VALUES = 10_000_000
DEEPEST = 100
_SLACK_BYTES = 2**24

_OPTIONAL = type(None)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "state_dict": dict,
    "hyper_parameters": dict,
    "datamodule_hyper_parameters": dict,
    "callbacks": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "meta_learner_class": str,
    "meta_learner_left_out": dict,
    "meta_learner_arguments": dict,
    "meta_learner_random_seed": (int, _OPTIONAL),
    "meta_learner_gradients": (dict, _OPTIONAL),
    "meta_learner_recordings": (tuple, _OPTIONAL),
}
_BY_NAME = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters", "meta_learner_left_out")
_OF_TEXT = ("meta_learner_left_out", "meta_learner_arguments")


def shortened(value: Any) -> str:
    """What messages say of a value that may be of any length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def fault_of_values(content: Any) -> str | None:
    """What is wrong with values nested in lists, tuples and dictionaries; None: nothing.

    A few bytes can name one list many times in another, and so on: what such a file holds has no end in practice. Just
    so a tensor of one value can be of any shape. Neither may be larger than what the file could hold in earnest.
    """
    described = held = 0
    storages = set()
    for count, value in enumerate(_values(content)):
        if count > MOST_VALUES:
            return f"it holds more than {MOST_VALUES:,} values, or itself"
        if value is _TOO_DEEP:
            return f"it holds values nested more than {DEEPEST} deep, or itself"
        if isinstance(value, torch.Tensor):
            described += value.numel() * value.element_size()
            if value.layout == torch.strided and value.device.type != "meta":
                storage = value.untyped_storage()
                held += 0 if storage._cdata in storages else storage.nbytes()
                storages.add(storage._cdata)
    if described > 4 * held + _SLACK_BYTES:  # parameters may share their values
        return f"its tensors are of {described:,} bytes, and it holds {held:,}"
    return None


def check_types(checkpoint: dict[Any, Any]) -> None:
    """Raise a ValueError unless the entries that this package reads are of their types."""
    for name, kinds in _TYPES.items():
        value = checkpoint.get(name)
        if name in checkpoint and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ValueError(f"the checkpoint's {name} is {shortened(value)}, which no checkpoint of a learner holds")
    for name in (*_BY_NAME, *_OF_TEXT):
        for key, value in checkpoint.get(name, {}).items():
            if not isinstance(key, str) or (name in _OF_TEXT and not isinstance(value, str)):
                raise ValueError(f"the checkpoint's {name} holds {shortened(key)}: {shortened(value)}: it was changed")


_TOO_DEEP = object()


def _values(content: Any) -> Iterator[Any]:
    """Every value, as often as it stands somewhere."""
    below = [iter((content,))]
    while below:
        value = next(below[-1], below)
        if value is below:
            below.pop()
            continue
        yield value
        if isinstance(value, list | tuple | dict | set | frozenset):
            if len(below) > DEEPEST:
                yield _TOO_DEEP
            below.append(iter([*value, *value.values()] if isinstance(value, dict) else value))
