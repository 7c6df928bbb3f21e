"""`FewShotPredictor`: adapts a trained learner to labelled examples in a file, and predicts those in another."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Self

import polars as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_meta import arguments
from lightning_meta.checkpoints.checked_io import Source
from lightning_meta.checkpoints.loading import Allowed
from lightning_meta.data.preparation import ClassTargets, Preparation
from lightning_meta.data.tables import check_columns, names_of, texts_of
from lightning_meta.learners import AdaptedTask, TaskLearner
from lightning_meta.learners.randomness import reproducible_draws
from lightning_meta.metrics.conformal_quantiles import ConformalQuantiles, tasks_needed
from lightning_meta.models.batch_statistics import has_batch_statistics
from lightning_meta.prediction.columns import class_columns, real_columns
from lightning_meta.prediction.preparations import preparation_of
from lightning_meta.prediction.written import as_written

_ROWS_AT_ONCE = 1024
_TASK = "name of the task"
_COVERAGE = 0.9


class FewShotPredictor:
    """Predicts examples in files with a learner from a checkpoint, which also says how files become tensors.

    Args:
        learner: The trained learner.
        preparation: How files become tensors.
        seed: The seed of random draws. A task's draws do not depend on the other tasks.

    Example:
        >>> from lightning_meta import FewShotPredictor
        >>> def predict(checkpoint, labelled, unlabelled):
        ...     predictor = FewShotPredictor.from_checkpoint(checkpoint)
        ...     return predictor.adapt(labelled).predict(unlabelled)
    """

    def __init__(self, learner: TaskLearner, preparation: Preparation, seed: int = 0) -> None:
        arguments.check_seed(seed)
        self.learner = learner.eval()
        self.preparation = preparation
        self.seed = seed

    @classmethod
    def from_checkpoint(cls, ckpt_path: Source, allow: Allowed = (), seed: int = 0, **options: Any) -> Self:
        """Load a learner and the preparation of its data; the checkpoint cannot run code.

        Args:
            ckpt_path: A checkpoint of a training whose data module had a `Preparation`.
            allow: As in `TaskLearner.load_from_checkpoint`.
            seed: The seed of random draws.
            **options: Arguments of the learner that replace those of the checkpoint.

        Raises:
            ValueError: If the checkpoint has no preparation, or names a class that is not allowed.
        """
        learner = TaskLearner.load_from_checkpoint(ckpt_path, map_location="cpu", allow=allow, **options)
        return cls(learner, preparation_of(learner.trained_preparation), seed)

    def adapt(self, support: str | Path, task_column: str | None = None, steps: int | None = None) -> AdaptedTasks:
        """Adapt to the labelled examples of a file, or of a folder of pictures.

        Args:
            support: A CSV, Parquet or JSON file; for pictures a folder with a folder of each class.
            task_column: The column that names a row's task; None: the one of the training, if the file has it,
                otherwise all rows are one task.
            steps: Inner steps; None: the learner's ``eval_inner_steps``. With other steps, the scores on validation
                tasks say nothing, so that there are no intervals and sets from them.

        Raises:
            ValueError: If the file lacks a column, labels or targets are missing, or the learner cannot take them.
        """
        rows = self.preparation.read(support, labelled=True)
        column = self._task_column(rows, task_column, support)
        values = rows[self.preparation.target_column]
        if values.null_count():
            first = int(values.is_null().arg_true()[0]) + 1
            raise ValueError(f"{str(support)!r} has no value in column {values.name!r} in row {first}: remove the row")
        tasks = {}
        for name, own in _groups(rows, column).items():
            try:
                with _draws_of(self.seed, name):
                    tasks[name] = self._adapt_one(own, steps)
            except ValueError as error:
                raise ValueError(f"{_said(column, name)}{error}") from error
        is_validated = steps in (None, self.learner.eval_inner_steps)
        scores = self.learner.validation_scores if is_validated else None
        return AdaptedTasks(self.preparation, tasks, column, self._rows_at_once(), scores, self.seed)

    def _rows_at_once(self) -> int | None:
        if self.learner.batch_statistics != "batch" or not has_batch_statistics(self.learner.model):
            return _ROWS_AT_ONCE
        rank_zero_warn(
            "The model normalizes the query rows of a task by their common statistics (batch_statistics='batch'), so "
            "that their predictions depend on each other. Pass batch_statistics='support' to predict each row alone."
        )
        return None

    def _adapt_one(self, rows: pl.DataFrame, steps: int | None) -> _Task:
        values, targets = rows[self.preparation.target_column], self.preparation.targets
        if isinstance(targets, ClassTargets):
            classes = targets.classes or tuple(sorted(texts_of(values).unique()))
            if len(classes) < 2:
                raise ValueError(f"all labels are {classes[0]!r}: give examples of at least two classes")
            y = targets.labels(values, classes)
        else:
            classes, y = (), targets.standardized(values)
            if not bool(y.isfinite().all()):
                row = int((~y.isfinite()).any(1).nonzero()[0]) + 1
                raise ValueError(f"column {values.name!r} holds {values[row - 1]} in row {row}: remove the row")
        return _Task(self.learner.adapt(self.preparation.inputs(rows), y, steps), classes)

    def _task_column(self, rows: pl.DataFrame, given: str | None, source: Any) -> str | None:
        if given is not None:
            check_columns(rows, [("task_column", given)], source)
            return given
        own = self.preparation.task_column
        return own if own in rows.columns else None


class _Task(NamedTuple):
    """An adapted task, and its classes in the order of the outputs; no classes in a regression."""

    model: AdaptedTask
    classes: tuple[str, ...]


class AdaptedTasks(Mapping[str | None, AdaptedTask]):
    """The adapted models by the name of their task; the name of a single task is None.

    Args:
        preparation: How files become tensors.
        tasks: The adapted models with their classes.
        task_column: The column with the names of the tasks.
        rows_at_once: Rows that the model gets in one call; None: all, as their predictions depend on each other.
        scores: The scores on validation tasks, from which intervals and sets come.
        seed: The seed of random draws.
    """

    def __init__(
        self,
        preparation: Preparation,
        tasks: Mapping[Any, _Task],
        task_column: str | None,
        rows_at_once: int | None,
        scores: ConformalQuantiles | None,
        seed: int,
    ) -> None:
        self.preparation = preparation
        self.task_column = task_column
        self._tasks = tasks
        self._rows_at_once = rows_at_once
        self._scores = scores
        self._seed = seed

    def __getitem__(self, name: Any) -> AdaptedTask:
        return self._tasks[name].model

    def __iter__(self) -> Any:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def predict(self, query: str | Path, coverage: float | None = None) -> pl.DataFrame:
        """Predict the examples of a file, or of a folder of pictures.

        Args:
            query: As the support, without labels; pictures lie in one folder.
            coverage: The probability that the interval of a regression, or the set of classes, should contain the
                target; None: 0.9.

        Returns:
            The query's rows and columns in their order, and then ``prediction`` (the class, or the mean). For classes
            ``probability_<class>`` and ``prediction_set``, a JSON list of classes, which may be empty. For a regression
            ``mean``, ``std``, ``lower_90`` and ``upper_90`` in the target's units (90: the coverage in percent).
            Intervals and sets come from the scores on validation tasks; without these, columns are empty, but for the
            intervals of learners with a noise model, which then are of their predictive distribution. For Bayesian
            learners ``aleatoric`` and ``epistemic``: entropies in nats, or variances.

        Raises:
            ValueError: If the file lacks a column, names a task or a label that the support lacks, or has a column of
                a name of the output; or if validation had too few tasks for a coverage that was given, and the learner
                has no noise model. Without a given coverage this is a warning.
        """
        coverage = self._possible(coverage)
        rows = self.preparation.read(query, labelled=False)
        if self.task_column is not None:
            check_columns(rows, [("task_column", self.task_column)], query)
        place = "prediction row number"
        numbered = rows.with_row_index(place)
        parts = []
        for name, own in _groups(numbered, self.task_column).items():
            if name not in self._tasks:
                raise ValueError(
                    f"{str(query)!r} has rows of task {name!r}, which the support lacks: its tasks are "
                    f"{', '.join(map(repr, list(self._tasks)[:10]))}"
                )
            task = self._tasks[name]
            try:
                self._check_labels(own, task)
                predicted = self._predict_one(name, own.drop(place), task, coverage)
            except ValueError as error:
                raise ValueError(f"{_said(self.task_column, name)}{error}") from error
            parts.append(predicted.with_columns(own[place]))
        predicted = pl.concat(parts, how="diagonal").sort(place).drop(place)
        rows = as_written(rows.drop(self.preparation.private_columns, strict=False), query)
        taken = [column for column in predicted.columns if column in rows.columns]
        if taken:
            raise ValueError(f"{str(query)!r} already has a column {taken[0]!r}: rename it")
        return rows.hstack(predicted)

    def _possible(self, given: float | None) -> float:
        """Return the coverage; say so if validation had too few tasks for it."""
        coverage = _COVERAGE if given is None else given
        arguments.check_coverage(coverage)
        if self._scores is None or self._scores.quantile(coverage) < math.inf:
            return coverage
        needed = tasks_needed(coverage)
        cure = "give a coverage of at most 0.999" if needed is None else f"it needs {needed}"
        message = f"coverage={coverage:g}, but the learner was validated on {self._scores.tasks} tasks: {cure}"
        if self._scores.score == "standardized":
            rank_zero_warn(f"{message}. Intervals are of the learner's own predictive distribution instead.")
        elif given is None:
            rank_zero_warn(f"{message}. Intervals and sets are empty.")
        else:
            raise ValueError(message)
        return coverage

    def _check_labels(self, rows: pl.DataFrame, task: _Task) -> None:
        column = self.preparation.target_column
        if task.classes and column in rows.columns:
            ClassTargets().labels(rows[column].drop_nulls(), task.classes)

    def _predict_one(self, name: str | None, rows: pl.DataFrame, task: _Task, coverage: float) -> pl.DataFrame:
        if self._rows_at_once is None and len(rows) == 1:
            raise ValueError(
                "a single row cannot be normalized by its own statistics: pass batch_statistics='support', or predict "
                "several rows of the task"
            )
        targets, parts = self.preparation.targets, []
        for part in rows.iter_slices(self._rows_at_once or len(rows)):
            x = self.preparation.inputs(part)
            with _draws_of(self._seed, name):
                if isinstance(targets, ClassTargets):
                    parts.append(class_columns(task.model, x, task.classes, coverage, self._scores))
                else:
                    parts.append(real_columns(task.model, x, targets, coverage, self._scores))
        return pl.concat(parts)


def _draws_of(seed: int, task: str | None) -> AbstractContextManager[None]:
    """Make random numbers a function of seed and task."""
    return reproducible_draws(seed, 0, zlib.crc32(str(task).encode()), torch.device("cpu"))


def _groups(rows: pl.DataFrame, column: str | None) -> dict[Any, pl.DataFrame]:
    if column is None:
        return {None: rows}
    if rows[column].null_count():
        row = int(rows[column].is_null().arg_true()[0]) + 1
        raise ValueError(f"column {column!r} names no task in row {row}: fill it in or remove the row")
    names = names_of(rows[column])
    parts = rows.with_columns(names.alias(_TASK)).partition_by(_TASK, maintain_order=True, as_dict=True)
    return {name: part.drop(_TASK) for (name,), part in parts.items()}


def _said(column: str | None, name: Any) -> str:
    return "" if column is None else f"task {name!r}: "
