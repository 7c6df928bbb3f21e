"""Calling a model with random parameters."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_meta.inner.variational.gaussian import DiagonalGaussian


def linear_layers(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of `nn.Linear` layers whose outputs can be drawn in place of their weights.

    Excluded are layers with frozen or shared parameters, and derived classes, which may use their weights otherwise.
    """
    owners = [id(p) for module in model.modules() for p in module.parameters(recurse=False)]
    names: list[str] = []
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if type(module) is nn.Linear and all(p.requires_grad and owners.count(id(p)) == 1 for p in own.values()):
            names += [f"{prefix}.{name}" if prefix else name for name in own]
    return frozenset(names)


def call_with_random_parameters(
    call: Callable[[Mapping[str, Tensor], Any], Tensor],
    distribution: DiagonalGaussian,
    local: frozenset[str],
    x: Any,
) -> Tensor:
    """Call a model once with random parameters.

    Linear layers on inputs ``[examples, features]`` draw outputs for each example in place of weights (the local
    reparameterization trick: Kingma, Salimans, Welling, NeurIPS 2015). Each output has the same distribution, and the
    gradient a lower variance. Other layers, linear layers on other inputs, and parameters that the model uses more than
    once draw weights, one set for the call.

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
    names = {id(mean[name]): name for name in mean if name in local}
    layers = _LocalReparameterization({number: log_std[name] for number, name in names.items()})
    with layers:
        output = call(drawn, x)
    wrong = frozenset(name for number, name in names.items() if layers.uses.get(number) != 1)
    if wrong:  # not used exactly once
        return call_with_random_parameters(call, distribution, local - wrong, x)
    return output


class _LocalReparameterization(TorchFunctionMode):
    """Makes linear layers draw their outputs; their weights are the means."""

    def __init__(self, log_stds: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.log_stds = log_stds
        self.uses: Counter[int] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs if func is F.linear else {}
        if id(named.get("weight")) not in self.log_stds or id(named["input"]) in self.log_stds:
            result = func(*args, **kwargs)
            # Another use of a mean counts as two, which is too many. Reading its shape or dtype is no use.
            if isinstance(result, Tensor | tuple | list) and not isinstance(result, torch.Size):
                self.uses.update(2 * self._among((*args, *kwargs.values())))
            return result
        x, weight, bias = named["input"], named["weight"], named.get("bias")
        self.uses.update(self._among((weight, bias)))
        weight_std = self.log_stds[id(weight)].exp()
        bias_std = self.log_stds[id(bias)].exp() if id(bias) in self.log_stds else None
        if x.ndim != 2:
            noisy = bias if bias is None or bias_std is None else bias + bias_std * torch.randn_like(bias)
            return F.linear(x, weight + weight_std * torch.randn_like(weight), noisy)
        variance = F.linear(x.square(), weight_std.square(), None if bias_std is None else bias_std.square())
        output = F.linear(x, weight, bias)
        # The small constant keeps the derivative of the root finite if the variance is 0.
        return output + (variance + torch.finfo(variance.dtype).tiny ** 0.5).sqrt() * torch.randn_like(output)

    def _among(self, values: Iterable[Any]) -> list[int]:
        """Return the ids of the parameters among these values and in lists of them."""
        flat = itertools.chain.from_iterable(v if isinstance(v, tuple | list) else (v,) for v in values)
        return [id(value) for value in flat if id(value) in self.log_stds]
