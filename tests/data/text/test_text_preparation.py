"""How texts become ids, as checkpoints keep it."""

import polars as pl
import pytest
import torch

from lightning_meta import TextDataModule
from lightning_meta.data.text.preparation import TextPreparation
from tests.data.text.look_alikes import OPTIONS, requests, write_requests


@pytest.fixture
def data(tmp_path):
    data = TextDataModule(write_requests(tmp_path / "r.csv"), **OPTIONS)
    data.setup("fit")
    return data


def test_inputs_are_those_of_the_training(data, tmp_path):
    torch.save(data.preparation.state(), tmp_path / "state.pt")
    again = TextPreparation.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state() == data.preparation.state()
    rows = data.texts()["test"]
    rows.drop("label").write_json(tmp_path / "new.json")
    found = again.inputs(again.read(tmp_path / "new.json", labelled=False))
    expected = data.episodes("test").dataset.tensors
    assert expected["input_ids"].unique().numel() > 5
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name])


def test_reading_keeps_all_columns_as_they_are(data, tmp_path):
    table = requests().with_columns(number=pl.lit(1))
    assert data.preparation.read(write_requests(tmp_path / "x.csv", table), labelled=True).equals(table)


@pytest.mark.parametrize("labelled", [False, True])
def test_numbers_are_texts_as_written(data, tmp_path, labelled):
    (tmp_path / "x.csv").write_text("text,label,n\n007,01,1\n1.10,1,2\n")
    rows = data.preparation.read(tmp_path / "x.csv", labelled)
    assert rows.to_dict(as_series=False) == {"text": ["007", "1.10"], "label": ["01", "1"], "n": [1, 2]}


@pytest.mark.parametrize(
    ("table", "labelled", "message"),
    [
        (requests().rename({"text": "texts"}), False, "text_column='text'.*did you mean 'texts'"),
        (requests().rename({"label": "lebal"}), True, "target_column='label'.*did you mean 'lebal'"),
        (pl.DataFrame({"text": ["a", None]}), False, "is empty in 1 of 2 rows .rows 2;"),
    ],
)
def test_tables_that_cannot_be_read(data, tmp_path, table, labelled, message):
    with pytest.raises(ValueError, match=message):
        data.preparation.read(write_requests(tmp_path / "x.parquet", table), labelled)


def test_a_folder_is_no_table(data, tmp_path):
    with pytest.raises(ValueError, match="is a folder, and text data are read from a table"):
        data.preparation.read(tmp_path, labelled=True)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 0},
        {"max_length": "3"},
        {"max_length": 2**16 + 1},
        {"text_column": 4},
        {"vocabulary": {"words": ["a"], "size": 2**31, "hash_buckets": 0}},
        {"vocabulary": {"words": ["a", "a"], "size": 10, "hash_buckets": 0}},
        {"vocabulary": {"words": "ab", "size": 10, "hash_buckets": 0}},
        {"vocabulary": {"words": 5, "size": 10, "hash_buckets": 0}},
        {"vocabulary": None},
        {"vocabulary": {"words": [1], "size": 10, "hash_buckets": 0}},
        {"vocabulary": {"words": ["a"]}},
        {"vocabulary": 3},
        {"tokenizer": "{}"},
        {"further": 1},
    ],
)
def test_a_changed_state_is_refused(data, change):
    with pytest.raises(ValueError, match="preparation of text data cannot be used"):
        TextPreparation.from_state({**data.preparation.state(), **change})
