"""Low-rank adapters.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. Section 4.1: a
linear layer's weight W₀ stays as it is, and what is learned is a product of two small matrices,

    W = W₀ + (α / r) B A,      A: r × inputs,  normal at the start,      B: outputs × r,  0 at the start.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
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
    check_count("rank", rank)
    check_rate("alpha", alpha)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = _matching("targets", targets, layers)
    for name in chosen:
        if parametrize.is_parametrized(layers[name]):
            raise ValueError(f"targets={targets!r}: the layer {name!r} is parametrized already")
    kept = set(_matching("trained", trained, dict(model.named_parameters())))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    for name in chosen:
        layer = layers[name]
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, rank, alpha))


def _matching(argument: str, patterns: str | Sequence[str], named: Mapping[str, object]) -> list[str]:
    """Return the names that patterns match, each once."""
    several = [patterns] if isinstance(patterns, str) else patterns
    for pattern in several:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(f"{argument}: the pattern {pattern!r} matches none of {', '.join(named)}")
    return [name for name in named if any(fnmatchcase(name, pattern) for pattern in several)]
