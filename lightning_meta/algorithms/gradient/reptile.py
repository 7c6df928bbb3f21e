"""Reptile.

Paper: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv 1803.02999.

Moves the initialization θ towards where K inner steps on a task end (algorithm 2 of the paper):

    θ ← θ + ε · mean over tasks of (φ_K − θ)

Here the update is a gradient, so that any outer optimizer, schedule, clipping and strategy apply:

    ∂/∂θ := mean over tasks of (θ − φ_K) / (α K),      α = inner_lr, K = inner_steps

which for plain SGD inner steps is the mean of the inner gradients, on the scale of an ordinary gradient. The
paper's interpolation with step size ε is plain ``SGD`` with ``lr = ε α K``; ``configs/omniglot_reptile.yaml`` shows
it with ε annealed linearly to 0 over the outer steps. To leading order, two steps give g₁ + g₂ − α H₂ g₁
(section 5.1): the last term rewards agreement between minibatches. One step is joint training.

Differences from the paper:
- A kept inner state is averaged over the tasks of a meta-batch, where the authors' code carries it from task to task.
  With one task in a batch the two are equal.
- The authors' 15-shot training sets are an episode's support and query sets together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult, joined_sets
from lightning_meta.inner import InnerStep, KeptState, UpdateRule
from lightning_meta.learners import GradientLearner
from lightning_meta.likelihoods import LossFunction

InnerState = Literal["reset", "kept"]


class Reptile(GradientLearner):
    """Reptile (Nichol et al., 2018): no second derivatives, no split of the training tasks.

    Training adapts to the support and query sets together, evaluation to the support set. After ``backward``,
    a parameter's gradient is ``mean_i(θ − φ_i) / (inner_lr · inner_steps)`` for every inner optimizer. The authors'
    ``θ + ε · mean_i(φ_i − θ)`` is therefore ``torch.optim.SGD`` with ``lr = ε · inner_lr · inner_steps``. The training
    loss is the mean of the inner losses. Evaluation is transductive with ``batch_statistics="batch"``, and not with
    ``"support"``; the paper reports both.

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The inner learning rate α.
        inner_steps: The number of inner steps K.
        eval_inner_steps: Inner steps in evaluation; the authors take 50.
        inner_optimizer: "sgd", "momentum", "adam", or an `UpdateRule`; the authors use ``Adam(beta1=0)``.
        inner_state: Whether the inner optimizer's state is "reset" for each task or "kept" from one meta-batch to the
            next, as in the authors' code; a kept state is saved in checkpoints and used in evaluation.
        inner_batch_size: Examples in an inner step of training, drawn without replacement from all that were not drawn
            in this pass; None: all examples.
        eval_inner_batch_size: The same for evaluation. A trainer repeats the same draws in each evaluation; elsewhere
            they depend on torch's random generator.
        **options: As in `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, or an inner batch is larger than the task.
        TypeError: If the model has layers that cannot run per task.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        eval_inner_steps: int | None = None,
        inner_optimizer: str | UpdateRule = "sgd",
        inner_state: InnerState = "reset",
        inner_batch_size: int | None = None,
        eval_inner_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, inner_steps, eval_inner_steps, inner_optimizer, **options)
        arguments.check_choice("inner_state", inner_state, InnerState)
        arguments.check_optional_count("inner_batch_size", inner_batch_size)
        arguments.check_optional_count("eval_inner_batch_size", eval_inner_batch_size)
        self.inner_batch_size = inner_batch_size
        self.eval_inner_batch_size = eval_inner_batch_size
        self.is_stochastic = inner_batch_size is not None
        self.requires_unpadded = inner_batch_size is not None or eval_inner_batch_size is not None
        trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.kept_state = KeptState(self.inner_optimizer.init(trainable)) if inner_state == "kept" else None

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the adapted parameters after 0, 1, ..., ``steps`` steps on the support set, as in evaluation."""
        for step, _ in self._descend(meta, _minibatches(support, steps, self.eval_inner_batch_size, "eval_")):
            yield step

    def task_gradient(self, meta: MetaParameters, task: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        """Return ``(θ − φ_K) / (α K)`` and the report."""
        batches = _minibatches(joined_sets(task), self.inner_steps, self.inner_batch_size)
        losses = []
        for (adapted, loss), state in self._descend(meta, batches):  # noqa: B007 (the last ones count)
            losses += [] if loss is None else [loss]
        moved = self.inner_lr * self.inner_steps
        gradient = {f"model.{name}": (meta[f"model.{name}"] - p) / moved for name, p in adapted.items()}
        output = self.query_output(meta, adapted, task.query_x)
        inner_losses = torch.stack(losses)
        carried = () if self.kept_state is None else state
        return gradient, TaskResult(inner_losses.mean(), output[None], inner_losses, carried=carried)

    def after_batch(self, result: TaskResult) -> None:
        """Carry the inner optimizer's state to the next batch."""
        if self.kept_state is not None:
            self.kept_state.keep(result.carried, self.inner_steps)

    def _descend(self, meta: MetaParameters, batches: Iterator[Support]) -> Iterator[tuple[InnerStep, Any]]:
        """Yield the inner loop's state and the update rule's, before the first and after each minibatch."""
        adapted = self.model_parameters(meta)
        kept = self.kept_state
        state = self.inner_optimizer.init(adapted) if kept is None else kept.state()
        earlier = 0 if kept is None else int(kept.steps)
        rates = dict.fromkeys(adapted, self.inner_lr)
        yield InnerStep(adapted, None), state
        for step, batch in enumerate(batches, start=earlier):

            def batch_loss(adapted: dict[str, Tensor], batch: Support = batch) -> Tensor:
                return self.set_loss(adapted, batch)

            gradients, loss = grad_and_value(batch_loss)(adapted)
            adapted, state = self.inner_optimizer.update(adapted, gradients, state, rates, step)
            yield InnerStep(adapted, loss), state


def _minibatches(examples: Support, count: int, size: int | None, prefix: str = "") -> Iterator[Support]:
    """Yield minibatches of the examples in random order, with a new order for each pass."""
    available = tree_leaves(examples.x)[0].shape[0]
    if size is None:
        yield from [examples] * count
        return
    if size > available:
        raise ValueError(
            f"{prefix}inner_batch_size={size} but the task has {available} examples: lower it, or leave it None "
            "to take all at once"
        )
    device = tree_leaves(examples.x)[0].device
    passes = -(-count * size // available)
    order = torch.cat([torch.rand(available, device=device).argsort() for _ in range(passes)])
    for batch in range(count):
        chosen = order[batch * size : (batch + 1) * size]
        x, y = tree_map(lambda leaf, chosen=chosen: leaf[chosen], (examples.x, examples.y))
        yield Support(x, y)
