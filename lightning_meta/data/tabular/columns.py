"""How single columns of a table become numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lightning_meta.data.tables import texts_of

_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"
_MICROSECONDS_PER_DAY = 86_400e6
_MOST_CATEGORIES = 256


def numbers_of(values: pl.Series) -> NDArray[np.float64]:
    """Return a column as numbers ``[rows]``, NaN where a value is missing.

    Dates and times, also as texts such as 2018-02-28 or 2018-02-28 13:30, become days since 1970, durations days.

    Raises:
        ValueError: If a value is neither number nor date, or infinite; the message names column and value.
    """
    if values.dtype == pl.String:
        values = _parsed(values)
    if values.dtype in (pl.Date, pl.Datetime):
        days = values.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / _MICROSECONDS_PER_DAY
    elif values.dtype == pl.Duration:
        days = values.dt.total_microseconds().cast(pl.Float64) / _MICROSECONDS_PER_DAY
    elif values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null):
        days = values.cast(pl.Float64)
    else:
        raise ValueError(f"column {values.name!r} holds values of type {values.dtype}, which are no numbers")
    numbers = days.fill_null(np.nan).to_numpy(writable=True)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise ValueError(
            f"column {values.name!r} holds {numbers[infinite[0]]} in row {infinite[0] + 1}: replace it by a finite "
            "number, or leave it empty"
        )
    return numbers


def _parsed(values: pl.Series) -> pl.Series:
    """Return texts as numbers or points in time."""
    if values.drop_nulls().str.contains(_DATE).all():
        return values.str.to_datetime(time_unit="us", strict=False)
    numbers = values.cast(pl.Float64, strict=False)
    wrong = values.filter(numbers.is_null() & values.is_not_null())
    if len(wrong):
        raise ValueError(
            f"column {values.name!r} holds {wrong[0]!r}, which is neither a number nor a date such as 2018-02-28: "
            "correct it, or add it to missing_values"
        )
    return numbers


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers or dates, standardized; missing values become the median.

    Attributes:
        name: The column.
        mean: The mean over the training tasks' rows.
        std: Their standard deviation; 1 if all are equal.
        median: Their median.
        flagged: Whether a second feature is 1 where the value is missing.
    """

    name: str
    mean: float
    std: float
    median: float
    flagged: bool

    @classmethod
    def fitted(cls, values: pl.Series) -> Self:
        """Return the column as the training tasks' rows have it."""
        numbers = numbers_of(values)
        known = numbers[~np.isnan(numbers)]
        std = float(known.std()) if known.min() < known.max() else 1.0
        return cls(values.name, float(known.mean()), std, float(np.median(known)), len(known) < len(numbers))

    @property
    def feature_names(self) -> list[str]:
        """Names of the features that the column becomes."""
        return [self.name, f"{self.name} is missing"] if self.flagged else [self.name]

    def features(self, values: pl.Series) -> NDArray[np.float64]:
        """Return features ``[rows, features]``."""
        numbers = numbers_of(values)
        missing = np.isnan(numbers)
        scaled = (np.where(missing, self.median, numbers) - self.mean) / self.std
        return np.stack([scaled, missing] if self.flagged else [scaled], axis=1)


@dataclass(frozen=True)
class CategoryColumn:
    """A column of texts or truth values, one-hot encoded; all zeros where the value is missing or unknown.

    Attributes:
        name: The column.
        categories: The values in the training tasks' rows, sorted.
    """

    name: str
    categories: tuple[str, ...]

    @classmethod
    def fitted(cls, values: pl.Series) -> Self:
        """Return the column as the training tasks' rows have it."""
        categories = texts_of(values).drop_nulls().unique().sort().to_list()
        if len(categories) > _MOST_CATEGORIES:
            raise ValueError(
                f"column {values.name!r} holds {len(categories)} different texts, such as {categories[0]!r}, and at "
                f"most {_MOST_CATEGORIES} can be one-hot encoded: name the columns to use in feature_columns"
            )
        return cls(values.name, tuple(categories))

    @property
    def feature_names(self) -> list[str]:
        """Names of the features that the column becomes."""
        return [f"{self.name}={category}" for category in self.categories]

    def features(self, values: pl.Series) -> NDArray[np.float64]:
        """Return features ``[rows, features]``."""
        codes = texts_of(values).cast(pl.Enum(self.categories), strict=False).to_physical()
        numbers = codes.cast(pl.Int64).fill_null(-1).to_numpy()  # [rows]
        return (numbers[:, None] == np.arange(len(self.categories))).astype(np.float64)


Column = NumberColumn | CategoryColumn


def fitted_column(values: pl.Series, is_time: bool = False) -> Column:
    """Return how a column becomes features, learned from the training tasks' rows.

    Args:
        values: The column in those rows.
        is_time: Whether texts are points in time.

    Raises:
        ValueError: If no row has a value, or the values cannot become features.
    """
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if values.null_count() == len(values):
        raise ValueError(f"column {values.name!r} is empty in all training tasks: leave it out of feature_columns")
    if values.dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum) and not is_time:
        return CategoryColumn.fitted(values)
    return NumberColumn.fitted(values)


def column_of(state: Mapping[str, Any]) -> Column:
    """Return a column from its fields by name, as `dataclasses.asdict` gives them."""
    if "categories" in state:
        categories = tuple(state["categories"])
        if not all(isinstance(category, str) for category in categories):
            raise ValueError(f"the categories of column {state.get('name')!r} are no texts")
        return CategoryColumn(str(state["name"]), categories)
    column = NumberColumn(**state)
    if not all(isinstance(value, float) for value in (column.mean, column.std, column.median)):
        raise ValueError(f"mean, std and median of column {column.name!r} must be floats")
    return column
