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
from lightning_meta.learners.checks import check_has_tasks
from lightning_meta.learners.randomness import keeping_random_state
from lightning_meta.likelihoods.losses import LossFunction, masked_mean
from lightning_meta.likelihoods.predictive import Samples
from lightning_meta.metrics.task_metrics import per_task_metrics
from lightning_meta.models.batch_statistics import BatchStatistics


class PerTaskFunctions(L.LightningModule, ABC):
    """The functions of one task that a `TaskLearner` maps over a batch: the extension points of an algorithm.

    A new algorithm implements `adapt_task` and `query_output`. It may override the other methods of the first part of
    this class: `task_loss`, or `task_gradient` if its meta-gradient is not the derivative of a loss. These functions
    are pure: they take parameters as a dictionary and do not log, assign attributes, or branch on values of tensors.
    """

    model: nn.Module
    loss_fn: LossFunction
    execution: Execution
    batch_statistics: BatchStatistics
    _dropped_buffers: dict[str, Tensor | None]
    _output_shape: torch.Size | None

    ignores_labels = True
    """Whether targets may hold the loss's ``ignore_index``."""

    requires_unpadded = False
    """Whether per-task functions need tasks without padding: they do not read masks."""

    is_stochastic = False
    """Whether training draws random numbers, apart from dropout. If so, tasks are not shared out among threads."""

    has_noise = False
    """Whether predictions of real targets have a variance."""

    draws_together = 1
    """How many consecutive draws of `query_samples` share random parameters, such as the heads of one drawn body."""

    label_cure = (
        "give the model as many outputs as the episodes have ways, or use a learner that takes any number of ways, "
        "such as ProtoMAML, ProtoNet or R2D2"
    )
    """The advice in errors about labels without an output."""

    # ---- Extension points. ----------------------------------------------------------------------------------

    @abstractmethod
    def adapt_task(self, meta: MetaParameters, support: Support) -> Any:
        """Adapt to one task.

        Args:
            meta: The learner's trainable parameters by name, as in `named_parameters`.
            support: The task's support set, ``[support, ...]``.

        Returns:
            The state that `query_output` takes: any pytree of tensors.
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

    def adapted_parameters(self, meta: MetaParameters, state: Any) -> Mapping[str, Tensor] | None:
        """Return parameters, named as in the model, with which the model alone gives `query_output`.

        None, the default, if a task has more than the model, or several models.
        """
        return None

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return one task's meta-loss, a differentiable function of ``meta``, and its report.

        The default is the query loss after `adapt_task`.
        """
        output = self.query_output(meta, self.adapt_task(meta, task.support), task.query_x)
        loss = self.loss(output, task.query_y, task.query_mask)
        return loss, TaskResult(loss, output[None], loss.new_zeros(0))

    def task_gradient(self, meta: MetaParameters, task: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        """Return one task's meta-gradient, same keys and shapes as ``meta``, and its report."""
        gradient, (_, result) = grad_and_value(self.task_loss, has_aux=True)(dict(meta), task)
        return gradient, result

    def adaptation(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the states after 0, 1, ..., ``steps`` inner steps in evaluation; by default `adapt_task`'s alone.

        Args:
            meta: The learner's trainable parameters by name.
            support: The task's support set.
            steps: The number of inner steps; 0 for learners without an inner loop.
        """
        yield InnerStep(self.adapt_task(meta, support), None)

    def prepare_support(self, support: Support) -> Support:
        """Return the support sets that per-task functions get; unlike them, this may depend on values.

        Args:
            support: One task's support set or a batch of them, ``[..., support]``.
        """
        return support

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of `query_output` for one query; by default the model's, found by calling it once.

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
        """Return the metrics to log by name, each ``[tasks]``.

        Args:
            outputs: The adapted models' outputs, ``[tasks, query, ...]``.
            targets: ``[tasks, query, ...]``.
            mask: ``[tasks, query]`` or None.
        """
        return per_task_metrics(self.loss_fn, outputs, targets, mask)

    def after_batch(self, result: TaskResult) -> None:
        """Called with the report ``[tasks, ...]`` of each training batch; the place to carry state to the next one."""

    def check_data(self, data: Any) -> None:
        """Raise a ValueError, before training, if the learner cannot train on a data module's batches.

        The default refuses batches of all training classes at once, which are no tasks.

        Args:
            data: The trainer's data module; None where loaders were given.
        """
        check_has_tasks(data, type(self).__name__)

    def training_phase(self) -> Hashable:
        """Return what these functions read of the trainer's progress; captured steps are valid while it is equal."""
        return None

    @property
    def diagnostic_names(self) -> tuple[str, ...]:
        """The algorithm's own metrics in training: the names in ``diagnostics`` of its `TaskResult`."""
        return ()

    @property
    def is_capturable(self) -> bool:
        """Whether training steps may be captured and replayed."""
        return True

    def rates_in_errors(self) -> str:
        """Return the rates to name in errors about divergence, such as " (inner_lr=0.1)"."""
        return ""

    # ---- Helpers for these functions. -----------------------------------------------------------------------

    def model_parameters(self, meta: MetaParameters) -> dict[str, Tensor]:
        """Return the model's part of the meta-parameters, named as in the model."""
        return module_part(meta, "model")

    def call_model(self, parameters: Mapping[str, Tensor], x: Any) -> Tensor:
        """Call the model as a pure function of its parameters, named as in the model."""
        return call_with(self.model, {**parameters, **self._dropped_buffers}, x)

    def embeddings(self, meta: MetaParameters, x: Any, num_features: int | None = None) -> Tensor:
        """Return what the model makes of examples ``[examples, ...]``: ``[examples, features]``.

        Args:
            meta: The learner's trainable parameters by name.
            x: Inputs.
            num_features: How many features the learner is made for; None: any number.

        Raises:
            ValueError: If the model gives another number of dimensions, or of features.
        """
        features = self.call_model(self.model_parameters(meta), x)
        if features.ndim != 2:
            raise ValueError(
                f"model gives features of shape {tuple(features.shape)} for a set of examples: {type(self).__name__} "
                "needs [examples, features]; add a Flatten to the model"
            )
        if num_features not in (None, features.shape[1]):
            raise ValueError(
                f"model gives {features.shape[1]} features, and its last linear layer or num_features says "
                f"{num_features}: set num_features={features.shape[1]}"
            )
        return features

    def loss(self, output: Tensor, target: Any, mask: Tensor | None = None) -> Tensor:
        """Return the mean loss over the examples that the mask includes."""
        return masked_mean(self.loss_fn, output, target, mask)

    def evaluation_samples(self, meta: MetaParameters, state: Any, support: Support, x: Any) -> Samples:
        """Return `query_samples` as evaluation needs them: with ``batch_statistics="support"`` one query at a time."""
        if self.batch_statistics != "support":
            return self.query_samples(meta, state, x)

        def beside_support(one: Any) -> dict[str, Tensor]:
            together = tree_map(lambda leaf, query: torch.cat([leaf, query[None]]), support.x, one)
            return {name: leaf[:, -1] for name, leaf in self.query_samples(meta, state, together).present().items()}

        if not self.execution.vectorizes:
            each = [beside_support(tree_map(lambda leaf, i=i: leaf[i], x)) for i in range(tree_leaves(x)[0].shape[0])]
            return Samples(**tree_map(lambda *leaves: torch.stack(leaves, dim=1), *each))
        # Not by out_dims, which cannot place a dimension inside of what all queries share, such as noise.
        by_query = vmap(beside_support, randomness="different")(x)  # [query, samples, ...]
        return Samples(**{name: leaf.movedim(0, 1) for name, leaf in by_query.items()})


def module_part(meta: MetaParameters, name: str) -> dict[str, Tensor]:
    """Return the parameters of one submodule, named as in that submodule."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in meta.items() if key.startswith(prefix)}
