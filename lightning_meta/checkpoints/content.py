"""Checks of a checkpoint's content before anything else uses it: the file may come from anyone."""

from typing import Any

import torch

MOST_VALUES = 10_000_000
DEEPEST = 100
_SLACK_BYTES = 2**24

_BY_NAME = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")  # dictionaries with text as keys
_OF_TEXT = ("meta_learner_left_out", "meta_learner_arguments")  # and as values
_TYPES: dict[str, Any] = {
    **dict.fromkeys((*_BY_NAME, *_OF_TEXT, "callbacks", "loops"), dict),
    "optimizer_states": list,
    "lr_schedulers": list,
    "meta_learner_class": str,
    "meta_learner_preparation": dict | None,
    "meta_learner_residuals": dict | None,  # of earlier versions
    "meta_learner_scores": dict | None,
    "meta_learner_random_seed": int | None,
    "meta_learner_gradients": dict | None,
    "meta_learner_recordings": tuple | None,
}


def shortened(value: Any) -> str:
    """Return a value as text for messages, 200 characters of it at most."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def fault_of_values(content: Any) -> str | None:
    """Return what is wrong with values nested in lists, tuples, sets and dictionaries; None: nothing.

    In a few bytes, lists can name each other so often that going through them never ends, and a tensor of one value can
    have any shape. Neither the number of values nor the size of tensors may be far beyond what the file holds.
    """
    count = described = held = 0
    storages = set()
    below = [iter((content,))]
    while below:
        value = next(below[-1], below)
        if value is below:
            below.pop()
            continue
        count += 1
        if count > MOST_VALUES:
            return f"it holds more than {MOST_VALUES:,} values, or itself"
        if isinstance(value, torch.Tensor):
            described += value.numel() * value.element_size()
            if value.layout == torch.strided and value.device.type != "meta":
                storage = value.untyped_storage()
                held += 0 if storage._cdata in storages else storage.nbytes()
                storages.add(storage._cdata)
        elif isinstance(value, list | tuple | dict | set | frozenset):
            if len(below) > DEEPEST:
                return f"it holds values nested more than {DEEPEST} deep, or itself"
            below.append(iter([*value, *value.values()] if isinstance(value, dict) else value))
    if described > 4 * held + _SLACK_BYTES:  # parameters may share their values
        return f"its tensors have {described:,} bytes, and it holds {held:,}"
    return None


def check_types(checkpoint: dict[Any, Any]) -> None:
    """Raise a ValueError if an entry that this package reads is not of its type."""
    for name, kinds in _TYPES.items():
        value = checkpoint.get(name)
        if name in checkpoint and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ValueError(f"the checkpoint's {name} is {shortened(value)}, which no checkpoint of a learner holds")
    for name in (*_BY_NAME, *_OF_TEXT):
        for key, value in checkpoint.get(name, {}).items():
            if not isinstance(key, str) or (name in _OF_TEXT and not isinstance(value, str)):
                raise ValueError(f"the checkpoint's {name} holds {shortened(key)}: {shortened(value)}: it was changed")
