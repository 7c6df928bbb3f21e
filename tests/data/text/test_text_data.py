"""Texts in tables as tasks."""

from __future__ import annotations

import hashlib

import polars as pl
import pytest
import torch

from lightning_meta import TextDataModule
from lightning_meta.data.class_splits import split_classes
from tests.data.text.look_alikes import INTENTS, OPTIONS, requests, write_requests


def made(path, table=None, **options):
    data = TextDataModule(write_requests(path, table), **{**OPTIONS, **options})
    data.setup("fit")
    return data


def words_in(data, x) -> list[str]:
    """The texts behind ids, as the preparation's words."""
    words = ["<pad>", "<unknown>", *data.preparation.state()["vocabulary"]["words"]]
    return [" ".join(words[i] for i in row if i) for row in x["input_ids"].tolist()]


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_tasks_hold_texts_of_their_classes(tmp_path, ending):
    data = made(tmp_path / f"requests.{ending}", min_count=1, hash_buckets=0, vocabulary_size=100)
    task = data.episodes("train")[0]
    assert task.support_x["input_ids"].shape == task.support_x["attention_mask"].shape == (2, 5)
    assert task.query_x["input_ids"].shape == (4, 5)
    intents = [text.split()[2] for text in words_in(data, task.support_x)]
    assert len(set(intents)) == 2
    assert [text.split()[2] for text in words_in(data, task.query_x)] == [intents[y] for y in task.query_y]
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x["input_ids"].dtype == torch.int64
    assert batch.query_x["attention_mask"].shape == (8, 4, 5)


def test_classes_are_shared_out_by_a_digest_of_their_names():
    order = sorted(INTENTS, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    parts = split_classes([*INTENTS, *INTENTS], 0.3, 0.2)
    assert parts == {"test": order[:2], "val": order[2:5], "train": order[5:]}


def test_splits_hold_their_own_classes_whatever_the_seed(tmp_path):
    tables = [TextDataModule(write_requests(tmp_path / "r.csv"), seed=seed, val_classes=0.3).texts() for seed in (0, 1)]
    for split, classes in split_classes(INTENTS, 0.3, 0.2).items():
        assert set(tables[0][split]["label"]) == set(classes)
        assert tables[0][split].equals(tables[1][split])


def test_a_column_may_name_the_split(tmp_path):
    table = requests().with_columns(part=pl.Series(["test"] * 12 + ["train"] * 36 + ["val"] * 12))
    data = made(tmp_path / "r.csv", table, split_column="part")
    assert {split: set(rows["label"]) for split, rows in data.texts().items()} == {
        "train": set(INTENTS[2:8]),
        "val": set(INTENTS[8:]),
        "test": set(INTENTS[:2]),
    }
    data = made(tmp_path / "r.csv", table.filter(pl.col("part") != "val"), split_column="part")
    assert data.num_tasks["val"] == 0
    assert data.val_dataloader() == []


def test_no_validation_classes(tmp_path):
    data = made(tmp_path / "r.csv", val_classes=0.0)
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="val=None"):
        data.episodes("val")


def test_other_classes_do_not_influence_the_preparation(tmp_path):
    """Neither the words of validation and test classes nor their lengths."""
    before = made(tmp_path / "r.csv").preparation.state()
    held_out = {name for split in ("val", "test") for name in split_classes(INTENTS, 0.2, 0.2)[split]}
    long = pl.lit("now now now a new long text of new words")
    changed = requests().with_columns(
        pl.when(pl.col("label").is_in(held_out)).then(long).otherwise("text").alias("text")
    )
    assert not changed.equals(requests())
    assert made(tmp_path / "changed.csv", changed).preparation.state() == before


def test_the_length_suffices_for_99_percent_of_training_texts(tmp_path):
    texts = [f"word {'more ' * 3}" if n % 2 else "word" for n in range(400)]
    texts[:2] = ["long " * 90] * 2
    table = pl.DataFrame({"text": texts, "label": ["a", "b"] * 200, "split": ["train"] * 400})
    assert made(tmp_path / "r.csv", table, split_column="split").preparation.max_length == 4
    texts[:9] = ["long " * 900] * 9
    table = table.with_columns(text=pl.Series(texts))
    assert made(tmp_path / "r.csv", table, split_column="split").preparation.max_length == 512
    assert made(tmp_path / "r.csv", table, split_column="split", max_length=7).preparation.max_length == 7


def test_small_classes_are_left_out_with_a_count(tmp_path):
    small = requests(each=2, intents=("few", "fewer"))
    table = pl.concat([requests(), small]).with_columns(
        split=pl.when(pl.col("label").is_in(INTENTS[:5])).then(pl.lit("test")).otherwise(pl.lit("train"))
    )
    with pytest.warns(UserWarning, match="2 of 7 train classes are left out.*fewer than the 3 texts.*'few', 'fewer'"):
        data = made(tmp_path / "r.csv", table, split_column="split")
    assert len(data.episodes("train")._sizes) == 5
    assert "fewword" not in data.preparation.state()["vocabulary"]["words"]


def test_labels_of_any_type_are_text(tmp_path):
    table = requests().with_columns(label=pl.col("label").str.tail(1).cast(pl.Int64))
    data = made(tmp_path / "r.parquet", table)
    assert set(data.texts()["test"]["label"]) == set(split_classes(map(str, range(10)), 0.2, 0.2)["test"])


def with_empty(*rows):
    return (
        requests()
        .with_row_index()
        .with_columns(text=pl.when(pl.col("index").is_in(rows)).then(pl.lit(" ")).otherwise("text"))
    )


def in_two_splits():
    return requests().with_columns(split=pl.Series(["train", "test"] + ["train"] * 58))


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (None, {"text_column": "txt"}, "text_column='txt'.*no such column: did you mean 'text'"),
        (None, {"label_column": "lable"}, "label_column='lable'.*did you mean 'label'"),
        (None, {"split_column": "split"}, "split_column='split'.*no such column"),
        (None, {"split_column": "text"}, "must be 'train', 'val' and 'test'"),
        (with_empty(0, 7), {}, r"text_column='text' of .* is empty in 2 of 60 rows \(rows 1, 8;"),
        (with_empty(*range(9)), {}, r"empty in 9 of 60 rows \(rows 1, 2, 3, 4, 5, ...;"),
        (
            in_two_splits(),
            {"split_column": "split"},
            "1 classes of .* are in several splits, 'intent0' in test and train",
        ),
        (requests(1), {"val_classes": 0.3}, "the train split has 0 classes"),
        (requests().with_columns(text=pl.struct("label")), {}, "text_column='text' of .* holds Struct.*, not text"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*are left out.*:UserWarning")
def test_tables_that_cannot_be_used(tmp_path, table, options, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "r.parquet", table, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_classes": 0.5, "test_classes": 0.5}, "leave no classes to train on"),
        ({"val_classes": 3}, "val_classes=3 must lie in"),
        ({"max_length": 0}, "max_length=0"),
        ({"min_count": 0}, "min_count=0"),
        ({"vocabulary_size": 9, "hash_buckets": 8}, "hash_buckets=8 leaves no ids"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TextDataModule("r.csv", **options)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        TextDataModule(str(tmp_path / "nowhere.csv")).setup("fit")
