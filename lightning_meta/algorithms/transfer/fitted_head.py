"""`FittedHeadLearner`: the base of transfer learners that fit a new head to each task by gradient descent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import grad_and_value

from lightning_meta.algorithms.transfer.transfer_learner import TransferLearner
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner import InnerStep
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import GradientLearner
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.models.features import single_or_double


class FittedTask(NamedTuple):
    """One task's head.

    Attributes:
        head: ``weight`` ``[ways, features]`` and, if the head has one, ``bias`` ``[ways]``.
        counts: The number of support examples of each class, ``[ways]``.
    """

    head: Vector
    counts: Tensor


class FittedHeadLearner(TransferLearner, GradientLearner):
    """Base of transfer learners whose head is fitted to the support set by steps on its mean loss.

    A new algorithm implements `class_scores` and `initial_head`. Arguments and errors as in `TransferLearner`,
    `GradientLearner` and `TaskLearner`; inner steps are those of evaluation, as training has none.
    """

    @abstractmethod
    def initial_head(self, features: Tensor, support: Support) -> Vector:
        """Return the head before the first step.

        Args:
            features: The support set's features, ``[support, features]``.
            support: The task's support set, as per-task functions get it.
        """

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the head after 0, 1, ..., ``steps`` steps of gradient descent on the support loss."""
        features = self._wide_features(meta, support.x)
        counts, labels = self.one_hot(support, features.dtype).sum(0), support.y.argmax(1)  # [ways], [support]
        head = self.initial_head(features, support)

        def support_loss(head: Vector) -> Tensor:
            scores = without_absent(self.class_scores(meta, head, features), counts)
            return self.loss(scores, labels, support.mask)

        rates, state = dict.fromkeys(head, self.inner_lr), self.inner_optimizer.init(head)
        yield InnerStep(FittedTask(head, counts), None)
        for step in range(steps):
            gradients, loss = grad_and_value(support_loss)(head)
            head, state = self.inner_optimizer.update(head, gradients, state, rates, step)
            yield InnerStep(FittedTask(head, counts), loss)

    def query_output(self, meta: MetaParameters, state: FittedTask, x: Any) -> Tensor:
        """Return the head's scores, ``[query, ways]``; -inf for classes without support examples."""
        return without_absent(self.class_scores(meta, state.head, self._wide_features(meta, x)), state.counts)

    def _wide_features(self, meta: MetaParameters, x: Any) -> Tensor:
        features = self.features(meta, x)
        return features.to(single_or_double(features.dtype))  # half precision would round small steps away
