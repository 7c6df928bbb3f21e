"""Checks of constructor arguments: each error names the argument, its value, and the cure."""

import math
from numbers import Integral, Real
from typing import Any, get_args

from torch import nn


def check_module(name: str, value: Any) -> None:
    """Raise a TypeError unless the value is a module instance."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}={value!r} must be a torch.nn.Module instance, such as {name}=nn.Linear(3, 1)")


def check_loss(loss_fn: Any) -> None:
    """Raise a TypeError or ValueError unless the value can be a mean loss without parameters of its own."""
    if not callable(loss_fn) or isinstance(loss_fn, type):
        raise TypeError(f"loss_fn={loss_fn!r} must be a callable instance, such as loss_fn=nn.CrossEntropyLoss()")
    if getattr(loss_fn, "reduction", None) == "none":
        raise ValueError(
            f"loss_fn={loss_fn!r} has reduction='none', but a loss must be one number: use reduction='mean'"
        )
    if isinstance(loss_fn, nn.Module) and any(p.requires_grad for p in loss_fn.parameters()):
        raise ValueError(
            f"loss_fn={loss_fn!r} has trainable parameters, which would not be trained: put them in the model"
        )


def check_rate(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive number")


def check_nonnegative(name: str, value: Any) -> None:
    """Raise a ValueError unless the value is 0 or a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{name}={value!r} must be 0 or a positive number")


def check_fraction(name: str, value: Any) -> None:
    """Raise a ValueError unless the value lies in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value} must lie in [0, 1)")


def check_coverage(coverage: Any) -> None:
    """Raise a ValueError unless the value is a probability between 0 and 1, both excluded."""
    if isinstance(coverage, bool) or not isinstance(coverage, Real) or not 0 < float(coverage) < 1:
        raise ValueError(f"coverage={coverage!r} must lie between 0 and 1, such as 0.9")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise a ValueError unless the value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")


def check_seed(seed: Any) -> None:
    """Raise a ValueError unless the value is an integer that random streams can start from."""
    check_count("seed", seed, least=0)
    if seed >= 2**64:
        raise ValueError(f"seed={seed!r} must be less than 2**64: take a smaller one")


def check_optional_count(name: str, value: Any, least: int = 1) -> None:
    """As `check_count`, but None passes."""
    if value is not None:
        check_count(name, value, least)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise a ValueError unless the value is one of those a Literal type names."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} is not one of {list(get_args(choices))}")
