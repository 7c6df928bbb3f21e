"""MAML that adapts a part of the model.

Papers: Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020, arXiv 1909.09157 (ANIL);
Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021, arXiv 2008.08882.

Differences from the papers: none in the algorithm. Any other part can be adapted by ``MAML(adapt=[patterns])``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.likelihoods.losses import LossFunction


class ANIL(MAML):
    """Almost no inner loop: only the head adapts (``MAML(adapt="head")``).

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The inner learning rate.
        **options: As in `MAML`, without ``adapt``.
    """

    def __init__(
        self, model: nn.Module, loss_fn: nn.Module | LossFunction | None = None, inner_lr: float = 0.01, **options: Any
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, adapt="head", **options)


class BOIL(MAML):
    """Body only in the inner loop: all but the head adapts (``MAML(adapt="body")``).

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The inner learning rate.
        **options: As in `MAML`, without ``adapt``.
    """

    def __init__(
        self, model: nn.Module, loss_fn: nn.Module | LossFunction | None = None, inner_lr: float = 0.01, **options: Any
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, adapt="body", **options)
