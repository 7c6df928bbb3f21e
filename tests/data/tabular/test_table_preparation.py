"""Rows of a table as features."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from lightning_meta.data.preparation import ClassTargets, RealTargets
from lightning_meta.data.tabular.table_preparation import TablePreparation

ROWS = pl.DataFrame(
    {
        "size": [1.0, 3.0, None, 8.0],
        "kind": ["b", "a", None, "b"],
        "member": [True, False, True, True],
        "same": [4, 4, 4, 4],
        "day": ["2018-01-01", "2018-01-02", "2018-01-03 12:00", "2018-01-01"],
        "y": [1.0, 2.0, 3.0, 4.0],
    }
)
SCALE = RealTargets(2.0, 4.0)
NUMBER = {"name": "size", "mean": 0.0, "std": 1.0, "median": 0.0, "flagged": False}
FEATURES = ["size", "kind", "member", "same", "day"]


def prepared(rows: pl.DataFrame = ROWS, features=tuple(FEATURES), targets=SCALE) -> TablePreparation:
    return TablePreparation.fitted(
        rows, features, "day", target_column="y", task_column=None, targets=targets, missing_values=("", "?")
    )


def test_features():
    preparation = prepared()
    names = ["size", "size is missing", "kind=a", "kind=b", "member=false", "member=true", "same", "day"]
    assert preparation.feature_names == names
    size = (np.array([1, 3, 3, 8]) - 4) / np.std([1, 3, 8])  # the median, 3, for the missing value
    days = np.array([0, 1, 2.5, 0])
    expected = [
        size,
        [0, 0, 1, 0],
        [0, 1, 0, 0],
        [1, 0, 0, 1],
        [0, 1, 0, 0],
        [1, 0, 1, 1],
        [0, 0, 0, 0],
        (days - days.mean()) / days.std(),
    ]
    inputs = preparation.inputs(ROWS)
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.T, expected, atol=1e-6)


def test_new_rows():
    rows = pl.DataFrame({"size": ["8", None], "kind": ["c", "a"], "member": [None, "true"], "same": [5.0, 4.0]})
    rows = rows.with_columns(day=pl.lit("2018-01-01"))
    inputs = prepared().inputs(rows)
    assert inputs[0].tolist()[1:-1] == [0, 0, 0, 0, 0, 1]  # unknown and missing categories, a changed constant
    assert inputs[1].tolist()[1:-1] == [1, 1, 0, 0, 1, 0]
    assert float(inputs[0, 0]) == pytest.approx(4 / np.std([1, 3, 8]))


def test_a_checkpoint_keeps_it(tmp_path):
    first = prepared(targets=ClassTargets(("1", "2", "3", "4")))
    torch.save(first.state(), tmp_path / "state.pt")
    again = TablePreparation.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state() == first.state()
    assert torch.equal(again.inputs(ROWS), first.inputs(ROWS))
    assert again.target_tensor(pl.Series([3, 1])).tolist() == [2, 0]


@pytest.mark.parametrize(
    "column",
    [
        {"name": "size"},
        {"name": "size", "mean": "0", "std": 1.0, "median": 0.0, "flagged": False},
        {"name": "kind", "categories": [1]},
        {"name": "kind", "categories": "ab"},
        {"name": "kind", "categories": []},
        {"name": "kind", "categories": ["a", "a"]},
        {"name": "kind", "categories": [str(i) for i in range(257)]},
        {"name": 5, "categories": ["a"]},
        {"categories": ["a"]},
        *({**NUMBER, "std": std} for std in (0.0, -1.0, float("nan"), 1, None)),
        {**NUMBER, "mean": float("inf")},
        {**NUMBER, "median": float("nan")},
        {**NUMBER, "flagged": [1]},
        {**NUMBER, "is_date": 1},
        {**NUMBER, "name": None},
        3,
    ],
)
def test_a_changed_state_is_refused(column):
    with pytest.raises(ValueError, match="preparation of table data cannot be used"):
        TablePreparation.from_state({**prepared().state(), "columns": [column]})


@pytest.mark.parametrize(
    "change",
    [{"columns": []}, {"columns": 5}, {"columns": {"a": 1}}, {"missing_values": "ab"}, {"missing_values": [1]}],
)
def test_changed_arguments_are_refused(change):
    with pytest.raises(ValueError, match="preparation of table data cannot be used"):
        TablePreparation.from_state({**prepared().state(), **change})


def test_reading(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("note,size,kind,member,same,day,y\nx,?,a,true,4,2018-01-01,3\nz,1,b,true,4,2018-01-01,4\n")
    rows = prepared().read(path, labelled=True)
    assert rows.columns == ["note", *FEATURES, "y"]
    assert rows["size"].to_list() == [None, 1]
    assert rows["y"].to_list() == [3.0, 4.0]
    assert prepared(targets=ClassTargets(("3", "4"))).read(path, labelled=True)["y"].to_list() == ["3", "4"]
    path.write_text("size,kind,member,same,day\n1,a,true,4,2018-01-01\n")
    assert prepared().inputs(prepared().read(path, labelled=False)).shape == (1, 8)
    with pytest.raises(ValueError, match="target_column='y'"):
        prepared().read(path, labelled=True)


def test_codes_labels_and_tasks_are_read_as_written(tmp_path):
    rows = pl.DataFrame({"code": ["A5", "07", "12"]})
    names = {"target_column": "y", "task_column": "patient"}
    preparation = TablePreparation.fitted(rows, ["code"], targets=ClassTargets(("01", "1", "NA")), **names)
    path = tmp_path / "new.csv"
    path.write_text("patient,code,y\n01,07,01\n1,12,1\n1,,NA\n")
    for labelled in (False, True):
        rows = preparation.read(path, labelled)
        assert rows["patient"].to_list() == ["01", "1", "1"]
        assert rows["y"].to_list() == ["01", "1", "NA"]
        assert preparation.inputs(rows).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size,kind,membr,same,day,y\n1,a,true,4,2018-01-01,3\n", "feature_columns='member'.*did you mean 'membr'"),
        ("size,kind,member,same,day,y\n1,a,true,4,2018-01-01,\n", "column 'y' of .* is empty in 1 rows: remove"),
        ("size,kind,member,same,day,y\n1,a,true,4,2018-01-01,high\n", "column 'y' holds 'high'"),
        ("size,kind,member,same,day,y,y\n1,a,true,4,2018-01-01,3,4\n", "several columns 'y'"),
    ],
)
def test_unfit_tables(tmp_path, text, message):
    path = tmp_path / "new.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prepared().read(path, labelled=True)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="is a folder, and this data is read from one file"):
        prepared().read(tmp_path, labelled=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, float("inf")], "column 'size' holds inf in row 2: replace it"),
        ([None, float("nan")], "column 'size' is empty in all training tasks: leave it out of feature_columns"),
        ([str(i) for i in range(300)], "column 'size' holds 300 different texts, such as '0'.*feature_columns"),
        ([[1], [2]], "column 'size' holds values of type List"),
    ],
)
def test_columns_that_cannot_become_features(values, message):
    with pytest.raises(ValueError, match=message):
        prepared(pl.DataFrame({"size": values}, strict=False), features=["size"])


def test_texts_among_new_numbers_are_named():
    rows = ROWS.with_columns(size=pl.Series(["1", "tall", "3", None]))
    with pytest.raises(ValueError, match="column 'size' holds 'tall', which is neither a number nor a date"):
        prepared().inputs(rows)
