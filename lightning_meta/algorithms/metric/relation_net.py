"""Relation networks.

Paper: Sung, Yang, Zhang, Xiang, Torr, Hospedales, "Learning to Compare: Relation Network for Few-Shot Learning", CVPR
2018, arXiv 1711.06025, section 3.

A network g scores how well a query belongs to a class, from their features side by side. A class's features are the sum
over its support examples (equation 1, and "K-shot" below it):

    r_k(x) = sigmoid g([Σ of f(x_i) over the support examples of class k, f(x)])

The scores are regressed on 1 for the query's class and 0 for the others (equation 2), by squared error, not by
cross-entropy. What minimizes it is r_k(x) = p(y = k | x).

Outputs are log r_k, so that their softmax, r_k / Σ_j r_j, is what the scores estimate. Losses, accuracy and uncertainty
in validation and test are those of this distribution.

Differences from the paper:
- The squared error is the mean over classes and queries, as in the authors' code; the paper has the sum. Adam
  does not see the constant factor.
- The default network averages over positions before its last two layers, which fits maps of any size from 4 × 4; the
  authors' takes all positions. For features that are vectors, as those of texts, it has one hidden layer.
- ``meta_loss="loss_fn"`` trains on the loss of the outputs instead, cross-entropy by default.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_module
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.execution.functional import call_with
from lightning_meta.learners import SupportClassLearner, module_part
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.batch_statistics import (
    check_normalization,
    dropped_buffers,
    has_batch_statistics,
    set_statistics_mode,
)
from lightning_meta.models.relation import relation_for

RelationLoss = Literal["regression", "loss_fn"]


class RelationNet(SupportClassLearner):
    """Relation networks (Sung et al., 2018): a learned comparison of queries and classes, for any number of ways.

    Args:
        model: Embeds examples, ``[examples, ...]`` to vectors ``[examples, features]`` or maps ``[examples, channels,
            height, width]``.
        loss_fn: The loss of validation and test, of outputs ``[query, ways]`` and labels; None:
            ``nn.CrossEntropyLoss()``.
        relation: Scores pairs of a class's and a query's features, ``[pairs, 2 * features]`` or ``[pairs, 2 * channels,
            height, width]`` with the class's first, before the sigmoid: ``[pairs]`` or ``[pairs, 1]``. None: by the
            model's last layer, `RelationConv` for a convolution and `RelationMLP` for a linear layer.
        meta_loss: What training minimizes: "regression", the squared error of the scores, or "loss_fn".
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, or ``relation`` is None and the model has no such layer, or
            turns the maps of a convolution into vectors.
        TypeError: If model or relation have layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import RelationNet
        >>> learner = RelationNet(nn.Linear(8, 16))
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # the logarithm of a score for each class
        torch.Size([10, 3])
    """

    ignores_labels = False
    # The relation module may normalize over pairs, those of padding included.
    requires_unpadded = True
    modules_with_statistics = ("model", "relation")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        relation: nn.Module | None = None,
        meta_loss: RelationLoss = "regression",
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        check_choice("meta_loss", meta_loss, RelationLoss)
        if relation is None:
            relation = relation_for(model)
            like = next(model.parameters(), None)
            relation = relation if like is None else relation.to(like)
        check_module("relation", relation)
        check_normalization(relation, "batch", "relation")
        self._relation_buffers = dropped_buffers(relation, "batch")
        if self.batch_statistics == "running" and (self._relation_buffers or has_batch_statistics(relation)):
            raise ValueError(
                'batch_statistics="running", but the relation module has batch normalization or running statistics, '
                'and it normalizes by those of the pairs at hand: use "batch" or "support", or a relation module '
                "without them"
            )
        set_statistics_mode(relation, "batch")
        self.relation = relation
        self._keep_frozen("relation")
        self.meta_loss = meta_loss

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[Tensor, Tensor]:
        """Return the sum of each class's features ``[ways, ...]``, and its number of examples, ``[ways]``."""
        features = self.call_model(self.model_parameters(meta), support.x)  # [support, ...]
        one_hot = self.one_hot(support, features.dtype)  # [support, ways]
        return torch.tensordot(one_hot.mT, features, dims=1), one_hot.sum(0)

    def query_output(self, meta: MetaParameters, state: tuple[Tensor, Tensor], x: Any) -> Tensor:
        """Return the logarithms of the relation scores, ``[query, ways]``; -inf for classes without examples."""
        classes, counts = state
        features = self.call_model(self.model_parameters(meta), x)  # [query, ...]
        shape = (features.shape[0], *classes.shape)  # [query, ways, ...]
        pairs = torch.cat([classes[None].expand(shape), features[:, None].expand(shape)], dim=2)
        parameters = {**module_part(meta, "relation"), **self._relation_buffers}
        scores = call_with(self.relation, parameters, pairs.flatten(0, 1))  # [query * ways]
        if scores.numel() != shape[0] * shape[1]:
            raise ValueError(
                f"relation gives {tuple(scores.shape)} for {shape[0] * shape[1]} pairs: it must give one score for each"
            )
        return without_absent(F.logsigmoid(scores.reshape(shape[:2])), counts)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the squared error of the queries' relation scores, or their loss, and the report."""
        if self.meta_loss == "loss_fn":
            return super().task_loss(meta, task)
        classes, counts = self.adapt_task(meta, task.support)
        output = self.query_output(meta, (classes, counts), task.query_x)  # [query, ways]
        targets = task.query_y  # class probabilities, or labels
        if not targets.is_floating_point():
            targets = targets[:, None] == torch.arange(output.shape[1], device=output.device)  # [query, ways]
        errors = torch.where(counts > 0, (output.exp() - targets.to(output.dtype)).square(), 0)
        loss = (errors.sum(1) / (counts > 0).sum()).mean()
        return loss, TaskResult(loss, output[None], loss.new_zeros(0))
