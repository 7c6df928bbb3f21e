"""Baselines that take all training tasks for one data set, and do not adapt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_meta.algorithms.baselines.linear import LinearRegressor
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult, joined_sets
from lightning_meta.learners import TaskLearner
from lightning_meta.learners.checks import Targets, check_batch


class PooledModel(TaskLearner):
    """Joint training of one model on support and query sets of all tasks; tasks do not adapt it.

    For targets that mean the same in all tasks: not for classes that each task numbers anew. The meta-loss of a task is
    the mean loss over its examples. Arguments as in `TaskLearner`.
    """

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[()]:
        """Return nothing, as the support set is not used."""
        return ()

    def query_output(self, meta: MetaParameters, state: tuple[()], x: Any) -> Tensor:
        """Return the model's output ``[query, ...]``."""
        return self.call_model(self.model_parameters(meta), x)

    def adapted_parameters(self, meta: MetaParameters, state: tuple[()]) -> Mapping[str, Tensor]:
        """Return the model's own parameters."""
        return self.model_parameters(meta)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the mean loss over support and query sets, and the report on the query set."""
        x, y, mask = joined_sets(task)
        output = self.query_output(meta, (), x)  # [support + query, ...]
        loss = self.loss(output, y, mask)
        return loss, TaskResult(loss, output[None, tree_leaves(task.support_x)[0].shape[0] :], loss.new_zeros(0))


class PooledRidge(LinearRegressor):
    """Ridge regression on the examples of all training tasks, in closed form; tasks do not adapt it.

    Call `fit_tasks` before tests; checkpoints keep what it found. The intercept has no penalty, as in
    `RidgeRegression`. Arguments as in `LinearRegressor`.

    Attributes:
        weight: ``[features, ...]``; empty before `fit_tasks`.
        intercept: Of a target's shape.
    """

    weight: Tensor
    intercept: Tensor

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("weight", torch.zeros(0))
        self.register_buffer("intercept", torch.zeros(0))
        self.register_load_state_dict_pre_hook(_take_shapes)

    def fit_tasks(self, batches: Iterable[Episode]) -> Self:
        """Fit to the support and query sets of all tasks, in place of what was fitted before.

        Reads the batches once, and keeps sums of products of features and targets, in double precision. Call ``eval()``
        before if the model has dropout.

        Args:
            batches: Batches of tasks, such as a data module's ``train_dataloader()``.

        Raises:
            ValueError: If there is no batch, or the model or the loss cannot take one.
        """
        targets = Targets(self.loss_fn, _target_shape, self.ignores_labels, self.label_cure)
        moments: Tensor | None = None
        form: tuple[int, torch.Size] | None = None
        for batch in batches:
            check_batch(batch, targets)
            for index in range(batch.num_tasks):
                examples = joined_sets(batch.select(index))
                with torch.no_grad():
                    features = self.features({}, examples.x)
                rows = _rows(features, examples)
                own = features.shape[1], examples.y.shape[1:]
                if form not in (None, own):
                    raise ValueError(
                        f"batches holds tasks of different shapes, features and targets {form} and {own}: all "
                        "must have inputs and targets of one shape"
                    )
                form, product = own, rows.mT @ rows
                moments = product if moments is None else moments + product
        if moments is None or form is None:
            raise ValueError("batches is empty: pass batches of training tasks")
        weight, intercept = self._solved(moments, form[1].numel())
        self.weight = weight.reshape(form[0], *form[1]).to(features.dtype)
        self.intercept = intercept.reshape(form[1]).to(features.dtype)
        return self

    def adapt_task(self, meta: MetaParameters, support: Support) -> tuple[Tensor, Tensor]:
        """Return the fitted weight and intercept, whatever the support set."""
        return self.weight.clone(), self.intercept.clone()

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of a target.

        Raises:
            ValueError: Before `fit_tasks`.
        """
        if self.weight.numel() == 0:
            raise ValueError("PooledRidge is not fitted: call fit_tasks(batches) with batches of training tasks first")
        return self.intercept.shape

    def _solved(self, moments: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        """Return weight ``[features, outputs]`` and intercept ``[outputs]`` for sums of products of rows."""
        size = len(moments) - 1 - outputs
        mean = moments[-1, :-1] / moments[-1, -1]
        products = moments[:-1, :-1] - moments[-1, -1] * mean[:, None] * mean  # about the mean
        penalty = self.penalty * torch.eye(size, dtype=products.dtype, device=products.device)
        factor = torch.linalg.cholesky(products[:size, :size] + penalty)
        weight = torch.cholesky_solve(products[:size, size:], factor)
        return weight, mean[size:] - mean[:size] @ weight


def _rows(features: Tensor, examples: Support) -> Tensor:
    """Return features, targets and a 1 of each example that counts, ``[examples, features + outputs + 1]``."""
    targets = examples.y.reshape(len(examples.y), -1).double()
    rows = torch.cat([features.double(), targets, targets.new_ones(len(targets), 1)], dim=1)
    return rows if examples.mask is None else rows[examples.mask]


def _target_shape(support: Support) -> torch.Size:
    return support.y.shape[2:]


def _take_shapes(learner: PooledRidge, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Give a learner's buffers the shapes of those that it loads, which are not known before `fit_tasks`."""
    for name in ("weight", "intercept"):
        if f"{prefix}{name}" in state:
            setattr(learner, name, getattr(learner, name).new_empty(state[f"{prefix}{name}"].shape))
