"""`TableDataModule`: the base of data modules whose tasks are groups of a table's rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from lightning_meta import arguments
from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import Split
from lightning_meta.data.preparation import ClassTargets, RealTargets
from lightning_meta.data.tables import check_columns
from lightning_meta.data.tabular.columns import numbers_of
from lightning_meta.data.tabular.groups import Groups, grouped, split_by_column, split_by_digest
from lightning_meta.data.tabular.row_choice import RandomRows, RandomTimeSplit, RowChoice, TimeSplit, TimeWindows
from lightning_meta.data.tabular.table_episodes import TableEpisodes
from lightning_meta.data.tabular.table_preparation import MISSING, TablePreparation
from lightning_meta.data.tabular.targets import (
    TaskKind,
    check_classes_are_trained,
    class_targets,
    real_targets,
    target_values,
)


class TableDataModule(TaskDataModule):
    """Tasks that are groups of a table's rows; a derived class implements `table`.

    Inputs are ``[tasks, rows, features]``, prepared as in `TablePreparation`. Targets are standardized numbers
    ``[tasks, rows, 1]`` or class labels ``[tasks, rows]``. So mean squared errors are in units of the training
    targets' variance: times ``preparation.targets.std ** 2`` they are in the target's own units. Groups are split
    into training, validation and test; scales and categories come from the training groups alone. Rows without task,
    target or time are left out, and so are groups with too few rows, both with a warning.

    Training draws a group for each task, all with equal probability, and rows of it. Validation and test go through
    the groups in turn, with the same rows every time. Where they are more than the groups, intervals are over tasks of
    these groups, not of new ones. Tasks of different sizes are padded, with masks.

    Args:
        source: Where the table comes from, for messages.
        task_column: The column that names a row's group.
        target_column: The column to predict.
        feature_columns: The columns that become features; None: all but those for task, target, time and split.
        shots: Support rows per task; in classification too, where they include each class of the group if they can.
            With ``split_time``, the least number of support rows.
        query_shots: Query rows per task; None: all other rows, with ``time_column`` all later ones.
        time_column: A column of numbers or dates. Support rows then precede the query rows in time, strictly, and
            these follow directly. The window starts at a random row; without ``query_shots``, in validation and
            test, at the first.
        task: "regression", or "classification" with the same classes in all tasks, sorted.
        split_column: A column with "train", "val" or "test" for each group; None: by a digest of the group's name.
        val_fraction: The fraction of validation groups.
        test_fraction: The fraction of test groups.
        split_time: The support set is all rows before this time, the query set all others. Of a time column of
            dates, days since 1970.
        random_split_time: Whether in training the support set ends at a random row instead, for more variety; then a
            training group needs ``shots`` rows in all.
        missing_values: Texts that stand for a missing value in CSV files.
        val_tasks: Validation tasks; None: one for each validation group.
        test_tasks: Test and prediction tasks; None: one for each test group.
        **options: As in `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range or, when the table is read, a column is not there or cannot
            be used, a class is in no training group, or no group of a split has enough rows.
    """

    preparation: TablePreparation | None = None

    def __init__(
        self,
        source: str,
        task_column: str,
        target_column: str,
        feature_columns: Sequence[str] | None = None,
        shots: int = 5,
        query_shots: int | None = None,
        time_column: str | None = None,
        task: TaskKind = "regression",
        split_column: str | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_time: float | None = None,
        random_split_time: bool = False,
        missing_values: Sequence[str] = MISSING,
        val_tasks: int | None = None,
        test_tasks: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(val_tasks=val_tasks or 1, test_tasks=test_tasks or 1, **options)
        arguments.check_optional_count("val_tasks", val_tasks)
        arguments.check_optional_count("test_tasks", test_tasks)
        arguments.check_count("shots", shots)
        arguments.check_optional_count("query_shots", query_shots)
        arguments.check_choice("task", task, TaskKind)
        arguments.check_fraction("val_fraction", val_fraction)
        arguments.check_fraction("test_fraction", test_fraction)
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} leave no group to train on"
            )
        _check_roles(task_column, target_column, time_column, split_column, feature_columns)
        _check_split_time(split_time, random_split_time, time_column, query_shots)
        self.in_time_order = time_column is not None
        self.source = source
        self.task_column = task_column
        self.target_column = target_column
        self.feature_columns = None if feature_columns is None else tuple(feature_columns)
        self.shots = shots
        self.query_shots = query_shots
        self.time_column = time_column
        self.task = task
        self.split_column = split_column
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_time = split_time
        self.random_split_time = random_split_time
        self.missing_values = tuple(missing_values)
        self._given_tasks: dict[Split, int | None] = {
            "train": self.num_tasks["train"],
            "val": val_tasks,
            "test": test_tasks,
        }
        self._episodes: dict[Split, TableEpisodes] = {}

    @abstractmethod
    def table(self) -> pl.DataFrame:
        """Return the table, one row per example."""

    @property
    def num_features(self) -> int:
        """The number of features, which the model's inputs have; reads the table."""
        self.setup("fit")
        assert self.preparation is not None
        return len(self.preparation.feature_names)

    def setup(self, stage: str) -> None:
        """Read the table, split its groups, and learn scales and categories from those for training."""
        if self._episodes:
            return
        table, times, values = self._complete_rows(self.table())
        order, groups = grouped(table[self.task_column], times)
        table, values = table[order], values[order]
        classes = class_targets(values) if self.task == "classification" else None
        if classes is not None:
            groups = groups.with_labels(classes.labels(values, classes.classes or ()).numpy())
        choices = self._choices(groups, table)
        training = choices["train"].groups.rows()
        if classes is not None:
            check_classes_are_trained(self.target_column, classes, values[training])
        targets: ClassTargets | RealTargets = classes or real_targets(values[training])
        self.preparation = TablePreparation.fitted(
            table[training],
            self._features_of(table),
            self.time_column,
            missing_values=self.missing_values,
            target_column=self.target_column,
            task_column=self.task_column,
            targets=targets,
        )
        inputs, target_tensor = self.preparation.inputs(table), self.preparation.target_tensor(values)
        for split in self.num_tasks:
            groups_here = len(choices[split].groups.names) if split in choices else 0
            self.num_tasks[split] = (self._given_tasks[split] or groups_here) if groups_here else 0
            if split != "train" and self.num_tasks[split] > groups_here:
                self.interval_scope = "over tasks of these groups"
        self._episodes = {
            split: TableEpisodes(inputs, target_tensor, choice, split, self.num_tasks[split], self.seed)
            for split, choice in choices.items()
        }
        names = self.preparation.feature_names
        sizes = ", ".join(f"{len(choice.groups.names)} {split}" for split, choice in choices.items())
        rank_zero_info(f"{self.source!r}: {len(names)} features ({', '.join(names)}); groups: {sizes}")

    def episodes(self, split: Split) -> TableEpisodes:
        """Return the tasks of a split."""
        self.setup("fit")
        if split not in self._episodes:
            raise ValueError(f"there is no {split} group: set {split}_fraction above 0, or name some in split_column")
        return self._episodes[split]

    def group_names(self, split: Split) -> tuple[str, ...]:
        """Return the names of a split's groups, in the order of its tasks in validation and test."""
        return self.episodes(split).choice.groups.names

    # ---- Inside. --------------------------------------------------------------------------------------------

    def _complete_rows(self, table: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[np.float64] | None, pl.Series]:
        """Return the rows with task, target and time, their times, and their targets."""
        roles = {
            "task_column": self.task_column,
            "target_column": self.target_column,
            "time_column": self.time_column,
            "split_column": self.split_column,
        }
        named = [(role, name) for role, name in roles.items() if name is not None]
        check_columns(table, [*named, *(("feature_columns", name) for name in self.feature_columns or ())], self.source)
        values = target_values(table[self.target_column], self.task)
        times = None if self.time_column is None else numbers_of(table[self.time_column])
        missing = {"task": table[self.task_column].is_null().to_numpy(), "target": values.is_null().to_numpy()}
        if times is not None:
            missing["time"] = np.isnan(times)
        complete = ~np.logical_or.reduce(list(missing.values()))
        if not complete.all():
            counts = ", ".join(f"{rows.sum()} without {role}" for role, rows in missing.items() if rows.any())
            rank_zero_warn(f"{self.source!r}: left out {(~complete).sum()} of {len(complete)} rows: {counts}")
        if not complete.any():
            raise ValueError(f"{self.source!r} has no row with task, target and time")
        return table.filter(complete), None if times is None else times[complete], values.filter(complete)

    def _features_of(self, table: pl.DataFrame) -> list[str]:
        if self.feature_columns is not None:
            return list(self.feature_columns)
        others = {self.task_column, self.target_column, self.time_column, self.split_column}
        features = [name for name in table.columns if name not in others]
        if not features:
            raise ValueError(f"{self.source!r} has no column left for features: name some in feature_columns")
        return features

    def _choices(self, groups: Groups, table: pl.DataFrame) -> dict[Split, RowChoice]:
        """Return how rows are chosen in each split, among its groups with enough rows."""
        if self.split_column is None:
            splits = split_by_digest(groups.names, self.val_fraction, self.test_fraction)
        else:
            splits = split_by_column(groups, table[self.split_column])
        kept: dict[Split, RowChoice] = {}
        skipped: list[str] = []
        for split in self.num_tasks:
            own = groups.select(np.array([each == split for each in splits]))
            enough = self._choice(split, own).enough()
            skipped += own.select(~enough).names
            if enough.any():
                kept[split] = self._choice(split, own.select(enough))
            elif split == "train" or own.names:
                raise ValueError(
                    f"{self.source!r}: none of its {len(own.names)} groups for {split!r} has {self._need()}: lower "
                    "shots or query_shots, or give other groups to this split"
                )
        if skipped:
            examples = ", ".join(map(repr, skipped[:3])) + (", ..." if len(skipped) > 3 else "")
            rank_zero_warn(
                f"{self.source!r}: left out {len(skipped)} of {len(groups.names)} groups with too few rows "
                f"({examples}); a task needs {self._need()}"
            )
        return kept

    def _choice(self, split: Split, groups: Groups) -> RowChoice:
        if self.split_time is not None:
            if self.random_split_time and split == "train":
                return RandomTimeSplit(groups, self.shots)
            return TimeSplit(groups, self.split_time, self.shots)
        if self.time_column is not None:
            from_start = split != "train" and self.query_shots is None
            return TimeWindows(groups, self.shots, self.query_shots, from_start)
        return RandomRows(groups, self.shots, self.query_shots)

    def _need(self) -> str:
        if self.split_time is not None:
            return f"{self.shots} rows before {self.time_column}={self.split_time} and one after"
        later = "later " if self.time_column else ""
        return f"shots={self.shots} support rows and {self.query_shots or 1} {later}query rows"


def _check_roles(task: str, target: str, time: str | None, split: str | None, features: Sequence[str] | None) -> None:
    roles = {"task_column": task, "target_column": target, "time_column": time, "split_column": split}
    given = [(role, name) for role, name in roles.items() if name is not None]
    for position, (role, name) in enumerate(given):
        for other, same in given[:position]:
            if name == same:
                raise ValueError(f"{other} and {role} are both {name!r}: each needs a column of its own")
    if features is None:
        return
    if isinstance(features, str) or not features:
        raise ValueError(f"feature_columns={features!r} must be a list of one or more columns, or None")
    for position, name in enumerate(features):
        if name in features[:position]:
            raise ValueError(f"feature_columns names {name!r} twice: name it once")
        for role in ("task_column", "target_column", "split_column"):
            if name == roles[role]:
                raise ValueError(f"feature_columns names {name!r}, which is the {role}: leave it out")


def _check_split_time(split_time: float | None, at_random: bool, time: str | None, query_shots: int | None) -> None:
    if split_time is None:
        if at_random:
            raise ValueError("random_split_time=True needs a split_time for validation and test")
        return
    if time is None:
        raise ValueError(f"split_time={split_time} needs a time_column")
    if query_shots is not None:
        raise ValueError(f"split_time={split_time} makes later rows the query set: leave out query_shots={query_shots}")
