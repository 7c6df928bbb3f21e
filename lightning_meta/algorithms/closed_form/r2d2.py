"""R2-D2: ridge regression on a learned embedding, solved in closed form.

Paper: Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with Differentiable Closed-form Solvers", ICLR 2019, arXiv
1805.08136, section 3.2.

With X the support set's embeddings, ``[support, features]``, and Y its targets, one-hot rows for classes, a task's head
is the ridge regression

    W = argmin ‖X W − Y‖² + λ ‖W‖² = (XᵀX + λ I)⁻¹ XᵀY = Xᵀ (X Xᵀ + λ I)⁻¹ Y

The right-hand form (Woodbury) is a system as large as the support set; with more examples than features the other one
is solved. The output on queries X' is ``α X' W + β``. The embedding, λ, α and β are learned by the derivative of the
query loss through the solution: no second derivative of the embedding is needed.

Differences from the paper:
- X has a constant column, so that W has an intercept, with the same penalty; the authors' code adds one too.
- The authors' code divides X and Y by the root of the number n of examples, so that its λ is worth n λ in the equation;
  here λ is the equation's, whatever n is. Their code keeps λ fixed unless told otherwise.
- λ and α are learned by their logarithms, and stay positive.
- Real targets are regressed on as they are.

With a cross-entropy over classes β has no effect, as it is the same for all classes.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_rate
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner.solvers.ridge import full_precision, ridge
from lightning_meta.learners import SupportClassLearner
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.losses import takes_class_labels
from lightning_meta.models.features import single_or_double


class RidgeHead(NamedTuple):
    """One task's head.

    Attributes:
        weight: W, ``[features + 1, outputs]``; its last row is the intercept.
        counts: The number of support examples of each class, ``[ways]``; None for real targets.
    """

    weight: Tensor
    counts: Tensor | None


class R2D2(SupportClassLearner):
    """A ridge regression on a learned embedding (R2-D2; Bertinetto et al., 2019): no inner steps, any number of ways.

    The loss tells what targets are: class labels for ``nn.CrossEntropyLoss``, real numbers of any shape for
    ``nn.MSELoss`` and the like. Also logged in training: ``train/ridge_penalty``, λ, and ``train/output_scale``, α.

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        ridge_penalty: The initial value of λ, for a sum of squares over examples.
        output_scale: The initial value of α; None: 10 for classes, 1 for real targets.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import R2D2
        >>> learner = R2D2(nn.Linear(8, 16))
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each class
        torch.Size([10, 3])
    """

    diagnostic_names = ("ridge_penalty", "output_scale")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        ridge_penalty: float = 1.0,
        output_scale: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        check_rate("ridge_penalty", ridge_penalty)
        self.takes_classes = takes_class_labels(self.loss_fn)
        if output_scale is None:
            output_scale = 10.0 if self.takes_classes else 1.0
        check_rate("output_scale", output_scale)
        like = next(model.parameters(), torch.zeros(()))
        self.log_penalty = nn.Parameter(like.new_tensor(math.log(ridge_penalty)))
        self.log_scale = nn.Parameter(like.new_tensor(math.log(output_scale)))
        self.shift = nn.Parameter(like.new_tensor(0.0))

    def prepare_support(self, support: Support) -> Support:
        """Return the support set with one-hot labels, or with its real targets."""
        return super().prepare_support(support) if self.takes_classes else support

    def output_shape(self, support: Support) -> torch.Size:
        """Return ``[ways]``, or the shape of a target."""
        return super().output_shape(support) if self.takes_classes else support.y.shape[2:]

    def adapt_task(self, meta: MetaParameters, support: Support) -> RidgeHead:
        """Return the head that solves the support set."""
        features = self._features(meta, support.x)  # [support, features + 1]
        if self.takes_classes:
            targets = self.one_hot(support, features.dtype)  # [support, ways]
        else:
            targets = support.y.reshape(len(support.y), -1).to(features.dtype)  # [support, outputs]
        if support.mask is not None:  # rows of zeros do not change the solution
            features, targets = (torch.where(support.mask[:, None], rows, 0) for rows in (features, targets))
        start = features.new_zeros(features.shape[1], targets.shape[1])
        weight = ridge(features, targets, meta["log_penalty"].exp(), start).weight
        if self.takes_classes:
            return RidgeHead(weight, targets.sum(0))
        return RidgeHead(weight.reshape(-1, *support.y.shape[1:]), None)

    def query_output(self, meta: MetaParameters, state: RidgeHead, x: Any) -> Tensor:
        """Return scores ``[query, ways]``, -inf for classes without support examples; or outputs ``[query, ...]``."""
        features = self._features(meta, x)  # [query, features + 1]
        with full_precision(features.device):
            output = torch.tensordot(features, state.weight, dims=1)  # [query, ...]
        output = meta["log_scale"].exp() * output + meta["shift"]
        return output if state.counts is None else without_absent(output, state.counts)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the query loss under the solved head, and the report."""
        loss, result = super().task_loss(meta, task)
        learned = {"ridge_penalty": meta["log_penalty"].exp(), "output_scale": meta["log_scale"].exp()}
        return loss, result._replace(diagnostics=learned)

    def _features(self, meta: MetaParameters, x: Any) -> Tensor:
        """Return embeddings with a constant for the intercept, ``[examples, features + 1]``."""
        features = self.embeddings(meta, x)
        # Half precision cannot be solved in.
        features = features.to(single_or_double(meta["log_penalty"].dtype))
        return torch.cat([features, features.new_ones(features.shape[0], 1)], dim=1)
