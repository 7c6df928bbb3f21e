"""Prototypical networks.

Paper: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv 1703.05175.

A class's prototype is the mean of its support examples' embeddings f (equation 1); a query's class probabilities are
the softmax of negative squared Euclidean distances to the prototypes (equation 2):

    c_k = mean of f(x) over the support examples of class k,        p(y = k | x) ∝ exp(−α ‖f(x) − c_k‖²)

The meta-loss is the negative log-likelihood of the queries (algorithm 1). The scale α is 1 in the paper. Oreshkin,
Rodriguez, Lacoste, "TADAM: Task Dependent Adaptive Metric for Improved Few-shot Learning", NeurIPS 2018, arXiv
1805.10123, equation 1, learn it.

Differences from the papers:
- None with the default scale of 1. To train with more ways than in tests, as the authors do, is the data module's
  choice.
- A learned scale is kept positive, as its logarithm is learned. TADAM's embedding that depends on the task is not here.
"""

from typing import Any

from torch import Tensor

from lightning_meta.algorithms.metric.scaled_scores import ScaledScores
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.learners.support_class_learner import without_absent


class ProtoNet(ScaledScores):
    """Prototypical networks (Snell et al., 2017): no inner steps, any number of ways.

    Arguments as in `ScaledScores` and `TaskLearner`. ``model`` embeds examples, ``[examples, ...]`` to ``[examples,
    features]``; ``scale`` multiplies the squared distances, and ``learn_scale`` learns it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import ProtoNet
        >>> learner = ProtoNet(nn.Linear(8, 16))
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each class
        torch.Size([10, 3])
    """

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[Tensor, Tensor]:
        """Return the prototypes ``[ways, features]``, and the number of examples behind each, ``[ways]``."""
        return self.prototypes(self.embeddings(meta, support.x), support)

    def query_output(self, meta: MetaParameters, state: tuple[Tensor, Tensor], x: Any) -> Tensor:
        """Return scaled negative squared distances to the prototypes, ``[query, ways]``; -inf for absent classes."""
        prototypes, counts = state
        features = self.embeddings(meta, x)  # [query, features]
        squared = (features[:, None] - prototypes).square().sum(2)  # [query, ways]
        return without_absent(self.scaled(meta, -squared), counts)
