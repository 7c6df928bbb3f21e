"""Tasks from a table in a file."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from lightning_meta import TabularTasksDataModule
from tests.data.tabular.made import patients

TABLE = patients()


@pytest.fixture
def module(tmp_path):
    def make(table: pl.DataFrame = TABLE, ending: str = "csv", **options) -> TabularTasksDataModule:
        path = tmp_path / f"visits.{ending}"
        table.write_csv(path) if ending == "csv" else table.write_parquet(path)
        defaults = {"task_column": "patient", "target_column": "level", "shots": 5, "query_shots": 3}
        return TabularTasksDataModule(str(path), **(defaults | options))

    return make


def rows_of(data, batch, targets):
    """The rows of the table that a batch holds, found by their targets, which are all different."""
    scale = data.preparation.targets
    values = (targets[..., 0].double() * scale.std + scale.mean).flatten()
    found = np.abs(TABLE["level"].to_numpy()[:, None] - values.numpy()).argmin(0)
    return TABLE[found]


def test_tasks_are_rows_of_one_group(module):
    data = module()
    names = {split: set(data.group_names(split)) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in names.items()} == {"train": 14, "val": 3, "test": 3}
    assert set.union(*names.values()) == {f"p{group}" for group in range(20)}
    seen = set()
    batch = data.episodes("train").make(np.arange(200))
    assert batch.support_x.shape == (200, 5, data.num_features)
    assert batch.query_y.shape == (200, 3, 1)
    assert batch.support_y.dtype == torch.float32
    assert batch.support_mask is batch.query_mask is None
    for task in range(200):
        one = batch.select(task)
        rows = rows_of(data, one, torch.cat([one.support_y, one.query_y]))
        assert rows["patient"].n_unique() == 1
        assert rows["row"].n_unique() == 8
        seen.add(rows["patient"][0])
        torch.testing.assert_close(data.preparation.inputs(rows), torch.cat([one.support_x, one.query_x]))
    assert seen == names["train"]


def test_csv_and_parquet_give_the_same_tasks_whatever_the_order_of_groups(module):
    first = module().episodes("val").make(np.arange(3))
    second = module(TABLE.sort("patient", descending=True, maintain_order=True), "parquet").episodes("val")
    torch.testing.assert_close(second.make(np.arange(3)).query_x[..., 1:], first.query_x[..., 1:])


def test_evaluation_goes_through_the_groups_in_turn(module):
    data = module(query_shots=None)
    batch = next(iter(data.val_dataloader()))
    assert data.num_tasks["val"] == batch.num_tasks == 3
    sizes = TABLE.group_by("patient").len()
    for task, name in enumerate(data.group_names("val")):
        size = sizes.filter(pl.col("patient") == name)["len"][0]
        alone = data.episodes("val")[task]
        assert len(alone.query_x) == size - 5
        assert batch.query_mask is None or int(batch.query_mask[task].sum()) == size - 5
        assert torch.equal(batch.query_y[task][: size - 5], alone.query_y)
        assert set(rows_of(data, alone, alone.support_y)["patient"]) == {name}
    more = module(val_tasks=7).episodes("val")
    assert len(more) == 7
    assert more.group_numbers(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_padding_is_zero_and_marked(module):
    batch = module(query_shots=None).episodes("train").make(np.arange(50))
    assert not batch.query_mask.all()
    assert batch.query_mask.any(1).all()
    assert (batch.query_x[~batch.query_mask] == 0).all()
    assert (batch.query_y[~batch.query_mask] == 0).all()


def test_training_batches_have_few_shapes(module):
    large = patients(groups=12, least=5, most=200)
    for split_options in ({}, {"time_column": "day"}, {"time_column": "day", "split_time": 5.0}):
        options = {"query_shots": None, "shots": 2, "feature_columns": ["dose"]} | split_options
        episodes = module(large, **options).episodes("train")
        shapes = {episodes.make(np.arange(i, i + 3)).query_x.shape[1] for i in range(0, 300, 3)}
        assert shapes <= {64, 128, episodes.choice.most_rows()[1]}
        assert len(episodes[0].query_y) == int(episodes.make(np.arange(3)).query_mask[0].sum())


def test_a_task_depends_on_seed_split_and_index_alone(module):
    episodes = module(query_shots=None).episodes("train")
    batch = episodes.make(np.array([3, 900, 17]))
    for row, index in enumerate([3, 900, 17]):
        alone = episodes[index]
        assert torch.equal(alone.support_x, batch.support_x[row])
        assert torch.equal(alone.query_y, batch.query_y[row][: len(alone.query_y)])
    assert not torch.equal(module(seed=1).episodes("train")[3].support_x, batch.support_x[0])


def test_nothing_is_learned_from_validation_and_test_groups(module):
    data = module()
    data.setup("fit")
    held_out = [*data.group_names("val"), *data.group_names("test")]
    number = pl.when(pl.col("patient").is_in(held_out)).then(1000.0 * pl.col("row"))
    changed = TABLE.with_columns(
        dose=number.otherwise("dose"),
        level=number.otherwise("level"),
        ward=pl.when(pl.col("patient").is_in(held_out)).then(pl.lit("west")).otherwise("ward"),
    )
    other = module(changed)
    other.setup("fit")
    assert other.preparation.state() == data.preparation.state()
    assert torch.equal(
        other.episodes("train").make(np.arange(20)).query_x, data.episodes("train").make(np.arange(20)).query_x
    )


def test_scales_are_those_of_the_training_rows(module):
    data = module(feature_columns=["dose", "ward"])
    data.setup("fit")
    training = TABLE.filter(pl.col("patient").is_in(list(data.group_names("train"))))
    column = data.preparation.columns[0]
    assert (column.mean, column.std) == pytest.approx((training["dose"].mean(), training["dose"].std(ddof=0)))
    targets = data.preparation.targets
    assert (targets.mean, targets.std) == pytest.approx((training["level"].mean(), training["level"].std(ddof=0)))
    assert data.preparation.feature_names == ["dose", "ward=north", "ward=south"]
    assert data.num_features == 3


def test_in_time_order(module):
    data = module(time_column="day")
    assert data.num_features == 4  # row, dose, two wards
    for split in ("train", "val"):
        batch = data.episodes(split).make(np.arange(40))
        for task in range(40):
            one = batch.select(task)
            days = rows_of(data, one, torch.cat([one.support_y, one.query_y]))["day"].to_numpy()
            np.testing.assert_allclose(np.diff(days), 1.5)
    assert module(time_column="day", feature_columns=["day"]).num_features == 1


def test_a_split_in_time(module):
    data = module(time_column="day", query_shots=None, split_time=9.0, feature_columns=["dose"])
    one = data.episodes("test")[0]
    assert rows_of(data, one, one.support_y)["day"].max() < 9
    assert rows_of(data, one, one.query_y)["day"].min() == 9
    training = data.episodes("train").make(np.arange(60))
    assert training.support_x.shape[1] == 6
    at_random = module(time_column="day", query_shots=None, split_time=9.0, random_split_time=True)
    sizes = at_random.episodes("train").make(np.arange(60)).support_mask.sum(1)
    assert int(sizes.min()) < 5 < 6 < int(sizes.max())
    torch.testing.assert_close(at_random.episodes("test")[0].support_y, one.support_y)


def test_classification(module):
    table = TABLE.with_columns(state=pl.col("row") % 12)
    data = module(table, target_column="state", task="classification", query_shots=None, feature_columns=["dose"])
    batch = data.episodes("train").make(np.arange(30))
    assert batch.support_y.dtype == torch.int64
    assert batch.support_y.shape == (30, 5)
    assert data.preparation.targets.classes == tuple(str(state) for state in range(12))
    real = table.with_columns(state=(pl.col("row") % 2).cast(pl.Float64))
    data = module(real, target_column="state", task="classification", feature_columns=["dose"])
    assert data.episodes("train").make(np.arange(30)).support_y.unique().tolist() == [0, 1]
    assert data.preparation.targets.classes == ("0", "1")


def test_a_column_names_the_splits(module):
    number = pl.col("patient").str.slice(1).cast(pl.Int64)
    splits = pl.when(number < 4).then(pl.lit("test")).otherwise(pl.lit("train"))
    data = module(TABLE.with_columns(part=splits), split_column="part")
    assert set(data.group_names("test")) == {"p0", "p1", "p2", "p3"}
    assert "part" not in data.preparation.feature_names
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="no val group: set val_fraction"):
        data.episodes("val")


def test_left_out_rows_and_groups_are_counted(module):
    gaps = TABLE.with_columns(
        level=pl.when(pl.col("row") < 4).then(None).otherwise("level"),
        patient=pl.when(pl.col("row") == 7).then(None).otherwise("patient"),
    )
    with pytest.warns(UserWarning, match="left out 5 of .* rows: 1 without task, 4 without target"):
        module(gaps, shots=2, query_shots=2).setup("fit")
    sizes = TABLE.group_by("patient").len()
    small = sizes.filter(pl.col("len") < 10)
    data = module(shots=7)
    with pytest.warns(UserWarning, match=rf"left out {small.height} of 20 groups with too few rows \('p"):
        data.setup("fit")
    kept = {name for split in ("train", "val", "test") for name in data.group_names(split)}
    assert kept == set(sizes["patient"]) - set(small["patient"])


def test_workers_make_the_same_tasks(module):
    alone = list(module(train_tasks=40).train_dataloader())
    apart = list(module(train_tasks=40, num_workers=1).train_dataloader())
    assert len(alone) == len(apart) == 3
    assert all(torch.equal(a.query_x, b.query_x) for a, b in zip(alone, apart, strict=True))


def test_names_with_zeros_in_front_are_names_of_their_own(tmp_path):
    rows = [f"{name},{visit},{visit % 2:02d}" for name in ("01", "1", "001", "NA", *range(2, 12)) for visit in range(6)]
    (tmp_path / "visits.csv").write_text("\n".join(["patient,dose,state", *rows]))
    data = TabularTasksDataModule(
        str(tmp_path / "visits.csv"), "patient", "state", shots=2, query_shots=2, task="classification"
    )
    names = {name for split in ("train", "val", "test") for name in data.group_names(split)}
    assert names == {"01", "1", "001", "NA", *map(str, range(2, 12))}
    assert data.preparation.targets.classes == ("00", "01")
