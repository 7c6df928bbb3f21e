"""Matching networks.

Paper: Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot Learning", NeurIPS 2016,
arXiv 1606.04080, section 2.1.

A query's class probabilities are a weighted vote of the support examples (equation 1). The weights are the softmax of
cosines c between embeddings f (section 2.1.1):

    p(y = k | x, S) = Σ_i a(x, x_i) [y_i = k],        a(x, x_i) = exp(α c(f(x), f(x_i))) / Σ_j exp(α c(f(x), f(x_j)))

The meta-loss is the negative log-likelihood of the queries (equation 6). The scale α is 1 in the paper.

Differences from the paper:
- Queries and support examples have the same embedding, as in the paper's experiments without full context.
- Full-context embeddings (section 2.1.2), by which LSTMs let an embedding depend on the whole support set, are not
  here.
- The scale α can be another number, or learned. With 1 no query is sure: of 5 classes with one example each, the most
  probable has at most exp(1) / (exp(1) + 4 exp(−1)) = 0.65. The code of Chen et al. (2019) takes 100, and cuts
  negative cosines to 0.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.algorithms.metric.scaled_scores import ScaledScores
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.models.features import cosines


class EmbeddedSupport(NamedTuple):
    """A support set as the queries see it.

    Attributes:
        features: The examples' embeddings, ``[support, features]``.
        one_hot: Their labels as one-hot rows, ``[support, ways]``; the rows of padding are 0.
    """

    features: Tensor
    one_hot: Tensor


class MatchingNet(ScaledScores):
    """Matching networks (Vinyals et al., 2016): support examples vote by their similarity, for any number of ways.

    Arguments as in `ScaledScores` and `TaskLearner`. ``model`` embeds examples, ``[examples, ...]`` to ``[examples,
    features]``; ``scale`` multiplies the cosines, and ``learn_scale`` learns it. Outputs are log-probabilities.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import MatchingNet
        >>> learner = MatchingNet(nn.Linear(8, 16), scale=10.0)
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # the logarithm of each class's probability
        torch.Size([10, 3])
    """

    def adapt_task(self, meta: MetaParameters, support: Support) -> EmbeddedSupport:
        """Return the embedded support set."""
        features = self.embeddings(meta, support.x)  # [support, features]
        return EmbeddedSupport(features, self.one_hot(support, features.dtype))

    def query_output(self, meta: MetaParameters, state: EmbeddedSupport, x: Any) -> Tensor:
        """Return the logarithms of the classes' probabilities, ``[query, ways]``; -inf for absent classes."""
        features = self.embeddings(meta, x)  # [query, features]
        scores = self.scaled(meta, cosines(features, state.features))[:, None]  # [query, 1, support]
        counts = state.one_hot.sum(0)  # [ways]
        # An absent class gets all examples: a sum over none would have no gradient, and its score is dropped below.
        votes = (state.one_hot.mT > 0) | (counts == 0)[:, None]  # [ways, support]
        by_class = torch.where(votes, scores, -torch.inf).logsumexp(2)  # [query, ways]
        scores = without_absent(by_class, counts)
        return scores.log_softmax(1)
