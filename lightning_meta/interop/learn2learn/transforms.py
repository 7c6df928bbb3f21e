"""The rates that a ``GBML`` wrapper's transforms amount to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_meta.interop.learn2learn.package import class_of
from lightning_meta.interop.learn2learn.rates import Rates, fixed, learned


def rates_of_transforms(wrapper: Any, parameters: Mapping[str, nn.Parameter]) -> Rates:
    """Return the inner rates of a ``GBML`` wrapper, whose steps are ``p ← p − lr transform(g)``.

    Without transforms these are MAML's. learn2learn's ``Scale`` multiplies a gradient by learned factors, one for each
    element or one in all: the rates are new parameters, lr times these.

    Raises:
        ValueError: For other transforms, and for those that adapt themselves.
    """
    rate = fixed(wrapper.lr)
    if wrapper.adapt_transform:
        raise ValueError(
            "adapt_transform=True adapts the transform in the inner loop, which has no counterpart: pass a GBML with "
            "adapt_transform=False"
        )
    update = wrapper.compute_update
    if all(index is None for index in update.transforms_indices):
        return rate
    values = {}
    for name, index in zip(parameters, update.transforms_indices, strict=True):
        if index is None:
            raise ValueError(f"transform gives None for {name} and a module for others: give all parameters a Scale")
        values[name] = rate.inner_lr * _scale(update.transforms_modules[index]).detach()
    if all(value.numel() == parameters[name].numel() for name, value in values.items()):
        shaped = [value.reshape(parameters[name].shape) for name, value in values.items()]
    elif all(value.numel() == 1 for value in values.values()):
        shaped = [value.reshape(()) for value in values.values()]
    else:
        sizes = {name: value.numel() for name, value in values.items()}
        raise ValueError(f"transform has Scales of sizes {sizes}: they must be as large as the parameters, or all 1")
    return learned([nn.Parameter(value.clone()) for value in shaped], parameters)


def _scale(transform: nn.Module) -> nn.Parameter:
    """Return the factors of a ``Scale``, which may be wrapped to change shapes."""
    inner: Any = transform.transform if class_of(transform) == "ReshapedTransform" else transform
    if class_of(inner) != "Scale":
        raise ValueError(
            f"transform={type(inner).__name__} changes gradients in a way that has no counterpart: only GBML without "
            "transforms, and with learn2learn.nn.Scale, can be converted"
        )
    return inner.alpha
