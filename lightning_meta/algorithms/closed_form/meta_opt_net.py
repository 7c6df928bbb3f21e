"""MetaOptNet: a convex linear classifier on a learned embedding, solved exactly.

Paper: Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR 2019, arXiv
1904.03758.

With x the support set's embeddings and y its labels, a task's head is the multi-class support vector machine of
Crammer and Singer (section 3.2),

    min over w, ξ of  ½ Σ_k ‖w_k‖² + C Σ_i ξ_i,      w_{y_i}ᵀ x_i − w_kᵀ x_i ≥ 1 − δ_{k y_i} − ξ_i

solved in the dual, a quadratic program whose size does not depend on the number of features; or ridge regression on
one-hot labels. A query's logits are ``γ w_kᵀ x`` with a learned scale γ, and the meta-loss is their cross-entropy
(section 3.3). The embedding is learned by the derivative of the conditions that define the solution: it is exact, and
independent of how the program was solved.

Differences from the paper:
- The authors stop a generic solver of quadratic programs after at most 20 steps, in single precision. Here each task
  takes ``solver_steps`` steps of an interior-point method that uses the structure of the program, in double precision
  where the device has it, and the duality gap is logged.
- γ is learned by its logarithm, and stays positive.
- The scores of the authors' ridge head are twice those of ridge regression; γ makes up for it.
- The authors smooth labels, and have 15 support examples of each class in training, fewer in tests: these are
  ``loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1)`` and the data module's choices.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_count, check_rate
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner.solvers.ridge import full_precision, ridge
from lightning_meta.inner.solvers.support_vectors import support_vectors
from lightning_meta.learners import SupportClassLearner
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.features import single_or_double

# The relative duality gap above which training warns.
_FAR_FROM_SOLVED = 1e-3

ConvexHead = Literal["svm", "ridge"]


class LinearHead(NamedTuple):
    """One task's head.

    Attributes:
        weight: w, ``[features, ways]``.
        counts: The number of support examples of each class, ``[ways]``.
        gap: The duality gap of a support vector machine, relative to its objective, a scalar; 0 for ridge regression.
    """

    weight: Tensor
    counts: Tensor
    gap: Tensor


class MetaOptNet(SupportClassLearner):
    """A support vector machine on a learned embedding (MetaOptNet; Lee et al., 2019), for any number of ways.

    Also logged in training: ``train/output_scale``, γ; with a support vector machine ``train/duality_gap``, relative to
    the objective. Training warns once if the mean gap of a batch exceeds 0.001: the derivative is that of the solution,
    and may then be off.

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        head: "svm", the support vector machine, or "ridge", ridge regression on one-hot labels.
        svm_cost: C, the cost of violated margins; the authors' value is the default.
        ridge_penalty: The penalty of "ridge", for a sum of squares over examples; the authors' value is the default.
        output_scale: The initial value of γ.
        solver_steps: Interior-point steps of "svm". 15 suffice while C times the features' squared norm is below a
            thousand or so.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import MetaOptNet
        >>> learner = MetaOptNet(nn.Linear(8, 16))
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each class
        torch.Size([10, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        head: ConvexHead = "svm",
        svm_cost: float = 0.1,
        ridge_penalty: float = 50.0,
        output_scale: float = 1.0,
        solver_steps: int = 15,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        check_choice("head", head, ConvexHead)
        check_count("solver_steps", solver_steps)
        for name, value in {"svm_cost": svm_cost, "ridge_penalty": ridge_penalty, "output_scale": output_scale}.items():
            check_rate(name, value)
        self.head = head
        self.svm_cost = svm_cost
        self.ridge_penalty = ridge_penalty
        self.solver_steps = solver_steps
        like = next(model.parameters(), torch.zeros(()))
        self.log_scale = nn.Parameter(like.new_tensor(math.log(output_scale)))
        self._warned = False

    @property
    def diagnostic_names(self) -> tuple[str, ...]:
        """The scale, and of the support vector machine how far its solution is from the optimum."""
        return ("output_scale", "duality_gap") if self.head == "svm" else ("output_scale",)

    def adapt_task(self, meta: MetaParameters, support: Support) -> LinearHead:
        """Return the head that solves the support set."""
        features = self._features(meta, support.x)  # [support, features]
        one_hot = self.one_hot(support, features.dtype)  # [support, ways]
        counts = one_hot.sum(0)
        if self.head == "svm":
            weight, gap = support_vectors(features, one_hot, support.mask, self.svm_cost, self.solver_steps)
            return LinearHead(weight, counts, gap)
        if support.mask is not None:  # rows of zeros do not change the solution
            features = torch.where(support.mask[:, None], features, 0)
        start = features.new_zeros(features.shape[1], one_hot.shape[1])
        weight = ridge(features, one_hot, features.new_tensor(self.ridge_penalty), start).weight
        return LinearHead(weight, counts, features.new_zeros(()))

    def query_output(self, meta: MetaParameters, state: LinearHead, x: Any) -> Tensor:
        """Return scores ``[query, ways]``; -inf for classes without support examples."""
        features = self._features(meta, x)  # [query, features]
        with full_precision(features.device):
            scores = meta["log_scale"].exp() * (features @ state.weight)  # [query, ways]
        return without_absent(scores, state.counts)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the query loss under the solved head, and the report."""
        head = self.adapt_task(meta, task.support)
        output = self.query_output(meta, head, task.query_x)
        loss = self.loss(output, task.query_y, task.query_mask)
        diagnostics = {"output_scale": meta["log_scale"].exp()}
        if self.head == "svm":
            diagnostics["duality_gap"] = head.gap
        return loss, TaskResult(loss, output[None], loss.new_zeros(0), diagnostics=diagnostics)

    def after_batch(self, result: TaskResult) -> None:
        """Warn once if support vector machines are far from solved."""
        if self._warned or "duality_gap" not in result.diagnostics:
            return
        gap = float(result.diagnostics["duality_gap"].mean())
        if gap <= _FAR_FROM_SOLVED:
            return
        self._warned = True
        rank_zero_warn(
            f"The support vector machines are far from solved after solver_steps={self.solver_steps}: their duality "
            f"gap is {gap:.3g} of the objective on average over a batch. The derivative, that of the solution, may be "
            "off: raise solver_steps, lower svm_cost, or scale the model's features down."
        )

    def _features(self, meta: MetaParameters, x: Any) -> Tensor:
        # Half precision cannot be solved in.
        return self.embeddings(meta, x).to(single_or_double(meta["log_scale"].dtype))
