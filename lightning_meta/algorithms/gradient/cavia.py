"""CAVIA: context parameters that alone adapt.

Paper: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning", ICML 2019, arXiv
1810.03642.

A task adapts a few context parameters φ, which are inputs of the model; all others, θ, are shared by tasks. The context
starts at 0 in each task:

    min_θ  mean over tasks of  L_Q(φ_K, θ),      φ_0 = 0,   φ_{k+1} = φ_k − α ∇_φ L_S(φ_k, θ)

For vectors, φ is concatenated to a layer's input: its output becomes ``W x + C φ + b``. For feature maps, each channel
is scaled and shifted, with scale and shift linear in φ (FiLM). The meta-gradient is differentiated through the steps;
the first-order variant takes the inner gradients for constants.

Differences from the paper:
- The columns C that a layer has for the context belong to the learner, so that any model is taken as it is.
- FiLM scales by ``1 + S φ`` and shifts by ``C φ``. The authors' map of the context has a bias too, whose part the
  layer's own weight and bias have here. So the model before adaptation is the given one, and may be pretrained.
- The authors apply FiLM after batch normalization and max pooling; here it is applied to the output of a named layer,
  such as the normalization.
- The authors clip each entry of the meta-gradient to [−10, 10], for regressions task by task, for classes their mean.
  Here the trainer can clip the mean: ``gradient_clip_val=10`` with ``gradient_clip_algorithm="value"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import grad_and_value

from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.execution.functional import exclusive
from lightning_meta.inner import MetaGradient
from lightning_meta.inner.context_layers import ContextKind, ContextLayers
from lightning_meta.inner.meta_gradients import meta_gradient_of
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import UnrolledLearner, module_part
from lightning_meta.learners.unrolled_learner import Point
from lightning_meta.likelihoods import LossFunction


class CAVIA(UnrolledLearner):
    """Fast context adaptation (Zintgraf et al., 2019): a task adapts a few context parameters, not the model.

    The context is what a layer of the model reads besides its input. So few numbers overfit little, and inner rates may
    be larger than with `MAML`.

    Args:
        model: The model, whose parameters are meta-learned and shared by all tasks.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The inner learning rate α of the context; the authors' is 1.0 for sinusoids.
        inner_steps: The number of inner steps K.
        eval_inner_steps: Inner steps in evaluation; None: as in training.
        first_order: Whether to drop the second derivatives.
        context: How layers read the context. "input": it is concatenated to the input of a linear layer. "film": it
            scales and shifts the layer's outputs, feature maps by channel.
        num_context_parameters: The number of context parameters of a task.
        layers: The names of these layers, as in ``model.named_modules()``; None, with "input": the first linear layer.
            Normalization removes the scale and shift of the layer before it, so with "film" name the normalization:
            ``layers="norms.2"`` of `Conv4`.
        meta_gradient: ``Unrolled()``, ``Checkpointed()`` or ``FirstOrder()`` of `lightning_meta.inner`, in place of
            ``first_order``.
        **options: As in `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, two contradict each other, or a layer cannot read the context.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import CAVIA, MLP
        >>> learner = CAVIA(MLP(), nn.MSELoss(), inner_lr=1.0, num_context_parameters=5)
        >>> task = learner.adapt(torch.randn(10, 1), torch.randn(10, 1))
        >>> task.state["context"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 1.0,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        context: ContextKind = "input",
        num_context_parameters: int = 5,
        layers: str | Sequence[str] | None = None,
        meta_gradient: MetaGradient | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, inner_steps, eval_inner_steps, **options)
        self.context_layers = ContextLayers(model, context, num_context_parameters, layers)
        self.meta_gradient = meta_gradient_of(meta_gradient, first_order, 0, False)
        self._check_recomputed()

    def start_point(self, meta: MetaParameters, support: Support) -> Point:
        """Return the context before the first step."""
        adapted = {"context": self.context_layers.start(module_part(meta, "context_layers"))}
        return adapted, self.inner_optimizer.init(adapted)

    def state_at(self, meta: MetaParameters, support: Support, adapted: Vector, step: int) -> Vector:
        """Return ``{"context": φ}``."""
        return adapted

    def query_output(self, meta: MetaParameters, state: Vector, x: Any) -> Tensor:
        """Return the model's output under the task's context, ``[query, ...]``."""
        return self.call_model({**self.model_parameters(meta), **self.adapted_parameters(meta, state)}, x)

    def adapted_parameters(self, meta: MetaParameters, state: Vector) -> Mapping[str, Tensor]:
        """Return the weights and biases of the layers that read the context, under the task's context.

        With these, a plain copy of the model is the task's; what adapted is the context alone, ``state["context"]``.
        """
        return self._under(state, self._shared(meta))

    def _shared(self, meta: MetaParameters) -> Vector:
        """Return the learner's parameters, and of the model's frozen ones those that the context changes."""
        frozen = [name for name in self.context_layers.names if f"model.{name}" not in meta]
        if not frozen:
            return dict(meta)
        with exclusive():
            return {**meta, **{f"model.{name}": self.model.get_parameter(name) for name in frozen}}

    def _under(self, adapted: Vector, shared: Vector) -> Vector:
        maps = module_part(shared, "context_layers")
        return self.context_layers.parameters_at(adapted["context"], self.model_parameters(shared), maps)

    def steps_from(
        self, meta: MetaParameters, support: Support, point: Point, first: int, count: int
    ) -> Iterator[tuple[Point, Tensor]]:
        """Yield the point after each of ``count`` steps of gradient descent on the support loss."""
        shared = self._shared(meta)
        meta_gradient = self.meta_gradient.at_epoch(self.current_epoch)

        def support_loss(adapted: Vector, shared: Vector) -> Tensor:
            return self.set_loss({**self.model_parameters(shared), **self._under(adapted, shared)}, support)

        adapted, state = point
        rates = {"context": self.inner_lr}
        for step in range(first, first + count):
            gradients, loss = grad_and_value(support_loss)(*meta_gradient.start_of_step((adapted, shared)))
            adapted, state = self.inner_optimizer.update(adapted, gradients, state, rates, step)
            yield (adapted, state), loss
