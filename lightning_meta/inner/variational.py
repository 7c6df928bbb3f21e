"""Factorized Gaussian distributions over a model's parameters: sampling a model, and divergences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_meta.inner.vectors import Vector


class DiagonalGaussian(NamedTuple):
    """A factorized Gaussian over parameters: means and log standard deviations by name."""

    mean: Vector
    log_std: Vector


def gaussian_kl(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    """``KL(q ‖ p)`` summed over all elements, a scalar."""
    parts = []
    for name, mean in q.mean.items():
        difference = q.log_std[name] - p.log_std[name]
        scaled = (mean - p.mean[name]) * (-p.log_std[name]).exp()
        parts.append(0.5 * ((2 * difference).exp() + scaled.square() - 1 - 2 * difference).sum())
    return torch.stack(parts).sum()


def linear_layers(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of the model's `nn.Linear` layers, for which activations can be sampled directly."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if type(module) is nn.Linear  # a derived class may use its weights otherwise
        for name, _ in module.named_parameters(recurse=False)
    )


def call_with_random_parameters(
    call: Callable[[Mapping[str, Tensor], Any], Tensor],
    distribution: DiagonalGaussian,
    local: frozenset[str],
    x: Any,
) -> Tensor:
    """Call a model once with random parameters.

    Linear layers draw their outputs, anew for each example, rather than their weights (the local reparameterization
    trick: Kingma, Salimans, Welling, NeurIPS 2015), which leaves every example's output distributed as it was and
    lowers the gradient's variance. Other layers draw weights, shared by the examples of the call.

    Args:
        call: The model as a function of parameters and inputs.
        distribution: The parameters' distribution.
        local: The names that belong to linear layers.
        x: Inputs.
    """
    mean, log_std = distribution
    drawn = {
        name: value if name in local else value + log_std[name].exp() * torch.randn_like(value)
        for name, value in mean.items()
    }
    with _LocalReparameterization({id(mean[name]): log_std[name] for name in mean if name in local}):
        return call(drawn, x)


class _LocalReparameterization(TorchFunctionMode):
    """Makes linear layers whose weights are means draw their outputs."""

    def __init__(self, log_stds: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.log_stds = log_stds

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is not F.linear or id(args[1]) not in self.log_stds:
            return output
        x, weight, *rest = args
        bias = rest[0] if rest else (kwargs or {}).get("bias")
        weight_variance = (2 * self.log_stds[id(weight)]).exp()
        bias_variance = None if bias is None or id(bias) not in self.log_stds else (2 * self.log_stds[id(bias)]).exp()
        variance = F.linear(x.square(), weight_variance, bias_variance)
        # The guard keeps the root's derivative finite where all inputs are zero and the bias is certain.
        return output + (variance + torch.finfo(variance.dtype).tiny ** 0.5).sqrt() * torch.randn_like(output)
