"""`TablePreparation`: how rows of a table become features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor

from lightning_meta.data.preparation import ClassTargets, Preparation, RealTargets
from lightning_meta.data.tables import check_columns, names_of, read_table
from lightning_meta.data.tabular.columns import CategoryColumn, Column, column_of, fitted_column
from lightning_meta.data.tabular.targets import number_targets

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
"""Texts that stand for a missing value in CSV files."""


class TablePreparation(Preparation):
    """Rows of a table as features: numbers standardized, texts and truth values one-hot encoded.

    - A number becomes ``(value - mean) / std``; a missing one takes the median, and a second feature is 1 where the
      value is missing if it was ever missing in training. Dates are numbers: days since 1970.
    - A text or truth value becomes one feature per category of the training tasks, 1 for its own; all are 0 where the
      value is missing or was not seen in training.

    Args:
        columns: The feature columns, or their fields by name.
        missing_values: Texts that stand for a missing value in CSV files.
        **options: As in `Preparation`.

    Raises:
        ValueError: If an argument is of another type or out of its range.
    """

    kind = "table"

    def __init__(
        self, columns: Sequence[Column | Mapping[str, Any]], missing_values: Sequence[str] = MISSING, **options: Any
    ) -> None:
        super().__init__(**options)
        if not isinstance(columns, Sequence) or not columns:
            raise ValueError("columns must be a list of one or more")
        if isinstance(missing_values, str) or not all(isinstance(text, str) for text in missing_values):
            raise ValueError("missing_values must be a list of texts")
        self.columns = [column if isinstance(column, Column) else column_of(column) for column in columns]
        self.missing_values = tuple(missing_values)

    @classmethod
    def fitted(
        cls, rows: pl.DataFrame, feature_columns: Sequence[str], time_column: str | None = None, **options: Any
    ) -> Self:
        """Learn scales and categories from the training tasks' rows.

        Args:
            rows: The rows.
            feature_columns: The columns that become features.
            time_column: The column whose texts are points in time.
            **options: The further arguments of the constructor.

        Raises:
            ValueError: If a column cannot become features; the message names it.
        """
        return cls([fitted_column(rows[name], name == time_column) for name in feature_columns], **options)

    @property
    def feature_names(self) -> list[str]:
        """The features' names, in the order of `inputs`."""
        return [name for column in self.columns for name in column.feature_names]

    def read(self, source: str | Path, labelled: bool) -> pl.DataFrame:
        """Read a table; if labelled, its targets are numbers, or the classes' names.

        Categories that training had not count as missing, with a warning.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the source is a folder, a column is not there or holds nothing that training had, or a
                target is missing or of the wrong type.
        """
        table = read_rows(source, self.missing_values, self._texts())
        check_columns(table, [("feature_columns", column.name) for column in self.columns], source)
        for column in self.columns:  # of the whole file: `inputs` sees the rows of single tasks
            if isinstance(column, CategoryColumn):
                column.check_known(table[column.name], self.missing_values)
            else:
                column.features(table[column.name])
        if not labelled:
            return table
        check_columns(table, [("target_column", self.target_column)], source)
        target = table[self.target_column]
        target = names_of(target) if isinstance(self.targets, ClassTargets) else number_targets(target)
        if target.null_count():
            raise ValueError(
                f"column {self.target_column!r} of {str(source)!r} is empty in {target.null_count()} rows: remove these"
            )
        if isinstance(self.targets, RealTargets):
            self.targets.standardized(target)  # names the row of the file if it is too large
        return table.with_columns(target)

    def inputs(self, rows: pl.DataFrame) -> Tensor:
        """Return features ``[rows, features]``."""
        features = [column.features(rows[column.name]) for column in self.columns]
        return torch.from_numpy(np.concatenate(features, axis=1)).to(torch.get_default_dtype())

    def target_tensor(self, values: pl.Series) -> Tensor:
        """Return targets: standardized numbers ``[rows, 1]``, or labels ``[rows]``."""
        if isinstance(self.targets, RealTargets):
            return self.targets.standardized(values)
        return self.targets.labels(values, self.targets.classes or ())

    def _texts(self) -> list[str]:
        """Return the columns whose values must not be read as numbers: 07 is another code than 7."""
        texts = [column.name for column in self.columns if isinstance(column, CategoryColumn)]
        texts += [self.target_column] if isinstance(self.targets, ClassTargets) else []
        return texts if self.task_column is None else [*texts, self.task_column]

    def _own_state(self) -> dict[str, Any]:
        return {"columns": [asdict(column) for column in self.columns], "missing_values": self.missing_values}


def read_rows(source: str | Path, missing_values: Sequence[str], texts: Sequence[str]) -> pl.DataFrame:
    """Read a table from a file; arguments as in `read_table`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source is a folder or no table, or two columns share a name.
    """
    if Path(source).is_dir():
        raise ValueError(f"{str(source)!r} is a folder, and this data is read from one file, such as a CSV or Parquet")
    return read_table(source, missing_values, texts)
