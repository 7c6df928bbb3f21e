"""Daily prices of shares, on made files in the publisher's layout."""

from __future__ import annotations

import os
import zipfile
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from lightning_meta import SP500DataModule

NAMES = [f"{letter}{other}" for letter in "ABCD" for other in "KLMNO"]
DAYS = [date(2013, 2, 8) + timedelta(days=day) for day in range(100)]
PERIODS = {"val_start": "2013-04-20", "test_start": "2013-05-03"}


def prices(name: str) -> pl.DataFrame:
    random = np.random.default_rng(NAMES.index(name))
    close = 50 * np.exp(np.cumsum(random.normal(0, 0.02, 100)))
    high, low = close * np.exp(random.uniform(0.001, 0.03, 100)), close * np.exp(-random.uniform(0.001, 0.03, 100))
    volume = random.integers(1000, 9000, 100)
    columns = {"date": DAYS, "open": close, "high": high, "low": low, "close": close, "volume": volume}
    return pl.DataFrame(columns).with_columns(Name=pl.lit(name))


def write(folder: Path, tables: dict[str, pl.DataFrame]) -> Path:
    (folder / "individual_stocks_5yr").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write_csv(folder / "individual_stocks_5yr" / f"{name}_data.csv")
    return folder


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, {name: prices(name) for name in NAMES})


def module(root: Path, **options) -> SP500DataModule:
    return SP500DataModule(str(root), **({"shots": 6, "query_shots": 3} | PERIODS | options))


@pytest.mark.parametrize("target", ["volatility", "return"])
def test_features_and_targets_against_a_loop(root, target):
    share = prices("AK")
    table = module(root, target=target).table().filter(pl.col("share") == "AK").sort("date")
    close, volume = share["close"].to_numpy(), np.log(share["volume"].to_numpy())
    spread = np.log(share["high"].to_numpy() / share["low"].to_numpy())
    volatility = np.log(100 * spread / (2 * np.sqrt(np.log(2))))
    returns = 100 * np.log(close[1:] / close[:-1])  # of day 1 and so on
    assert table.height > 5
    for row in table.iter_rows(named=True):
        t = DAYS.index(row["date"])
        assert row[target] == pytest.approx(volatility[t] if target == "volatility" else returns[t - 1])
        for size in (1, 5, 22):
            assert row[f"volatility of {size} days"] == pytest.approx(volatility[t - size : t].mean())
        for size in (1, 5):
            assert row[f"return of {size} days"] == pytest.approx(returns[t - 1 - size : t - 1].sum())
        assert row["volume change"] == pytest.approx(volume[t - 1] - volume[t - 22 : t].mean())


@pytest.mark.parametrize("day", [30, 55, 80])
def test_later_prices_change_nothing_earlier(root, tmp_path, day):
    random = np.random.default_rng(day)
    changed = {}
    for name in NAMES:
        later = pl.col("date") >= DAYS[day]
        factors = {column: float(random.uniform(0.5, 2)) for column in ("open", "low", "volume")}
        factors |= {"high": factors["low"] * 3, "close": factors["low"] * 1.1}
        changed[name] = prices(name).with_columns(
            pl.when(later).then(pl.col(column) * factor).otherwise(pl.col(column)).alias(column)
            for column, factor in factors.items()
        )
    before = pl.col("date") < DAYS[day]
    first, second = module(root).table(), module(write(tmp_path / "changed", changed)).table()
    assert first.filter(before).equals(second.filter(before))
    assert not first.equals(second)
    # The features of the first changed day come from earlier days too.
    features = [name for name in first.columns if name != "volatility"]
    until = pl.col("date") <= DAYS[day]
    assert first.filter(until).select(features).equals(second.filter(until).select(features))


def test_splits_have_shares_and_periods_of_their_own(root):
    data = module(root)
    shares = {split: set(data.group_names(split)) for split in ("train", "val", "test")}
    assert {split: len(own) for split, own in shares.items()} == {"train": 14, "val": 3, "test": 3}
    table = data.table()
    ranges = {
        split: (own["date"].min(), own["date"].max())
        for split in shares
        if (own := table.filter(pl.col("split") == split)).height
    }
    assert ranges["train"] == (DAYS[22], date(2013, 4, 19))
    assert ranges["val"] == (date(2013, 4, 20), date(2013, 5, 2))
    assert ranges["test"] == (date(2013, 5, 3), DAYS[-1])
    for split, own in shares.items():
        assert set(table.filter(pl.col("split") == split)["share"]) == own


def test_tasks_are_windows_of_one_share(root):
    data = module(root, val_tasks=5)
    batch = data.episodes("val").make(np.arange(5))
    assert batch.support_x.shape == (5, 6, 6)
    assert batch.query_y.shape == (5, 3, 1)
    again = module(root, val_tasks=5).episodes("val").make(np.arange(5))
    assert torch.equal(batch.query_x, again.query_x)
    assert not torch.equal(batch.support_y[0], batch.support_y[3])  # the first share again, from another day
    table, scale = data.table(), data.preparation.targets
    for task in range(5):
        one = batch.select(task)
        values = torch.cat([one.support_y, one.query_y])[:, 0].double() * scale.std + scale.mean
        own = table.filter(pl.col("share") == data.group_names("val")[task % 3]).sort("date")["volatility"].to_numpy()
        first = int(np.abs(own - float(values[0])).argmin())
        np.testing.assert_allclose(values, own[first : first + 9], rtol=1e-4, atol=1e-5)


def test_rows_with_blanks_or_impossible_prices_are_left_out(root):
    whole = prices("AK")
    broken = whole.with_columns(
        volume=pl.when(pl.col("date") == DAYS[40]).then(None).otherwise("volume"),
        high=pl.when(pl.col("date") == DAYS[50]).then(pl.col("low") / 2).otherwise("high"),
    )
    without = whole.filter(~pl.col("date").is_in([DAYS[40], DAYS[50]]))
    found = module(write(root, {"AK": broken})).table()
    assert found.equals(module(write(root, {"AK": without})).table())


def test_the_archive_gives_the_same(root):
    expected = module(root).table()
    with zipfile.ZipFile(root / "individual_stocks_5yr.zip", "w") as archive:
        for path in (root / "individual_stocks_5yr").iterdir():
            archive.write(path, f"individual_stocks_5yr/{path.name}")
            path.unlink()
    (root / "individual_stocks_5yr").rmdir()
    assert module(root).table().equals(expected)


def test_errors(root, tmp_path):
    with pytest.raises(ValueError, match="target='price' is not one of"):
        module(root, target="price")
    with pytest.raises(ValueError, match="test_start='soon' must be a day such as"):
        module(root, test_start="soon")
    with pytest.raises(ValueError, match="val_start='2019-01-01' must be before test_start='2013-05-03'"):
        module(root, val_start="2019-01-01")
    with pytest.raises(FileNotFoundError, match="neither .* nor the folder individual_stocks_5yr"):
        module(tmp_path / "nowhere").setup("fit")
    (root / "individual_stocks_5yr" / "AK_data.csv").write_text("date,close\n2013-02-08,3\n")
    with pytest.raises(ValueError, match="'AK_data.csv' is no table of prices with the columns date, open"):
        module(root).setup("fit")


@pytest.mark.slow
@pytest.mark.skipif("SP500_ROOT" not in os.environ, reason="SP500_ROOT names no folder")
def test_the_publishers_files():
    data = SP500DataModule(os.environ["SP500_ROOT"])
    assert sum(len(data.group_names(split)) for split in data.num_tasks) > 490
    assert data.num_tasks == {"train": 1600, "val": 600, "test": 600}
    assert data.table().height > 300_000
