"""Proto-MAML: MAML whose linear head starts from the task's prototypes.

Paper: Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", ICLR 2020,
arXiv 1903.03096, section 3.

The model embeds examples, f. A class's prototype c is the mean of its support examples' embeddings. Squared Euclidean
distances to prototypes are a linear layer, up to a term that all classes of a query share:

    −‖f − c_k‖² = 2 c_kᵀ f − ‖c_k‖² − ‖f‖²

So each task has a linear head of its own, which starts from ``W_k = 2 c_k`` and ``b_k = −‖c_k‖²``, and K steps of
gradient descent on the support loss adapt head and embedding together, as in MAML. Before the first step its class
probabilities are those of a prototypical network. The meta-gradient flows through the steps, and through the prototypes
to the embedding's initialization. The first-order variant takes the inner gradients for constants; its meta-gradient
still flows through the prototypes.

Differences from the paper:
- The authors' code can leave the scales and shifts of batch normalization out of the inner loop; so do name patterns
  in ``adapt`` here.
- It normalizes queries by the support set's statistics, in training too; here that is ``batch_statistics="support"``,
  in evaluation only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad_and_value

from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner import MetaGradient, adapted_names
from lightning_meta.inner.meta_gradients import meta_gradient_of
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import SupportClassLearner, UnrolledLearner, module_part
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.learners.unrolled_learner import Point
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.features import single_or_double


class HeadedTask(NamedTuple):
    """One task's model.

    Attributes:
        adapted: The adapted parameters: ``body.NAME`` for those of the embedding model, ``head.weight``
            ``[ways, features]`` and ``head.bias`` ``[ways]``.
        counts: The number of support examples of each class, ``[ways]``.
    """

    adapted: Vector
    counts: Tensor


class ProtoMAML(UnrolledLearner, SupportClassLearner):
    """MAML whose head starts from the task's prototypes (Proto-MAML; Triantafillou et al., 2020).

    The head belongs to the task, so that training, tests and one checkpoint take tasks of any number of ways.

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``; its initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The inner learning rate of embedding and head.
        inner_steps: The number of inner steps K.
        eval_inner_steps: Inner steps in evaluation; None: as in training.
        first_order: Whether to drop the second derivatives (fo-Proto-MAML).
        adapt: What the inner loop adapts besides the head: "all" parameters of the embedding; none with "head"; or
            those that match name patterns, such as ``["layers.3.*", "*.bias"]``.
        meta_gradient: ``Unrolled()``, ``Checkpointed()`` or ``FirstOrder()`` of `lightning_meta.inner`, in place of
            ``first_order``.
        **options: As in `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, two contradict each other, or a pattern matches no parameter.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import ProtoMAML
        >>> learner = ProtoMAML(nn.Linear(8, 16), inner_lr=0.1, inner_steps=3)
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each class
        torch.Size([10, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        adapt: str | Sequence[str] = "all",
        meta_gradient: MetaGradient | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, inner_steps, eval_inner_steps, **options)
        if isinstance(adapt, str) and adapt not in ("all", "head"):
            raise ValueError(f'adapt={adapt!r} is not "all", "head" or a list of name patterns')
        self.adapted_names = () if adapt == "head" else adapted_names(model, adapt)
        self.meta_gradient = meta_gradient_of(meta_gradient, first_order, 0, False)
        self._check_recomputed()

    def start_point(self, meta: MetaParameters, support: Support) -> Point:
        """Return the embedding's adapted parameters and the head of the prototypes."""
        parameters = self.model_parameters(meta)
        features = self.embeddings(meta, support.x)
        # Half precision would round small steps away.
        prototypes, _ = self.prototypes(features.to(single_or_double(features.dtype)), support)
        adapted = {f"body.{name}": parameters[name] for name in self.adapted_names}
        adapted |= {"head.weight": 2 * prototypes, "head.bias": -prototypes.square().sum(1)}
        return adapted, self.inner_optimizer.init(adapted)

    def state_at(self, meta: MetaParameters, support: Support, adapted: Vector, step: int) -> HeadedTask:
        """Return the task's model."""
        return HeadedTask(adapted, self._counts(support, adapted))

    def query_output(self, meta: MetaParameters, state: HeadedTask, x: Any) -> Tensor:
        """Return the head's scores, ``[query, ways]``; -inf for classes without support examples."""
        return self._output(self.model_parameters(meta), state, x)

    def _counts(self, support: Support, adapted: Vector) -> Tensor:
        """Return the number of support examples of each class, ``[ways]``."""
        return self.one_hot(support, adapted["head.bias"].dtype).sum(0)

    def _output(self, parameters: Vector, state: HeadedTask, x: Any) -> Tensor:
        features = self.call_model({**parameters, **module_part(state.adapted, "body")}, x)  # [examples, features]
        weight, bias = state.adapted["head.weight"], state.adapted["head.bias"]
        scores = F.linear(features.to(weight.dtype), weight, bias)  # [examples, ways]
        return without_absent(scores, state.counts)

    def steps_from(
        self, meta: MetaParameters, support: Support, point: Point, first: int, count: int
    ) -> Iterator[tuple[Point, Tensor]]:
        """Yield the point after each of ``count`` steps of gradient descent on the support loss."""
        shared = {name: p for name, p in self.model_parameters(meta).items() if name not in self.adapted_names}
        meta_gradient = self.meta_gradient.at_epoch(self.current_epoch)
        adapted, state = point
        counts = self._counts(support, adapted)
        labels = support.y.argmax(1)  # [support]

        def support_loss(adapted: Vector, shared: Vector) -> Tensor:
            return self.loss(self._output(shared, HeadedTask(adapted, counts), support.x), labels, support.mask)

        rates = dict.fromkeys(adapted, self.inner_lr)
        for step in range(first, first + count):
            gradients, loss = grad_and_value(support_loss)(*meta_gradient.start_of_step((adapted, shared)))
            adapted, state = self.inner_optimizer.update(adapted, gradients, state, rates, step)
            yield (adapted, state), loss
