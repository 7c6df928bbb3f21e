"""The inner rates of learn2learn's wrappers, as those of our learners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_meta.arguments import check_rate
from lightning_meta.inner import LearnedRates


class Rates(NamedTuple):
    """Inner rates.

    Attributes:
        inner_lr: The rate where none is learned, otherwise a typical one.
        learned: As in `MAML`: "none", "tensor" or "element".
        values: A learned rate for each parameter, a scalar or of its shape; empty where none is learned.
    """

    inner_lr: float
    learned: LearnedRates
    values: Mapping[str, nn.Parameter]


def fixed(lr: Any) -> Rates:
    """Return one rate for all parameters.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not positive and finite.
    """
    if isinstance(lr, Tensor) and lr.numel() == 1 and not lr.requires_grad:
        lr = lr.item()
    if isinstance(lr, bool) or not isinstance(lr, Real):
        raise TypeError(
            f"the wrapper's lr={lr!r} is not a number: a learned rate for all parameters together has no counterpart; "
            "set lr to a number, or use learn2learn's MetaSGD"
        )
    check_rate("the wrapper's lr", lr)
    return Rates(float(lr), "none", {})


def learned(rates: Sequence[Any], parameters: Mapping[str, nn.Parameter]) -> Rates:
    """Return learned rates, given in the order of the parameters; those of frozen parameters are left out.

    Raises:
        ValueError: If they are not trainable, or neither scalars nor of the parameters' shapes.
    """
    if len(rates) != len(parameters):
        raise ValueError(f"the wrapper has {len(rates)} rates, and its module {len(parameters)} parameters")
    values = {name: rate for (name, p), rate in zip(parameters.items(), rates, strict=True) if p.requires_grad}
    for name, rate in values.items():
        if not isinstance(rate, nn.Parameter) or not rate.requires_grad:
            raise ValueError(
                f"the wrapper's rate of {name} is not trainable, and learned rates are: pass "
                "lrs=nn.ParameterList(...) of trainable parameters to learn2learn's MetaSGD"
            )
    typical = sum(float(rate.detach().abs().mean()) for rate in values.values()) / len(values) if values else 0.0
    inner_lr = typical or 1.0
    if all(rate.shape == parameters[name].shape for name, rate in values.items()):
        return Rates(inner_lr, "element", values)
    if all(rate.dim() == 0 for rate in values.values()):
        return Rates(inner_lr, "tensor", values)
    shapes = {name: tuple(rate.shape) for name, rate in values.items()}
    raise ValueError(
        f"the wrapper's rates have the shapes {shapes}: they must all be scalars, or all have the shapes of their "
        "parameters"
    )
