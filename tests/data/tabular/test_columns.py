"""Columns of files that differ from those of the training."""

from __future__ import annotations

import datetime
import warnings

import numpy as np
import polars as pl
import pytest
import torch

from lightning_meta.data.preparation import RealTargets
from lightning_meta.data.tabular.columns import CategoryColumn, NumberColumn, holds_dates, numbers_of
from lightning_meta.data.tabular.table_preparation import TablePreparation

NUMBER = NumberColumn("x", 0.0, 1.0, 5.0, flagged=False)
DATE = NumberColumn("x", 0.0, 1.0, 5.0, flagged=False, is_date=True)
DAYS = ["2020-01-02", None, "2020-01-03 12:00"]


def prepared(column) -> TablePreparation:
    return TablePreparation([column], target_column="y", task_column="t", targets=RealTargets(0.0, 1.0))


def written(folder, text: str):
    (folder / "rows.csv").write_text(text)
    return folder / "rows.csv"


class TestTruthValues:
    @pytest.mark.parametrize(
        "values", [["true", "false"], ["TRUE", "False"], ["1", "0"], [1, 0], [1.0, 0.0], [True, False]]
    )
    @pytest.mark.parametrize("categories", [("false", "true"), ("False", "True")])
    def test_they_may_be_written_in_any_way(self, values, categories):
        column = CategoryColumn("x", categories)
        values = pl.Series("x", values)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            column.check_known(values)
        assert column.features(values).tolist() == [[0, 1], [1, 0]]

    def test_other_categories_are_exact(self):
        column = CategoryColumn("x", ("1", "true"))
        assert column.features(pl.Series("x", ["True", "1", "true", "0"])).tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]


class TestUnknownCategories:
    def test_some_give_one_warning_for_the_file(self, tmp_path):
        path = written(tmp_path, "t,x\n1,a\n2,c\n3,d\n4,NA\n")
        with pytest.warns(UserWarning, match="column 'x' holds 2 values that training had not, such as 'c'") as caught:
            rows = prepared(CategoryColumn("x", ("a", "b"))).read(path, labelled=False)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepared(CategoryColumn("x", ("a", "b"))).inputs(rows)
            prepared(CategoryColumn("x", ("a", "b", "c", "d"))).read(path, labelled=False)

    def test_a_column_of_nothing_else_is_refused(self, tmp_path):
        path = written(tmp_path, "t,x\n1,7\n2,12\n3,\n4,?\n")
        with pytest.raises(ValueError, match="column 'x' holds no category of the training, but such as '7': .* 'A5'"):
            prepared(CategoryColumn("x", ("07", "A5"))).read(path, labelled=False)

    def test_a_column_of_missing_values_is_not(self, tmp_path):
        path = written(tmp_path, "t,x\n1,\n2,NA\n")
        preparation = prepared(CategoryColumn("x", ("07", "A5")))
        assert preparation.inputs(preparation.read(path, labelled=False)).tolist() == [[0, 0], [0, 0]]

    def test_lists_are_no_categories(self):
        with pytest.raises(ValueError, match="column 'x' holds List"):
            CategoryColumn("x", ("a", "b")).check_known(pl.Series("x", [["a"], ["b"]]))


class TestDates:
    def test_training_notes_them(self):
        for values in (
            pl.Series("x", DAYS),
            pl.Series("x", [datetime.date(2020, 1, 2), None, datetime.date(2020, 1, 4)]),
        ):
            assert holds_dates(values)
            assert NumberColumn.fitted(values).is_date
        for values in (pl.Series("x", [1, None, 3]), pl.Series("x", ["1", "2.5"]), pl.Series("x", [None], pl.String)):
            assert not holds_dates(values)

    def test_days_since_1970(self):
        expected = (datetime.date(2020, 1, 2) - datetime.date(1970, 1, 1)).days
        np.testing.assert_allclose(DATE.features(pl.Series("x", DAYS))[:, 0], [expected, 5, expected + 1.5])

    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            (DATE, [None, 18263], "column 'x' holds '18263', a number or text, where training had dates: write dates"),
            (DATE, ["2020-01-02", "5"], "column 'x' holds '5', a number or text, where training had dates"),
            (NUMBER, DAYS, "column 'x' holds '2020-01-02', a date, where training had numbers: write numbers"),
            (NUMBER, [datetime.date(2020, 1, 2)], "column 'x' holds '2020-01-02', a date"),
            (NUMBER, ["5", "2020-01-02"], "column 'x' holds '2020-01-02', a date, where training had numbers"),
            (NUMBER, ["5", "high"], "column 'x' holds 'high', which is neither a number nor a date"),
            (DATE, ["2020-02-30"], "column 'x' holds '2020-02-30', which is no date"),
            (DATE, ["2020-01-02 10:00 or so"], "column 'x' holds '2020-01-02 10:00 or so', which is no date"),
            (DATE, ["2020-01-02", "2020-02-30"], "column 'x' holds '2020-02-30', which is no date"),
        ],
    )
    def test_the_other_kind_is_refused(self, column, values, message):
        with pytest.raises(ValueError, match=message):
            column.features(pl.Series("x", values))

    @pytest.mark.parametrize("column", [DATE, NUMBER])
    @pytest.mark.parametrize("values", [[None, None], [float("nan"), None], pl.Series([None], dtype=pl.String)])
    def test_missing_values_are_of_both_kinds(self, column, values):
        assert set(column.features(pl.Series("x", values))[:, 0]) == {5.0}

    def test_the_whole_file_decides(self, tmp_path):
        path = written(tmp_path, "t,x\n1,2020-01-02\n2,5\n")
        for column in (DATE, NUMBER):
            with pytest.raises(ValueError, match="column 'x' holds"):
                prepared(column).read(path, labelled=False)

    def test_invalid_times_are_named(self):
        with pytest.raises(ValueError, match="column 't' holds '2020-13-01'"):
            numbers_of(pl.Series("t", ["2020-12-01", "2020-13-01"]))

    def test_they_are_no_targets(self, tmp_path):
        path = written(tmp_path, "t,x,y\n1,2,2020-01-02\n")
        with pytest.raises(ValueError, match="column 'y' holds dates, such as '2020-01-02', and targets are numbers"):
            prepared(NUMBER).read(path, labelled=True)


class TestLargeNumbers:
    def test_features_are_finite(self, tmp_path):
        path = written(tmp_path, "t,x\n1,2\n2,1e300\n")
        with pytest.raises(ValueError, match=r"column 'x' holds 1e\+?300 in row 2: replace it"):
            prepared(NUMBER).read(path, labelled=False)
        small = NumberColumn("x", 0.0, 1e-30, 0.0, flagged=False)
        with pytest.raises(ValueError, match="column 'x' holds 1000000000.0 in row 1: replace it"):
            small.features(pl.Series("x", [1e9, 1.0]))
        assert torch.isfinite(prepared(NUMBER).inputs(pl.DataFrame({"x": [1e38, -1e38]}))).all()

    def test_targets_are_finite(self):
        with pytest.raises(ValueError, match="column 'y' holds 1e.?300 in row 2, which is too large"):
            RealTargets(0.0, 1.0).standardized(pl.Series("y", [1.0, 1e300]))

    def test_targets_of_the_whole_file_are(self, tmp_path):
        path = written(tmp_path, "t,x,y\n1,2,3\n2,2,1e300\n")
        with pytest.raises(ValueError, match="column 'y' holds 1e.?300 in row 2, which is too large"):
            prepared(NUMBER).read(path, labelled=True)
