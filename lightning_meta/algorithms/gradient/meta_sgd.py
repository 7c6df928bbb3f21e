"""MAML that learns its inner rates element by element.

Paper: Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017, arXiv 1707.09835:
φ = θ − α ∘ ∇L_S(θ) (equation 4), with θ and the vector α learned together.

Differences from the paper: α starts at a constant, not at random values; several steps share one α.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.likelihoods.losses import LossFunction


class MetaSGD(MAML):
    """MAML with a learned inner rate for every scalar parameter, starting at ``inner_lr``.

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The inner learning rate.
        **options: As in `MAML`, without ``learned_rates``.
    """

    def __init__(
        self, model: nn.Module, loss_fn: nn.Module | LossFunction | None = None, inner_lr: float = 0.01, **options: Any
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, learned_rates="element", **options)
