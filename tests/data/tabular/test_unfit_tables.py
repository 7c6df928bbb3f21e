"""Errors of tables and arguments that do not fit."""

from __future__ import annotations

import polars as pl
import pytest

from lightning_meta import TabularTasksDataModule
from tests.data.tabular.made import patients

TABLE = patients()


def module(tmp_path, table: pl.DataFrame = TABLE, **options) -> TabularTasksDataModule:
    path = tmp_path / "visits.parquet"
    table.write_parquet(path)
    defaults = {"task_column": "patient", "target_column": "level", "shots": 5, "query_shots": 3}
    return TabularTasksDataModule(path, **(defaults | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots=0"),
        ({"query_shots": 0}, "query_shots=0"),
        ({"val_tasks": 0}, "val_tasks=0"),
        ({"task": "ranking"}, "task='ranking' is not one of"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave no (training )?group"),
        ({"target_column": "patient"}, "task_column and target_column are both 'patient'"),
        ({"feature_columns": ["dose", "patient"]}, "feature_columns names 'patient', which is the task_column"),
        ({"feature_columns": ["dose", "dose"]}, "feature_columns names 'dose' twice"),
        ({"feature_columns": "dose"}, "feature_columns='dose' must be a list"),
        ({"feature_columns": []}, "must be a list of one or more columns"),
        ({"split_time": 3.0}, "split_time=3.0 needs a time_column"),
        ({"split_time": 3.0, "time_column": "day"}, "leave out query_shots"),
        ({"random_split_time": True}, "needs a split_time"),
    ],
)
def test_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_column": "patients"}, "task_column='patients'.*did you mean 'patient'"),
        ({"feature_columns": ["dosis"]}, "feature_columns='dosis'.*did you mean 'dose'"),
        ({"target_column": "ward"}, "target_column 'ward' holds 'north'.*for classes use task='classification'"),
        ({"task": "classification"}, "target_column 'level' holds .*, which is no class: use task='regression'"),
        ({"shots": 50}, "none of its 14 groups for .train. has shots=50 support rows and 3 query rows: lower shots"),
        ({"shots": 50, "time_column": "day"}, "shots=50 support rows and 3 later query rows"),
        ({"time_column": "ward"}, "column 'ward' holds 'north', which is neither a number nor a date"),
        (
            {"split_column": "ward"},
            "split_column 'ward' holds .* for group 'p0': it must be one of 'train', 'val', 'test'",
        ),
        ({"target_column": "row", "task": "classification"}, "class '.*' in validation or test tasks only"),
    ],
)
def test_arguments_that_the_table_does_not_fit(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **options).setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.lit(float("inf")).alias("dose"), "column 'dose' holds inf in row 1: replace it"),
        (pl.lit(None).alias("dose"), "column 'dose' is empty in all training tasks"),
        (pl.lit(3).alias("level"), "target_column 'level' is 3.0 in all training tasks: there is nothing to learn"),
        (pl.lit(None).alias("level"), "has no row with task, target and time"),
        (pl.col("row").cast(pl.String).repeat_by(2).alias("ward"), "column 'ward' holds values of type List"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_tables(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, TABLE.with_columns(change)).setup("fit")


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        TabularTasksDataModule("nowhere.csv", task_column="a", target_column="b").setup("fit")
    with pytest.raises(ValueError, match="is a folder"):
        TabularTasksDataModule(tmp_path, task_column="a", target_column="b").setup("fit")
    with pytest.raises(ValueError, match="has no column left for features"):
        module(tmp_path, TABLE.select("patient", "level")).setup("fit")
