"""Low-rank adapters.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. Section 4.1: a
linear layer's weight W₀ stays as it is, and what is learned is a product of two small matrices,

    W = W₀ + (α / r) B A,      A: r × inputs,  normal at the start,      B: outputs × r,  0 at the start.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from lightning_meta.arguments import check_count, check_rate


class LowRankUpdate(nn.Module):
    """Adds ``(alpha / rank) B A`` to a weight.

    Args:
        weight: The weight, ``[outputs, inputs]``, for the shape, type and device.
        rank: r.
        alpha: α.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = alpha / rank
        self.low_rank_a = nn.Parameter(torch.randn_like(weight[:1].expand(rank, inputs)) / inputs**0.5)
        self.low_rank_b = nn.Parameter(torch.zeros_like(weight[:, :1].expand(outputs, rank)))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight, ``[outputs, inputs]``."""
        return torch.addmm(weight, self.low_rank_b, self.low_rank_a, alpha=self.scale)


class LowRankAdapted(nn.Module):
    """A model whose linear layers have low-rank updates (Hu et al., 2022), in place of `add_low_rank_adapters`.

    Being made of arguments alone, it can be written in a configuration, and checkpoints of learners keep it. The
    updates are ``updates.NAME.low_rank_a`` and ``low_rank_b``, with "/" in place of the dots of the layer's name:
    learners that take ``adapt=["updates.*"]`` adapt them alone. Learners that need a linear layer at the end take
    ``nn.Sequential(LowRankAdapted(body), nn.Linear(features, outputs))``.

    Args:
        model: The model. Its parameters are frozen, in place, but for those that ``trained`` names.
        rank: The rank r of the updates.
        alpha: α; updates are scaled by α / r.
        targets: Patterns in shell style for the names of the layers, such as ``["*.query", "*.value"]``. Layers that
            are no `nn.Linear` are passed over.
        trained: Patterns for the names of parameters that stay trainable, such as ``"head.*"``; ``"*"`` for a model
            that is not pretrained.

    Raises:
        ValueError: If a number is out of its range, or a pattern matches nothing.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = LowRankAdapted(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), rank=2, targets="0")
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['updates.0.low_rank_a', 'updates.0.low_rank_b']
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int = 4,
        alpha: float = 8.0,
        targets: str | Sequence[str] = "*",
        trained: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        if isinstance(model, nn.Linear):
            raise ValueError(f"model={model!r} is itself the layer, which then has no name: pass nn.Sequential(model)")
        layers = _chosen_layers(model, rank, alpha, targets, trained)
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.trained = trained
        self.model = model
        self.updates = nn.ModuleDict(
            {name.replace(".", "/"): LowRankUpdate(layer.weight, rank, alpha) for name, layer in layers.items()}
        )

    def forward(self, *arguments: Any) -> Any:
        """Call the model with the updated weights."""
        weights = {}
        for key, update in self.updates.items():
            name = key.replace("/", ".")
            weights[f"{name}.weight"] = update(self.model.get_submodule(name).weight)
        # A weight that is also another layer's, such as an embedding's, is updated here alone.
        return functional_call(self.model, weights, arguments, tie_weights=False)


def add_low_rank_adapters(
    model: nn.Module,
    rank: int = 4,
    alpha: float = 8.0,
    targets: str | Sequence[str] = "*",
    trained: str | Sequence[str] = (),
) -> None:
    """Add low-rank adapters to linear layers (Hu et al., 2022), and freeze all other parameters.

    Learners then meta-learn and adapt the adapters alone. Their names end in ``low_rank_a`` and ``low_rank_b``. Call
    this before the learner is made.

    Args:
        model: The model, which is changed.
        rank: The rank r of the updates.
        alpha: α; updates are scaled by α / r.
        targets: Patterns in shell style for the names of the layers, such as ``["*.query", "*.value"]``. Layers that
            are no `nn.Linear` are passed over.
        trained: Patterns for the names of further parameters that stay trainable, such as ``"head.*"``.

    Raises:
        ValueError: If a number is out of its range, a pattern matches nothing, or a layer has adapters already.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> add_low_rank_adapters(model, rank=2, targets="0")
        >>> [name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad]
        ['low_rank_a', 'low_rank_b']
    """
    for layer in _chosen_layers(model, rank, alpha, targets, trained).values():
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, rank, alpha))


def _chosen_layers(
    model: nn.Module, rank: int, alpha: float, targets: str | Sequence[str], trained: str | Sequence[str]
) -> dict[str, nn.Linear]:
    """Return the layers to update by name, and freeze all parameters but those that ``trained`` names."""
    check_count("rank", rank)
    check_rate("alpha", alpha)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: layers[name] for name in _matching("targets", targets, layers)}
    for name, layer in chosen.items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"targets={targets!r}: the layer {name!r} is parametrized already")
    kept = set(_matching("trained", trained, dict(model.named_parameters())))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return chosen


def _matching(argument: str, patterns: str | Sequence[str], named: Mapping[str, object]) -> list[str]:
    """Return the names that patterns match, each once."""
    several = [patterns] if isinstance(patterns, str) else patterns
    for pattern in several:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(f"{argument}: the pattern {pattern!r} matches none of {', '.join(named)}")
    return [name for name in named if any(fnmatchcase(name, pattern) for pattern in several)]
