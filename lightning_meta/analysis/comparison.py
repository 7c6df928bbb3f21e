"""A learner beside baselines, on the same test tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import polars as pl
from torch import nn

from lightning_meta.algorithms import ProtoNet
from lightning_meta.algorithms.baselines import (
    LastTarget,
    LogisticRegression,
    MeanTarget,
    PooledModel,
    PooledRidge,
    RidgeClassifier,
    RidgeRegression,
)
from lightning_meta.analysis.fresh_model import fresh_model
from lightning_meta.analysis.penalties import PENALTIES
from lightning_meta.analysis.short_training import quiet_trainer
from lightning_meta.data import TaskDataModule
from lightning_meta.data.preparation import RealTargets
from lightning_meta.episodes import Episode
from lightning_meta.learners import TaskLearner
from lightning_meta.metrics.task_metrics import MeanOverTasks


def compare_with_baselines(
    data: TaskDataModule,
    learner: TaskLearner | None = None,
    pooled_epochs: int = 0,
    trainer: L.Trainer | None = None,
) -> pl.DataFrame:
    """Test a learner and the baselines that suit its tasks.

    Regressions: the mean of the support's targets, its last target (of tasks in time order), ridge regression on the
    task alone, and one ridge regression on the examples of all training tasks. Classification: nearest prototype, ridge
    and logistic regression on the task alone. All take the data module's ``raw_features``. Penalties are chosen on
    validation tasks.

    Args:
        data: The tasks.
        learner: A trained learner; it is also tested without adaptation, if it takes inner steps.
        pooled_epochs: Epochs in which to train a copy of the learner's model, from new random values, on the examples
            of all training tasks, without adaptation, with the learner's optimizer; 0: leave this baseline out.
            Regressions only.
        trainer: Runs the tests; None: a new one.

    Returns:
        A row for each learner: ``learner``, ``metric`` ("acc", "rmse"), its ``mean`` over test tasks, the half-width
        ``ci95`` of its 95 % interval, ``tasks``, and the chosen ``penalty``. An "rmse" is the mean of the tasks' root
        mean squared errors, in the targets' units. ``data.interval_scope`` says what the intervals are about: of
        N-way tasks, new tasks of these classes, not new classes.

    Raises:
        ValueError: If there are no validation tasks, or a layer of the model cannot be given new random values.
    """
    trainer = quiet_trainer() if trainer is None else trainer
    data.prepare_data()
    data.setup("fit")
    if not data.num_tasks["val"]:
        raise ValueError("there are no validation tasks, on which penalties are chosen: give the data module some")
    is_regression = _is_regression(data)
    targets = None if data.preparation is None else data.preparation.targets
    scale = targets.std if isinstance(targets, RealTargets) else 1.0
    rows = []

    def add(name: str, tested: TaskLearner, suffix: str = "", penalty: float | None = None) -> None:
        values = tested.per_task("test")[("mse" if is_regression else "acc") + suffix]
        mean = MeanOverTasks().to(values.device)
        mean.update(values.sqrt() * scale if is_regression else values)
        center, half = mean.compute()
        rows.append(
            {
                "learner": name,
                "metric": "rmse" if is_regression else "acc",
                "mean": float(center),
                "ci95": float(half),
                "tasks": values.numel(),
                "penalty": penalty,
            }
        )

    if learner is not None:
        trainer.test(learner, data, verbose=False)
        add(type(learner).__name__, learner)
        if learner.eval_inner_steps:
            add(f"{type(learner).__name__}, no adaptation", learner, "_pre")
        if pooled_epochs and is_regression:
            model = fresh_model(learner.model, "set pooled_epochs=0")
            pooled = PooledModel(model, learner.loss_fn, optimizer=learner.optimizer_factory)
            quiet_trainer(max_epochs=pooled_epochs).fit(pooled, data)
            trainer.test(pooled, data, verbose=False)
            add("pooled model", pooled)
    for name, make, penalties in _baselines(data, is_regression):
        best = min(penalties, key=lambda penalty: _validation_loss(trainer, make(penalty), data, is_regression))
        tested = make(best)
        trainer.test(tested, data, verbose=False)
        add(name, tested, penalty=best)
    return pl.DataFrame(rows, schema_overrides={"penalty": pl.Float64})


Make = Callable[[Any], TaskLearner]


def _baselines(data: TaskDataModule, is_regression: bool) -> Iterable[tuple[str, Make, tuple[float | None, ...]]]:
    features = data.raw_features()
    if not is_regression:
        yield "nearest prototype", lambda _: ProtoNet(features), (None,)
        yield "ridge regression per task", lambda penalty: RidgeClassifier(features, penalty=penalty), PENALTIES
        yield "logistic regression per task", lambda penalty: LogisticRegression(features, penalty=penalty), PENALTIES
        return
    loss = nn.MSELoss()
    yield "mean of the support", lambda _: MeanTarget(loss), (None,)
    if data.in_time_order:
        yield "last value", lambda _: LastTarget(loss), (None,)
    yield "ridge regression per task", lambda penalty: RidgeRegression(features, loss, penalty=penalty), PENALTIES
    batches = list(data.train_dataloader())
    pooled = {penalty: PooledRidge(features, loss, penalty=penalty).fit_tasks(batches) for penalty in PENALTIES}
    yield "ridge regression on all training tasks", lambda penalty: pooled[penalty], PENALTIES


def _validation_loss(trainer: L.Trainer, learner: TaskLearner, data: TaskDataModule, is_regression: bool) -> float:
    trainer.validate(learner, data, verbose=False)
    values = learner.per_task("val")
    return float(values["mse"].sqrt().mean() if is_regression else -values["acc"].mean())


def _is_regression(data: TaskDataModule) -> bool:
    batch: Episode = next(iter(data.test_dataloader()))
    return batch.query_y.is_floating_point()
