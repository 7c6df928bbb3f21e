"""Daily prices of the S&P 500's shares, 2013 to 2018: next-day volatility or return from past days."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import polars as pl

from lightning_meta import arguments
from lightning_meta.data.tabular.groups import split_by_digest
from lightning_meta.data.tabular.table_module import TableDataModule

DailyTarget = Literal["volatility", "return"]

_PRICES = ("open", "high", "low", "close")
_FLAT = 1e-4  # the least daily volatility: a day on which the price did not move
_WINDOWS = (1, 5, 22)


class SP500DataModule(TableDataModule):
    """Regression of a share's next day on its past days; a task is a window of a share's trading days.

    A row is a trading day. Its target is one of:

    - "volatility": the logarithm of the day's volatility in percent, ``ln(100 ln(high / low) / (2 √ln 2))``
      (Parkinson, 1980),
    - "return": ``100 ln(close / yesterday's close)``, in percent.

    Its six features use earlier days only: the mean log volatility of the last day, 5 days and 22 days (as in the HAR
    model of Corsi, 2009), the return of the last day and of the last 5 days, and the log ratio of the last day's
    volume to its mean over 22 days. Support days precede query days. Training, validation and test have shares and
    periods of their own: training ends before ``val_start``, validation before ``test_start``. All are standardized
    by the training rows.

    Args:
        root: The folder with ``individual_stocks_5yr.zip``, or the folder extracted from it: a file per share with
            the columns date, open, high, low, close, volume and Name. Rows with blanks, or with a closing price
            that is not between the lowest and the highest, are left out.
        target: "volatility" or "return".
        shots: Support days.
        query_shots: Query days, which follow; None: all that are left of the period.
        val_start: The first day of validation, as 2016-07-01.
        test_start: The first day of test.
        val_tasks: Validation tasks, which go through the shares in turn; the windows' first days are drawn once.
        test_tasks: Test tasks, likewise.
        **options: As in `TableDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or a file is broken.
        FileNotFoundError: If ``root`` has neither file nor folder, when the data are read.

    Example:
        >>> data = SP500DataModule("data/sp500_5yr", target="volatility", shots=20, query_shots=5)
    """

    keeps_arguments = True

    def __init__(
        self,
        root: str,
        target: DailyTarget = "volatility",
        shots: int = 20,
        query_shots: int | None = 5,
        val_start: str = "2016-07-01",
        test_start: str = "2017-04-01",
        val_tasks: int | None = 600,
        test_tasks: int | None = 600,
        **options: Any,
    ) -> None:
        arguments.check_choice("target", target, DailyTarget)
        root = str(root)  # checkpoints keep this argument, and hold no paths
        super().__init__(
            source=root,
            task_column="share",
            target_column=target,
            feature_columns=None,
            time_column="date",
            split_column="split",
            shots=shots,
            query_shots=query_shots,
            val_tasks=val_tasks,
            test_tasks=test_tasks,
            **options,
        )
        self.root = Path(root)
        self.target = target
        self.val_start = _day("val_start", val_start)
        self.test_start = _day("test_start", test_start)
        if self.val_start >= self.test_start:
            raise ValueError(f"val_start={val_start!r} must be before test_start={test_start!r}: choose other days")

    def table(self) -> pl.DataFrame:
        """Return the days of all shares in the periods of their splits, with the columns share, date and split."""
        shares = {name: _with_features(days, self.target) for name, days in _shares(self.root)}
        starts = {"train": date.min, "val": self.val_start, "test": self.test_start}
        ends = {"train": self.val_start, "val": self.test_start, "test": date.max}
        splits = split_by_digest(list(shares), self.val_fraction, self.test_fraction)
        parts = [
            days.filter(pl.col("date").is_between(starts[split], ends[split], closed="left")).with_columns(
                share=pl.lit(name), split=pl.lit(split)
            )
            for (name, days), split in zip(shares.items(), splits, strict=True)
        ]
        return pl.concat(parts)


def _with_features(days: pl.DataFrame, target: DailyTarget) -> pl.DataFrame:
    """Return a share's days with date, features of earlier days, and the day's target."""
    spread = (pl.col("high") / pl.col("low")).log() / (2 * math.sqrt(math.log(2)))
    volatility = (100 * spread.clip(lower_bound=_FLAT)).log()
    log_return = 100 * (pl.col("close") / pl.col("close").shift(1)).log()
    volume = pl.col("volume").cast(pl.Float64).clip(lower_bound=1).log()
    past = days.sort("date").select(
        "date",
        (volatility if target == "volatility" else log_return).alias(target),
        *(volatility.rolling_mean(size).shift(1).alias(f"volatility of {size} days") for size in _WINDOWS),
        *(log_return.rolling_sum(size).shift(1).alias(f"return of {size} days") for size in _WINDOWS[:2]),
        (volume - volume.rolling_mean(_WINDOWS[2])).shift(1).alias("volume change"),
    )
    return past.drop_nulls()


def _shares(root: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield names and complete days of all shares, in the order of their names."""
    folder, archive = root / "individual_stocks_5yr", root / "individual_stocks_5yr.zip"
    if folder.is_dir():
        for path in sorted(folder.glob("*_data.csv")):
            yield _share(path.name, path.read_bytes())
    elif archive.is_file():
        try:
            with zipfile.ZipFile(archive) as files:
                for name in sorted(files.namelist()):
                    if name.endswith("_data.csv"):
                        yield _share(Path(name).name, files.read(name))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{str(archive)!r} is broken ({error}): download it again") from error
    else:
        raise FileNotFoundError(
            f"there is neither {str(archive)!r} nor the folder individual_stocks_5yr beside it: get it from "
            "https://www.kaggle.com/datasets/camnugent/sandp500"
        )


def _share(file: str, content: bytes) -> tuple[str, pl.DataFrame]:
    schema = {"date": pl.Date, **dict.fromkeys((*_PRICES, "volume"), pl.Float64)}
    try:
        days = pl.read_csv(BytesIO(content), columns=list(schema), schema_overrides=schema)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{file!r} is no table of prices with the columns {', '.join(schema)}: {error}") from error
    possible = (pl.col("low") > 0) & (pl.col("low") <= pl.col("close")) & (pl.col("close") <= pl.col("high"))
    return file.removesuffix("_data.csv"), days.drop_nulls().filter(possible).unique("date")


def _day(name: str, value: str) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r} must be a day such as '2016-07-01'") from error
