"""Model-agnostic meta-learning.

Paper: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017,
arXiv 1703.03400. Extensions: Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, arXiv 1810.09502.

Meta-learns the initialization θ so that a few gradient steps on a task's support set S do well on its query
set Q (equation 1, with several steps):

    min_θ  mean over tasks of  L_Q(φ_K),      φ_0 = θ,   φ_{k+1} = φ_k − α ∇L_S(φ_k)

The meta-gradient of one task is Π_{k<K} (I − α H_S(φ_k)) ∇L_Q(φ_K), computed by differentiating through the
steps; the first-order variant (section 5.2 of the paper) keeps only ∇L_Q(φ_K).

Differences from the papers:
- The authors' classification code sums the cross-entropy over the ways inside the inner loop. Here all losses
  are means over examples, so their α = 0.4 (Omniglot, 5-way) corresponds to about 2.0.
- MAML++: learned rates start at ``inner_lr`` and are unconstrained.
- MAML++: with ``batch_norm_per_step`` a model after k steps has the k-th scales and shifts on both sets; in the
  authors' code a step on the support set and the query loss after it share theirs. As there, the inner loop does not
  adapt them, and each set is normalized by its own statistics in each step. The authors' code also keeps running
  statistics of each step, but does not use them; they are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from lightning_meta.arguments import check_count
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner import InnerRates, LearnedRates, MetaGradient, adapted_names
from lightning_meta.inner.curvature_factors import CurvatureFactors
from lightning_meta.inner.meta_gradients import FirstOrder, meta_gradient_of
from lightning_meta.inner.multi_step import multi_step_weights
from lightning_meta.inner.step_norms import StepNorms
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import UnrolledLearner, module_part
from lightning_meta.learners.unrolled_learner import Point
from lightning_meta.likelihoods import LossFunction


class MAML(UnrolledLearner):
    """Model-agnostic meta-learning (Finn et al., 2017), with the options of MAML++ (Antoniou et al., 2019).

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The (initial) inner learning rate α.
        inner_steps: The number of inner steps K.
        eval_inner_steps: Inner steps in evaluation; None: as in training.
        first_order: Whether to drop the second derivatives (FOMAML).
        adapt: The parameters that the inner loop adapts: "all"; "head", the layer defined last (ANIL); "body", the
            others (BOIL); or name patterns, such as ``["layers.3.*", "*.bias"]``. All tasks share the other
            parameters, which are meta-learned too.
        learned_rates: "none"; "tensor" learns a rate per tensor, "tensor_step" per tensor and step (MAML++),
            "element" per scalar parameter (Meta-SGD).
        first_order_epochs: The number of first-order epochs before second-order ones (MAML++'s derivative-order
            annealing).
        multi_step_loss_epochs: The number of epochs in which the query losses after all steps count, with weights
            that move to the last step (MAML++'s multi-step loss).
        checkpoint_inner_loop: Whether to keep every √K-th inner step only and recompute the others for the
            meta-gradient: about 2 √K steps in memory in place of K, for 25 % (images) to 80 % (tiny models) more time.
        batch_norm_per_step: Whether batch normalization has its own scale and shift after each number of inner steps,
            meta-learned and not adapted (MAML++). Additional steps in evaluation use the last ones.
        meta_gradient: ``Unrolled()``, ``Checkpointed()`` or ``FirstOrder()`` of `lightning_meta.inner`, in place of
            ``first_order``, ``first_order_epochs`` and ``checkpoint_inner_loop``.
        **options: As in `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, two contradict each other, or a pattern matches no parameter.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import MAML
        >>> learner = MAML(nn.Linear(3, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=3)
        >>> task = learner.adapt(torch.randn(5, 3), torch.randn(5, 1))  # five labelled examples
        >>> task(torch.randn(7, 3)).shape
        torch.Size([7, 1])
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
        learned_rates: LearnedRates = "none",
        first_order_epochs: int = 0,
        multi_step_loss_epochs: int = 0,
        checkpoint_inner_loop: bool = False,
        batch_norm_per_step: bool = False,
        meta_gradient: MetaGradient | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, inner_steps, eval_inner_steps, **options)
        check_count("multi_step_loss_epochs", multi_step_loss_epochs, least=0)
        self.meta_gradient = meta_gradient_of(meta_gradient, first_order, first_order_epochs, checkpoint_inner_loop)
        self.multi_step_loss_epochs = multi_step_loss_epochs
        changes = self.meta_gradient.at_epoch(0) != self.meta_gradient or multi_step_loss_epochs > 0
        if self.execution.compile is True and (changes or self.meta_gradient.recomputes):
            raise ValueError(
                "compile=True does not support checkpoint_inner_loop=True, and would compile again whenever "
                "first_order_epochs or multi_step_loss_epochs change the loss: leave out compile, or the others"
            )
        if self.meta_gradient.recomputes and multi_step_loss_epochs:
            raise ValueError(
                f"multi_step_loss_epochs={multi_step_loss_epochs} needs all inner steps, which "
                "checkpoint_inner_loop=True does not keep: leave one of them out"
            )
        self._check_recomputed()
        self.step_norms = StepNorms(model, inner_steps) if batch_norm_per_step else None
        self.adapted_names = adapted_names(model, adapt)
        if self.step_norms is not None:
            self.adapted_names = tuple(name for name in self.adapted_names if name not in self.step_norms.names)
            if not self.adapted_names:
                raise ValueError(
                    f"adapt={adapt!r} matches batch normalization only, which batch_norm_per_step=True does not adapt"
                )
        parameters = dict(model.named_parameters())
        adapted = {name: parameters[name] for name in self.adapted_names}
        self.inner_rates = InnerRates(adapted, inner_lr, inner_steps, learned_rates)
        self.curvature_factors: CurvatureFactors | None = None

    @property
    def first_order(self) -> bool:
        """Whether the meta-gradient is first-order in this epoch; `meta_gradient` decides."""
        return isinstance(self.meta_gradient.at_epoch(self.current_epoch), FirstOrder)

    def start_point(self, meta: MetaParameters, support: Support) -> Point:
        """Return the initialization of the adapted parameters."""
        parameters = self.model_parameters(meta)
        adapted = {name: parameters[name] for name in self.adapted_names}
        return adapted, self.inner_optimizer.init(adapted)

    def state_at(self, meta: MetaParameters, support: Support, adapted: Vector, step: int) -> Vector:
        """Return the adapted parameters, and those that depend on the number of steps taken."""
        return adapted | self._norms(meta, step)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the query loss after the last inner step, or MAML++'s weighted sum over the steps."""
        if self.multi_step_loss_epochs == 0:
            return super().task_loss(meta, task)
        weights = multi_step_weights(self.inner_steps, self.current_epoch, self.multi_step_loss_epochs)
        states, support_losses = zip(*self.inner_loop(meta, task.support, self.inner_steps), strict=True)
        losses = []
        for weight, state in zip(weights, states, strict=True):
            if weight > 0:
                output = self.query_output(meta, state, task.query_x)
                losses.append(weight * self.loss(output, task.query_y, task.query_mask))
        loss = sum(losses[1:], losses[0])
        return loss, TaskResult(loss, output[None], torch.stack(support_losses[1:]))

    def training_phase(self) -> tuple[MetaGradient, int]:
        """Return the meta-gradient of this epoch, and the epoch of the multi-step loss."""
        return self.meta_gradient.at_epoch(self.current_epoch), min(self.current_epoch, self.multi_step_loss_epochs)

    def _norms(self, meta: MetaParameters, step: int) -> dict[str, Tensor]:
        """Return the model's parameters that depend on the number of steps taken."""
        if self.step_norms is None:
            return {}
        return self.step_norms.after(step, self.model_parameters(meta), module_part(meta, "step_norms"))

    def steps_from(
        self, meta: MetaParameters, support: Support, point: Point, first: int, count: int
    ) -> Iterator[tuple[Point, Tensor]]:
        """Yield the point after each of ``count`` steps of gradient descent on the support loss."""
        shared = {name: p for name, p in self.model_parameters(meta).items() if name not in self.adapted_names}
        rates = module_part(meta, "inner_rates")
        meta_gradient = self.meta_gradient.at_epoch(self.current_epoch)

        def support_loss(adapted: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
            return self.set_loss({**shared, **adapted}, support)

        adapted, state = point
        for step in range(first, first + count):
            at = adapted, shared | self._norms(meta, step)
            gradients, loss = grad_and_value(support_loss)(*meta_gradient.start_of_step(at))
            if self.curvature_factors is not None:
                gradients = self.curvature_factors.transformed(gradients, module_part(meta, "curvature_factors"))
            step_rates = self.inner_rates.at(step, self.adapted_names, rates)
            adapted, state = self.inner_optimizer.update(adapted, gradients, state, step_rates, step)
            yield (adapted, state), loss
