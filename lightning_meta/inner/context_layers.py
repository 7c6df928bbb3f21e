"""Layers of a model that read a task's context parameters, by way of their weights and biases.

A layer's output h becomes ``h + C φ``, as if the context φ were part of its input, or ``(1 + S φ) ∘ h + C φ`` (FiLM:
Perez et al., AAAI 2018, arXiv 1709.07871). Both are the same layer with another weight and bias: rows of the weight,
and the bias, are scaled by ``1 + S φ``, and ``C φ`` is added to the bias. So the model is called as it is, with these.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_meta.arguments import check_choice, check_count
from lightning_meta.inner.names import key_of
from lightning_meta.inner.vectors import Vector
from lightning_meta.models.norm import TaskBatchNorm2d, TaskLayerNorm

ContextKind = Literal["input", "film"]

# Their weights have one row, or number, for each entry of the bias.
_MODULATED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    _NormBase,
    TaskBatchNorm2d,
    nn.GroupNorm,
    nn.LayerNorm,
    TaskLayerNorm,
)


class ContextLayers(nn.Module):
    """The maps C and S from context parameters to the named layers.

    Attributes:
        names: The parameters of the model that depend on the context.

    Args:
        model: The model.
        kind: "input": ``h + C φ``, of linear layers; "film": ``(1 + S φ) ∘ h + C φ``.
        size: The number of context parameters.
        layers: The layers' names in the model; None, with "input" only: the first linear layer.

    Raises:
        ValueError: If an argument is out of its range, or a layer cannot read the context.
    """

    def __init__(self, model: nn.Module, kind: ContextKind, size: int, layers: str | Sequence[str] | None) -> None:
        super().__init__()
        check_choice("context", kind, ContextKind)
        check_count("num_context_parameters", size)
        self.size = size
        self.layers = tuple(_chosen(model, kind, layers))
        self.shift = nn.ParameterDict()
        self.scale = nn.ParameterDict()
        for name in self.layers:
            weight, bias = (model.get_parameter(own) for own in _parameters_of(name))
            # As the columns of a larger layer: those of `nn.Linear` are drawn in ± 1 / √inputs.
            bound = (weight[0].numel() + size) ** -0.5 if kind == "input" else size**-0.5
            kinds = (self.shift,) if kind == "input" else (self.shift, self.scale)
            for maps in kinds:
                drawn = torch.empty_like(bias[..., None].expand(*bias.shape, size)).uniform_(-bound, bound)
                maps[key_of(name)] = nn.Parameter(drawn)
        self.names = tuple(own for name in self.layers for own in _parameters_of(name))

    def start(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the context before the first step, which is 0, ``[size]``."""
        return values[f"shift.{key_of(self.layers[0])}"].new_zeros(self.size)

    def parameters_at(self, context: Tensor, own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Vector:
        """Return the layers' weights and biases under a context, named as in the model.

        Args:
            context: φ, ``[size]``.
            own: The model's parameters of `names`.
            values: The current values of this module's parameters, named as in this module.
        """
        changed: Vector = {}
        for name in self.layers:
            weight_name, bias_name = _parameters_of(name)
            weight, bias = own[weight_name], own[bias_name]
            if len(self.scale):
                scale = 1 + values[f"scale.{key_of(name)}"] @ context  # the bias's shape
                changed[weight_name] = weight * scale.reshape(*scale.shape, *[1] * (weight.ndim - scale.ndim))
                bias = bias * scale
            changed[bias_name] = bias + values[f"shift.{key_of(name)}"] @ context
        return changed


def _parameters_of(layer: str) -> tuple[str, str]:
    prefix = f"{layer}." if layer else ""
    return f"{prefix}weight", f"{prefix}bias"


def _chosen(model: nn.Module, kind: ContextKind, layers: str | Sequence[str] | None) -> list[str]:
    """Return the names of the layers, after a check that they can read the context."""
    suitable = list(_suitable(model, kind))
    if layers is None and kind == "input" and suitable:
        return suitable[:1]
    what = "an nn.Linear" if kind == "input" else "a linear, convolution or normalization layer"
    those = f"with a weight and a bias of its own; suitable are {suitable}"
    if layers is None or not suitable:
        raise ValueError(f"context={kind!r} needs layers=NAME of {what} {those}")
    named = [layers] if isinstance(layers, str) else list(layers)
    for name in named:
        if name not in suitable:
            raise ValueError(f"layers: {name!r} is not {what} {those}")
    if not named or len(set(named)) < len(named):
        raise ValueError(f"layers={layers!r} must name at least one layer, and each once")
    return named


def _suitable(model: nn.Module, kind: ContextKind) -> Iterator[str]:
    everywhere = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    kinds: tuple[type, ...] = (nn.Linear,) if kind == "input" else _MODULATED
    for name, module in model.named_modules():
        own = module._parameters
        weight, bias = own.get("weight"), own.get("bias")
        has_both = isinstance(module, kinds) and weight is not None and bias is not None
        if has_both and everywhere.count(id(weight)) == everywhere.count(id(bias)) == 1:
            yield name
