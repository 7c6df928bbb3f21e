"""How single columns of a table become numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lightning_meta.data.preparation import check_scale
from lightning_meta.data.tables import texts_of

_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"
_MICROSECONDS_PER_DAY = 86_400e6
_MOST_CATEGORIES = 256
_NAMED = 10  # categories in messages


def holds_dates(values: pl.Series) -> bool:
    """Whether a column holds dates or points in time, also as texts such as 2018-02-28 or 2018-02-28 13:30."""
    if values.dtype == pl.String:
        known = values.drop_nulls()
        return len(known) > 0 and bool(known.str.contains(_DATE).all())
    return values.dtype in (pl.Date, pl.Datetime)


def numbers_of(values: pl.Series) -> NDArray[np.float64]:
    """Return a column as numbers ``[rows]``, NaN where a value is missing.

    Dates and points in time, as in `holds_dates`, become days since 1970, durations days.

    Raises:
        ValueError: If a value is neither number nor date, infinite, or no day of the calendar; the message names
            column and value.
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
    _check_finite(values, np.isinf(numbers))
    return numbers


def _parsed(values: pl.Series) -> pl.Series:
    """Return texts as numbers or points in time."""
    if holds_dates(values):
        try:
            parsed = values.str.to_datetime(time_unit="us", strict=False)
        except pl.exceptions.ComputeError:  # no value is a date
            parsed = pl.Series([None] * len(values), dtype=pl.Datetime)
        fault = "which is no date, or written otherwise than those above it"
    else:
        parsed = values.cast(pl.Float64, strict=False)
        fault = "which is neither a number nor a date such as 2018-02-28"
    wrong = values.filter(parsed.is_null() & values.is_not_null())
    if len(wrong):
        raise ValueError(f"column {values.name!r} holds {wrong[0]!r}, {fault}: correct it, or add it to missing_values")
    return parsed


def _check_finite(values: pl.Series, infinite: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(infinite)
    if len(rows):
        raise ValueError(
            f"column {values.name!r} holds {values[int(rows[0])]} in row {rows[0] + 1}: replace it by a finite "
            "number that is not too large, or leave it empty"
        )


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers or dates, standardized; missing values become the median.

    Attributes:
        name: The column.
        mean: The mean over the training tasks' rows.
        std: Their standard deviation; 1 if all are equal.
        median: Their median.
        flagged: Whether a second feature is 1 where the value is missing.
        is_date: Whether the values are dates or points in time; numbers are then refused, and dates otherwise.
    """

    name: str
    mean: float
    std: float
    median: float
    flagged: bool
    is_date: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError("the name of a column must be a text")
        if not isinstance(self.flagged, bool) or not isinstance(self.is_date, bool):
            raise ValueError(f"flagged and is_date of column {self.name!r} must be truth values")
        check_scale(f"column {self.name!r}", self.mean, self.median, self.std)

    @classmethod
    def fitted(cls, values: pl.Series) -> Self:
        """Return the column as the training tasks' rows have it."""
        numbers = numbers_of(values)
        known = numbers[~np.isnan(numbers)]
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is refused
            mean, std = float(known.mean()), float(known.std()) if known.min() < known.max() else 1.0
        flagged = len(known) < len(numbers)
        return cls(values.name, mean, std, float(np.median(known)), flagged, holds_dates(values))

    @property
    def feature_names(self) -> list[str]:
        """Names of the features that the column becomes."""
        return [self.name, f"{self.name} is missing"] if self.flagged else [self.name]

    def features(self, values: pl.Series) -> NDArray[np.float64]:
        """Return features ``[rows, features]``.

        Raises:
            ValueError: If a value is no number, or no date where dates are expected, or too large.
        """
        self._check_kind(values)
        numbers = numbers_of(values)
        missing = np.isnan(numbers)
        with np.errstate(over="ignore"):
            scaled = (np.where(missing, self.median, numbers) - self.mean) / self.std
        _check_finite(values, np.abs(scaled) > torch.finfo(torch.get_default_dtype()).max)
        return np.stack([scaled, missing] if self.flagged else [scaled], axis=1)

    def _check_kind(self, values: pl.Series) -> None:
        known = (values.fill_nan(None) if values.dtype.is_float() else values).drop_nulls()
        if known.dtype == pl.String:
            dates = known.str.contains(_DATE)
            wrong = known.filter(~dates if self.is_date else dates)
        else:
            wrong = known.clear() if holds_dates(known) is self.is_date else known
        if not len(wrong):
            return
        found, expected = ("a number or text", "dates") if self.is_date else ("a date", "numbers")
        cure = "write dates such as 2018-02-28" if self.is_date else "write numbers"
        raise ValueError(
            f"column {values.name!r} holds {str(wrong[0])!r}, {found}, where training had {expected}: {cure}"
        )


@dataclass(frozen=True)
class CategoryColumn:
    """A column of texts or truth values, one-hot encoded; all zeros where the value is missing or unknown.

    Attributes:
        name: The column.
        categories: The values in the training tasks' rows, sorted.
    """

    name: str
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError("the name of a column must be a text")
        if not isinstance(self.categories, tuple) or not 1 <= len(self.categories) <= _MOST_CATEGORIES:
            raise ValueError(f"column {self.name!r} must have 1 to {_MOST_CATEGORIES} categories")
        if not all(isinstance(each, str) for each in self.categories):
            raise ValueError(f"the categories of column {self.name!r} must be texts")
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"the categories of column {self.name!r} must be different from each other")

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
        codes = self._known(values).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()  # [rows]
        return (codes[:, None] == np.arange(len(self.categories))).astype(np.float64)

    def check_known(self, values: pl.Series, missing: Sequence[str] = ()) -> None:
        """Warn if some values of a file are unknown categories.

        Args:
            values: The whole column.
            missing: Texts that stand for a missing value.

        Raises:
            ValueError: If all values are unknown.
        """
        texts = texts_of(values)
        given = texts.is_not_null() & ~texts.is_in([*missing, ""])
        unknown = texts.filter(given & self._known(values).is_null())
        if not len(unknown):
            return
        known = ", ".join(map(repr, self.categories[:_NAMED])) + (", ..." if len(self.categories) > _NAMED else "")
        if len(unknown) == given.sum():
            raise ValueError(
                f"column {self.name!r} holds no category of the training, but such as {unknown[0]!r}: known are {known}"
            )
        rank_zero_warn(
            f"column {self.name!r} holds {len(unknown)} values that training had not, such as {unknown[0]!r}, which "
            f"count as missing: known are {known}"
        )

    def _known(self, values: pl.Series) -> pl.Series:
        """Return the categories of values, null where they are unknown; truth values may be written in any way."""
        texts = texts_of(values)
        names = [name.lower() for name in self.categories]
        if names == ["false", "true"]:
            texts = texts.str.to_lowercase().replace({"0": "false", "1": "true"})
        else:
            names = list(self.categories)
        return texts.cast(pl.Enum(names), strict=False)


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
    if "categories" not in state:
        return NumberColumn(**state)
    categories = state["categories"]
    return CategoryColumn(**{**state, "categories": tuple(categories) if isinstance(categories, list) else categories})
