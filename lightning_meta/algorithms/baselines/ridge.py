"""Ridge regression of each task alone.

With examples (x, y) of the support set, weights W and an intercept b without penalty (Hoerl, Kennard, 1970):

    min over W, b of  Σ ‖y − Wᵀ x − b‖² + λ ‖W‖²
"""

import torch
from torch import Tensor

from lightning_meta.algorithms.baselines.linear import LinearClassifier, LinearRegressor
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner.solvers.affine_ridge import affine_ridge


class RidgeRegression(LinearRegressor):
    """Ridge regression on each task's support set, on flattened inputs or on a frozen model's features.

    Arguments as in `LinearRegressor`.

    Example:
        >>> import torch
        >>> from lightning_meta.algorithms.baselines import RidgeRegression
        >>> task = RidgeRegression(penalty=0.1).adapt(torch.randn(10, 3), torch.randn(10, 1))
        >>> task(torch.randn(4, 3)).shape
        torch.Size([4, 1])
    """

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[Tensor, Tensor]:
        """Return the weight, ``[features, ...]``, and the intercept, of a target's shape."""
        features, shape = self.features(meta, support.x), support.y.shape[1:]
        targets = support.y.reshape(len(support.y), -1).to(features.dtype)  # [support, outputs]
        weight, intercept = affine_ridge(features, targets, support.mask, self.penalty)
        return weight.reshape(-1, *shape), intercept.reshape(shape)

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of a target."""
        return support.y.shape[2:]


class RidgeClassifier(LinearClassifier):
    """Ridge regression on each task's one-hot labels, for any number of ways.

    A query's class is that of the highest output. Outputs are close to 0 and 1, and so give too even probabilities: the
    accuracy is to be compared, not the loss. Arguments as in `FeatureLearner`; λ is on the scale of a sum of squares
    over examples.
    """

    def solve(self, features: Tensor, one_hot: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight ``[features, ways]`` and intercept ``[ways]``."""
        return affine_ridge(features, one_hot, mask, self.penalty)
