"""Logistic regression of each task alone.

With examples (x, y) of the support set, and features centered by their mean x̄:

    min over W, b of  Σ cross-entropy(Wᵀ (x − x̄) + b, y) + ½ λ (‖W‖² + ‖b‖² / 100)

It is the linear classifier on frozen features of Tian, Wang, Krishnan, Tenenbaum, Isola, "Rethinking Few-Shot Image
Classification: A Good Embedding Is All You Need?", ECCV 2020, arXiv 2003.11539, without their normalization of features
(an `nn.Module` at the model's end can do it).
"""

from torch import Tensor

from lightning_meta.algorithms.baselines.linear import LinearClassifier
from lightning_meta.inner.solvers.logistic import logistic_regression


class LogisticRegression(LinearClassifier):
    """L2-penalized multinomial logistic regression on each task's support set, for any number of ways.

    Solved to convergence by Newton steps, see `lightning_meta.inner.solvers.logistic`; the intercept has a hundredth of
    the weights' penalty. Arguments as in `FeatureLearner`; λ is on the scale of a sum of losses over examples: it is
    ``1 / C`` of scikit-learn.

    Example:
        >>> import torch
        >>> from lightning_meta.algorithms.baselines import LogisticRegression
        >>> task = LogisticRegression().adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each class
        torch.Size([10, 3])
    """

    def solve(self, features: Tensor, one_hot: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight ``[features, ways]`` and intercept ``[ways]``."""
        return logistic_regression(features, one_hot, mask, self.penalty)
