"""`TabularTasksDataModule`: tasks from a table in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from lightning_meta.data.tabular.table_module import TableDataModule
from lightning_meta.data.tabular.table_preparation import read_rows
from lightning_meta.data.tabular.targets import TaskKind


class TabularTasksDataModule(TableDataModule):
    """Tasks from a table in a file, in which a task is a group of rows: a patient, a shop, a share.

    Args:
        file: A CSV, TSV, Parquet or JSON file (`read_table` lists the endings), with a row per example.
        task_column: The column that names a row's group.
        target_column: The column to predict.
        feature_columns: The columns that become features; None: all but those for task, target, time and split.
        shots: Support rows per task.
        query_shots: Query rows per task; None: all others.
        time_column: A column of numbers or dates; support rows then precede query rows in time.
        task: "regression" or "classification".
        **options: As in `TableDataModule`, where all of these are explained, and `TaskDataModule`.

    Raises:
        FileNotFoundError: If there is no such file, when it is read.
        ValueError: As in `TableDataModule`.

    Example:
        >>> data = TabularTasksDataModule("visits.csv", task_column="patient", target_column="pain", shots=5)
    """

    keeps_arguments = True

    def __init__(
        self,
        file: str,
        task_column: str,
        target_column: str,
        feature_columns: Sequence[str] | None = None,
        shots: int = 5,
        query_shots: int | None = None,
        time_column: str | None = None,
        task: TaskKind = "regression",
        **options: Any,
    ) -> None:
        file = str(file)  # checkpoints keep this argument, and hold no paths
        super().__init__(
            source=file,
            task_column=task_column,
            target_column=target_column,
            feature_columns=feature_columns,
            shots=shots,
            query_shots=query_shots,
            time_column=time_column,
            task=task,
            **options,
        )
        self.file = Path(file)

    def table(self) -> pl.DataFrame:
        """Return the file's rows."""
        names = [self.task_column, self.split_column, self.target_column if self.task == "classification" else None]
        return read_rows(self.file, self.missing_values, [name for name in names if name is not None])
