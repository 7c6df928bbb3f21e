"""`PerTaskFunctions`: what a learner computes for one task, as pure functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.execution.functional import call_with
from lightning_meta.execution.mapping import is_out_of_memory
from lightning_meta.execution.options import Execution
from lightning_meta.inner.inner_loop import InnerStep
from lightning_meta.learners.randomness import keeping_random_state
from lightning_meta.likelihoods.losses import LossFunction, masked_mean
from lightning_meta.likelihoods.predictive import Samples
from lightning_meta.metrics.task_metrics import per_task_metrics
from lightning_meta.models.batch_statistics import BatchStatistics


class PerTaskFunctions(L.LightningModule, ABC):
    """The part of a `TaskLearner` that is mapped over tasks: its extension points, and what they may call.

    A new algorithm implements `adapt_task` and `query_output`. It may override `task_loss`, or `task_gradient` where
    its meta-gradient is not the derivative of a loss, and the other methods of the first half of this class. All are
    pure: they take parameters as a dictionary and may not log, assign attributes, or branch on values.
    """

    model: nn.Module
    loss_fn: LossFunction
    execution: Execution
    batch_statistics: BatchStatistics
    _dropped_buffers: dict[str, Tensor | None]
    _output_shape: torch.Size | None

    ignores_labels = True
    """Whether labels that the loss is told to ignore are left out, rather than refused."""

    requires_unpadded = False
    """Whether per-task functions take no masks, so that padding is cut off instead."""

    is_stochastic = False
    """Whether training draws random numbers, besides dropout; then threads may not take them in any order."""

    is_capturable = True
    """Whether training steps may be recorded."""

    draws_together = 1
    """How many draws of `query_samples` in a row share what the others draw anew, as the heads of one body."""

    label_cure = "give the model as many outputs as the episodes have ways"
    """What to do about a label that no output stands for."""

    # ---- Extension points. ----------------------------------------------------------------------------------

    @abstractmethod
    def adapt_task(self, meta: MetaParameters, support: Support) -> Any:
        """Adapt to one task.

        Args:
            meta: The learner's trainable parameters by name, as in `named_parameters`.
            support: The task's support set, ``[support, ...]``.

        Returns:
            What `query_output` needs: a pytree of tensors in the algorithm's own form.
        """

    @abstractmethod
    def query_output(self, meta: MetaParameters, state: Any, x: Any) -> Tensor:
        """Return the adapted model's output ``[query, ...]`` on inputs ``[query, ...]``.

        Args:
            meta: The learner's trainable parameters by name.
            state: What `adapt_task` returned.
            x: Inputs.
        """

    def query_samples(self, meta: MetaParameters, state: Any, x: Any) -> Samples:
        """Return draws from the posterior over models, as their outputs on inputs ``[query, ...]``.

        A point learner has one draw, without a noise model.
        """
        return Samples(self.query_output(meta, state, x)[None])  # [1, query, ...]

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return one task's meta-loss, to be differentiated in ``meta``, and its report: by default the query loss."""
        output = self.query_output(meta, self.adapt_task(meta, task.support), task.query_x)
        loss = self.loss(output, task.query_y, task.query_mask)
        return loss, TaskResult(loss, output[None], loss.new_zeros(0))

    def task_gradient(self, meta: MetaParameters, task: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        """Return one task's meta-gradient, same keys and shapes as ``meta``, and its report."""
        gradient, (_, result) = grad_and_value(self.task_loss, has_aux=True)(dict(meta), task)
        return gradient, result

    def adaptation(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield what adaptation goes through in evaluation; the last is the adapted state, by default the only one.

        Args:
            meta: The learner's trainable parameters by name.
            support: The task's support set.
            steps: How many inner steps to take; 0 for learners that take none.
        """
        yield InnerStep(self.adapt_task(meta, support), None)

    def prepare_support(self, support: Support) -> Support:
        """Change support sets before per-task functions see them; by default not at all.

        Called outside of vectorization, so that it may read values.

        Args:
            support: One task's set or a batch of them, ``[..., support]``.
        """
        return support

    def output_shape(self, support: Support) -> torch.Size:
        """The shape of the output for one example: by default that of the model, found by one call.

        Args:
            support: Support sets ``[tasks, support, ...]``.

        Raises:
            ValueError: If the model cannot take them.
        """
        if self._output_shape is None:
            x = map_leaves(lambda leaf: leaf[0], support.x)
            try:
                with torch.no_grad(), keeping_random_state(self.device):
                    self._output_shape = self.call_model({}, x).shape[1:]
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                shapes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tree_leaves(x))
                raise ValueError(f"model cannot take one task's inputs, {shapes}: {error}") from error
        return self._output_shape

    def task_metrics(self, outputs: Tensor, targets: Any, mask: Tensor | None) -> dict[str, Tensor]:
        """Return metrics by name, each with one value a task, ``[tasks]``; in training, called where they are logged.

        Args:
            outputs: The adapted models' outputs, ``[tasks, query, ...]``.
            targets: ``[tasks, query, ...]``.
            mask: ``[tasks, query]`` or None.
        """
        return per_task_metrics(self.loss_fn, outputs, targets, mask)

    def after_batch(self, result: TaskResult) -> None:
        """Called with the report of each training batch ``[tasks, ...]``, to keep what tasks pass on to later ones."""

    def training_phase(self) -> Hashable:
        """What per-task functions in training depend on that changes with the trainer's progress; it has a `repr`."""
        return None

    # ---- What per-task functions call. ----------------------------------------------------------------------

    def model_parameters(self, meta: MetaParameters) -> dict[str, Tensor]:
        """The model's part of the meta-parameters, named as in the model."""
        return module_part(meta, "model")

    def call_model(self, parameters: Mapping[str, Tensor], x: Any) -> Tensor:
        """Call the model as a pure function of its parameters, named as in the model."""
        return call_with(self.model, {**parameters, **self._dropped_buffers}, x)

    def loss(self, output: Tensor, target: Any, mask: Tensor | None = None) -> Tensor:
        """The loss function's mean over the examples that count."""
        return masked_mean(self.loss_fn, output, target, mask)

    def evaluation_samples(self, meta: MetaParameters, state: Any, support: Support, x: Any) -> Samples:
        """As `query_samples`, in evaluation, where ``batch_statistics="support"`` separates queries."""
        if self.batch_statistics != "support":
            return self.query_samples(meta, state, x)

        def beside_support(one: Any) -> dict[str, Tensor]:
            together = tree_map(lambda leaf, query: torch.cat([leaf, query[None]]), support.x, one)
            return {name: leaf[:, -1] for name, leaf in self.query_samples(meta, state, together).present().items()}

        if not self.execution.vectorizes:
            each = [beside_support(tree_map(lambda leaf, i=i: leaf[i], x)) for i in range(tree_leaves(x)[0].shape[0])]
            return Samples(**tree_map(lambda *leaves: torch.stack(leaves, dim=1), *each))
        return Samples(**vmap(beside_support, out_dims=1, randomness="different")(x))


def module_part(meta: MetaParameters, name: str) -> dict[str, Tensor]:
    """The parameters under one submodule, by their names inside it."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in meta.items() if key.startswith(prefix)}
