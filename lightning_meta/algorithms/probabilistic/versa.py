"""VERSA: a network infers the distribution of a task's classifier.

Paper: Gordon, Bronskill, Bauer, Nowozin, Turner, "Meta-Learning Probabilistic Inference for Prediction", ICLR 2019,
arXiv 1805.09921.

The model embeds examples, f. For each class k an inference network, the same for all, maps the mean embedding of the
class's support examples to a Gaussian over the class's weight vector and bias, without looking at the other classes
(the paper's context-independent inference, section 3). So a task may have any number of classes:

    c_k = mean of f(x) over the support examples of class k,     q(w_k, b_k | S) = N(m(c_k), diag s²(c_k))
    p(y = k | x, ψ) ∝ exp(w_kᵀ f(x) + b_k),                      ψ = all w_k and b_k

The meta-loss is the negative logarithm of the posterior predictive likelihood, estimated by L draws (equation 4):

    mean over queries of −log (1/L Σ_l p(y | x, ψ_l)),           ψ_l ~ q(ψ | S)

There is no divergence from a prior: q is trained by the predictions that it makes.

Differences from the paper:
- A class's mean weight vector is the mean embedding c_k plus what the network adds to it, which starts near 0; the
  paper's network gives the weight vector itself. So training starts from a classifier by inner products with class
  means.
- One network with several outputs gives means and variances; the authors' code has four, of as many layers.
- Deviations start at ``initial_log_std``.
- Classification only; the paper also has a generator of pictures.

As in the authors' code, logits are drawn in place of weights (local reparameterization). Each query's logits have the
same distribution, and predictions the same mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.execution.functional import call_with
from lightning_meta.inner.solvers.ridge import full_precision
from lightning_meta.learners import PosteriorLearner, SupportClassLearner, module_part
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples, mean_output
from lightning_meta.models.feature_size import feature_size
from lightning_meta.models.features import single_or_double


class RandomClassifier(NamedTuple):
    """The distribution of one task's linear classifier.

    Attributes:
        mean: Means of the weights, and of the bias in the last column, ``[ways, features + 1]``.
        log_std: Their log standard deviations, of the same shape.
        counts: The number of support examples of each class, ``[ways]``.
    """

    mean: Tensor
    log_std: Tensor
    counts: Tensor


class VERSA(PosteriorLearner, SupportClassLearner):
    """Inferred random classifiers, for any number of ways (VERSA; Gordon et al., 2019).

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: ``nn.CrossEntropyLoss()``, or None, which is the same.
        num_samples: L, draws of the classifier in training.
        eval_num_samples: Draws of the classifier in evaluation.
        hidden: The size of the inference network's two hidden layers; None: ``num_features``.
        initial_log_std: The initial log standard deviation of weights and biases.
        num_features: The number of features that the model gives; None: the outputs of its last linear layer.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the loss is not the cross-entropy, or ``num_features`` is None
            and the model has no linear layer.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import VERSA
        >>> learner = VERSA(nn.Linear(8, 16))
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task.predict(torch.randn(10, 8)).mean.shape  # probabilities of the three classes
        torch.Size([10, 3])
    """

    is_stochastic = True

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        num_samples: int = 10,
        eval_num_samples: int = 32,
        hidden: int | None = None,
        initial_log_std: float = -2.0,
        num_features: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        if self.likelihood != "categorical":
            raise ValueError(f"loss_fn={loss_fn!r}: VERSA needs class labels, and so nn.CrossEntropyLoss()")
        arguments.check_count("num_samples", num_samples)
        arguments.check_count("eval_num_samples", eval_num_samples)
        arguments.check_optional_count("hidden", hidden)
        self.num_samples = num_samples
        self.eval_num_samples = eval_num_samples
        self.initial_log_std = initial_log_std
        self.num_features = feature_size(model, num_features, "infers a weight for each feature")
        self.inference = _inference_network(self.num_features, hidden or self.num_features).to(
            next(model.parameters(), torch.zeros(()))
        )

    def adapt_task(self, meta: MetaParameters, support: Support) -> RandomClassifier:
        """Return the distribution of the task's classifier."""
        features = self._features(meta, support.x)
        with full_precision(features.device):
            prototypes, counts = self.prototypes(features, support)
        network = module_part(meta, "inference")
        inferred = call_with(self.inference, network, prototypes.to(network["0.weight"].dtype))
        added, log_std = inferred.to(prototypes.dtype).chunk(2, dim=1)
        return RandomClassifier(added + F.pad(prototypes, (0, 1)), log_std + self.initial_log_std, counts)

    def query_samples(self, meta: MetaParameters, state: RandomClassifier, x: Any) -> Samples:
        """Return draws of logits, ``[eval_num_samples, query, ways]``; -inf for classes without support examples."""
        return self._draw(meta, state, x, self.eval_num_samples)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the queries' mean negative log-likelihood under ``num_samples`` draws, and the report."""
        samples = self._draw(meta, self.adapt_task(meta, task.support), task.query_x, self.num_samples)
        loss = self.predictive_nll(samples, task.query_y, task.query_mask)
        output = mean_output(self.likelihood, samples)
        return loss, TaskResult(loss, output[None], loss.new_zeros(0))

    def _draw(self, meta: MetaParameters, state: RandomClassifier, x: Any, count: int) -> Samples:
        features = F.pad(self._features(meta, x), (0, 1), value=1.0)  # [query, features + 1]
        with full_precision(features.device):
            mean = features @ state.mean.mT  # [query, ways]
            variance = features.square() @ (2 * state.log_std).exp().mT
        # The small constant keeps the derivative of the root finite if the variance is 0.
        deviation = (variance + torch.finfo(variance.dtype).tiny ** 0.5).sqrt()
        noise = torch.randn(count, *mean.shape, dtype=mean.dtype, device=mean.device)
        return Samples(without_absent(mean + deviation * noise, state.counts))

    def _features(self, meta: MetaParameters, x: Any) -> Tensor:
        features = self.embeddings(meta, x, self.num_features)
        return features.to(single_or_double(features.dtype))  # squares overflow in half precision


def _inference_network(features: int, hidden: int) -> nn.Sequential:
    """Return the network of one class's mean embedding; its outputs are close to 0 at first."""
    last = nn.Linear(hidden, 2 * (features + 1))
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()
    return nn.Sequential(nn.Linear(features, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), last)
