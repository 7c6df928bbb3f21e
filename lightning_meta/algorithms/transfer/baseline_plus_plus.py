"""Baseline++: as Baseline, with cosines in place of inner products.

Paper: Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019, arXiv 1904.04232, section
3.2.

The classifier of the training classes, and the layer that is fitted to a task, score a class by the cosine between the
features f(x) and a weight vector of the class:

    s_k = α f(x)ᵀ w_k / (‖f(x)‖ ‖w_k‖)

Training minimizes the cross-entropy of the softmax of s over all training classes, which reduces the variation within a
class; for a task, f stays as it is, and new vectors w are fitted to the support set by K gradient steps.

Differences from the paper:
- The new vectors start from the means of their class's features of length 1; the authors' from random numbers. Before
  the first step a task's classifier is thus the nearest class mean by cosine.
- Each step takes the whole support set; the authors' take 4 examples, for 100 epochs.
- Steps are of plain gradient descent without weight decay, as in `Baseline`.
- The scale α is 10, or learned with ``learn_scale``. The paper does not name it; the authors' code has 2 for up to 200
  classes and 10 for more, times a learned length for each class.
- Batch normalization as in `Baseline`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_meta.algorithms.metric.scaled_scores import ScaledScores
from lightning_meta.algorithms.transfer.fitted_head import FittedHeadLearner
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner.vectors import Vector
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.features import cosines, unit_length


class BaselinePlusPlus(FittedHeadLearner, ScaledScores):
    """The features of a classifier by cosines, and such a classifier fitted to each task (Chen et al., 2019).

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: The mean loss over examples, of training and of a task's vectors; None: ``nn.CrossEntropyLoss()``.
        num_train_classes: The number of training classes; None: the learner is only evaluated.
        inner_lr: The learning rate of a task's vectors.
        inner_steps: The steps that fit them, K.
        scale: α, what cosines are multiplied by.
        **options: As in `ScaledScores`, `TransferLearner`, `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range. When training starts, if the data module serves tasks, or has
            another number of training classes.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import BaselinePlusPlus
        >>> learner = BaselinePlusPlus(nn.Linear(8, 16), num_train_classes=90)
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each of a task's classes
        torch.Size([10, 3])
    """

    has_bias = False

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        num_train_classes: int | None = None,
        inner_lr: float = 0.1,
        inner_steps: int = 100,
        scale: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(
            model,
            loss_fn,
            num_train_classes=num_train_classes,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            scale=scale,
            **options,
        )

    def class_scores(self, meta: MetaParameters, head: Vector, features: Tensor) -> Tensor:
        """Return the scaled cosines, ``[examples, classes]``."""
        return self.scaled(meta, cosines(features, head["weight"]))

    def initial_head(self, features: Tensor, support: Support) -> Vector:
        """Return the means of each class's features of length 1."""
        return {"weight": self.prototypes(unit_length(features), support)[0]}
