"""The bases of the linear models among the baselines."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.baselines.features import FeatureLearner
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.learners import SupportClassLearner
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction


class LinearRegressor(FeatureLearner):
    """Base of linear regressions; a derived class implements `adapt_task`, which returns weight and intercept.

    Args:
        model: Gives the features; its parameters are frozen, in place. None: the inputs, flattened.
        loss_fn: The loss to report; None: ``nn.MSELoss()``.
        penalty: λ, on the scale of a sum of squares over examples.
        **options: As in `TaskLearner`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        loss_fn: nn.Module | LossFunction | None = None,
        penalty: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, nn.MSELoss() if loss_fn is None else loss_fn, penalty, **options)

    def query_output(self, meta: MetaParameters, state: tuple[Tensor, Tensor], x: Any) -> Tensor:
        """Return predictions ``[query, ...]``."""
        weight, intercept = state
        return torch.tensordot(self.features(meta, x), weight, 1) + intercept


class LinearClassifier(FeatureLearner, SupportClassLearner):
    """Base of linear classifiers of a task's support set, for any number of ways; a derived class implements `solve`.

    Arguments as in `FeatureLearner`.
    """

    @abstractmethod
    def solve(self, features: Tensor, one_hot: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight ``[features, ways]`` and intercept ``[ways]``.

        Args:
            features: ``[support, features]``.
            one_hot: Labels as one-hot rows, ``[support, ways]``; those of padding are 0.
            mask: ``[support]``, True where an example counts, or None.
        """

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight ``[features, ways]``, intercept ``[ways]`` and the number of examples ``[ways]``."""
        features = self.features(meta, support.x)
        one_hot = self.one_hot(support, features.dtype)
        return *self.solve(features, one_hot, support.mask), one_hot.sum(0)

    def query_output(self, meta: MetaParameters, state: tuple[Tensor, Tensor, Tensor], x: Any) -> Tensor:
        """Return scores ``[query, ways]``; -inf for classes without examples."""
        weight, intercept, counts = state
        return without_absent(self.features(meta, x) @ weight + intercept, counts)
