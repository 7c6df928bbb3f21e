"""Baseline: an ordinary classifier's features, and a new linear layer for each task.

Paper: Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019, arXiv 1904.04232, section
3.2.

Training minimizes the cross-entropy of a linear classifier of all training classes on features f, without tasks:

    min over f, W_b, b_b of  mean over training examples of  cross-entropy(W_bᵀ f(x) + b_b, y)

For a task, f stays as it is, and a new linear layer W, b is fitted to the support set S by K gradient steps:

    min over W, b of  mean over S of  cross-entropy(Wᵀ f(x) + b, y)

Differences from the paper:
- The new layer starts from 0, so that a task has one result; the authors' starts from random numbers.
- Each step takes the whole support set; the authors' take 4 examples, for 100 epochs.
- Steps are of plain gradient descent without weight decay. The authors' momentum of 0.9, dampening of 0.9 and weight
  decay of 0.001 are near to ``inner_optimizer=Chain([WeightDecay(0.001)], Momentum(0.9))`` with a tenth of their rate.
- Batch normalization uses the statistics of the set at hand, in training and tasks, unless ``batch_statistics`` says
  otherwise; the authors' uses running ones in tasks.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.algorithms.transfer.fitted_head import FittedHeadLearner
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner.vectors import Vector
from lightning_meta.likelihoods import LossFunction


class Baseline(FittedHeadLearner):
    """The features of an ordinary classifier, and a linear layer fitted to each task (Chen et al., 2019).

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: The mean loss over examples, of training and of a task's layer; None: ``nn.CrossEntropyLoss()``.
        num_train_classes: The number of training classes; None: the learner is only evaluated.
        inner_lr: The learning rate of a task's layer.
        inner_steps: The steps that fit it, K.
        **options: As in `TransferLearner`, `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range. When training starts, if the data module serves tasks, or has
            another number of training classes.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from lightning_meta import Baseline, EpisodicDataModule, MLP
        >>> examples = torch.utils.data.TensorDataset(torch.randn(80, 8), torch.arange(80) % 4)
        >>> data = EpisodicDataModule(examples, ways=3, joint_batch_size=16)
        >>> learner = Baseline(MLP(8, 16), num_train_classes=data.num_train_classes)  # trained by trainer.fit
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each of a task's classes
        torch.Size([10, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        num_train_classes: int | None = None,
        inner_lr: float = 0.1,
        inner_steps: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(
            model, loss_fn, num_train_classes=num_train_classes, inner_lr=inner_lr, inner_steps=inner_steps, **options
        )

    def class_scores(self, meta: MetaParameters, head: Vector, features: Tensor) -> Tensor:
        """Return the linear classifier's scores, ``[examples, classes]``."""
        return F.linear(features, head["weight"], head["bias"])

    def initial_head(self, features: Tensor, support: Support) -> Vector:
        """Return zeros."""
        ways = support.y.shape[1]
        return {"weight": features.new_zeros(ways, features.shape[1]), "bias": features.new_zeros(ways)}
