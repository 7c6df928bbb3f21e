"""Ridge regression of each task alone.

With examples (x, y) of the support set, weights W and an intercept b without penalty (Hoerl, Kennard, 1970):

    min over W, b of  Σ ‖y − Wᵀ x − b‖² + λ ‖W‖²
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.baselines.features import FeatureLearner
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner.solvers.affine_ridge import affine_ridge
from lightning_meta.learners import SupportClassLearner
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction


class RidgeRegression(FeatureLearner):
    """Ridge regression on each task's support set, on flattened inputs or on a frozen model's features.

    Args:
        model: Gives the features; its parameters are frozen, in place. None: the inputs, flattened.
        loss_fn: The loss to report; None: ``nn.MSELoss()``.
        penalty: λ, on the scale of a sum of squares over examples.
        **options: As in `TaskLearner`.

    Example:
        >>> import torch
        >>> from lightning_meta.algorithms.baselines import RidgeRegression
        >>> task = RidgeRegression(penalty=0.1).adapt(torch.randn(10, 3), torch.randn(10, 1))
        >>> task(torch.randn(4, 3)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        loss_fn: nn.Module | LossFunction | None = None,
        penalty: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, nn.MSELoss() if loss_fn is None else loss_fn, penalty, **options)

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[Tensor, Tensor]:
        """Return the weight, ``[features, ...]``, and the intercept, of a target's shape."""
        features, shape = self.features(meta, support.x), support.y.shape[1:]
        targets = support.y.reshape(len(support.y), -1).to(features.dtype)  # [support, outputs]
        weight, intercept = affine_ridge(features, targets, support.mask, self.penalty)
        return weight.reshape(-1, *shape), intercept.reshape(shape)

    def query_output(self, meta: MetaParameters, state: tuple[Tensor, Tensor], x: Any) -> Tensor:
        """Return predictions ``[query, ...]``."""
        weight, intercept = state
        return torch.tensordot(self.features(meta, x), weight, 1) + intercept

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of a target."""
        return support.y.shape[2:]


class RidgeClassifier(FeatureLearner, SupportClassLearner):
    """Ridge regression on each task's one-hot labels, for any number of ways.

    A query's class is that of the highest output. Outputs are close to 0 and 1, and so give too even probabilities: the
    accuracy is to be compared, not the loss. Arguments as in `FeatureLearner`; λ is on the scale of a sum of squares
    over examples.
    """

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight ``[features, ways]``, intercept ``[ways]`` and the number of examples ``[ways]``."""
        features = self.features(meta, support.x)
        one_hot = self.one_hot(support, features.dtype)
        return *affine_ridge(features, one_hot, support.mask, self.penalty), one_hot.sum(0)

    def query_output(self, meta: MetaParameters, state: tuple[Tensor, Tensor, Tensor], x: Any) -> Tensor:
        """Return scores ``[query, ways]``; -inf for classes without examples."""
        weight, intercept, counts = state
        return without_absent(self.features(meta, x) @ weight + intercept, counts)
