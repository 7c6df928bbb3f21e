"""Groups of a table's rows, and their split into tasks to train, validate and test on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lightning_meta.data.episodes import Split
from lightning_meta.data.tables import names_of


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of the rows of a table that is sorted by group and then by time.

    Attributes:
        names: The groups' names.
        starts: The number of each group's first row, ``[groups]``.
        sizes: The groups' rows, ``[groups]``.
        times: Every row's time, ``[rows of the table]``; None: rows have no order.
        labels: Every row's class, ``[rows of the table]``; None: in regression.
    """

    names: tuple[str, ...]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    times: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None

    @property
    def ends(self) -> NDArray[np.int64]:
        """The number after each group's last row, ``[groups]``."""
        return self.starts + self.sizes

    def with_labels(self, labels: NDArray[np.int64]) -> Self:
        """Return the same groups with every row's class, ``[rows of the table]``."""
        return replace(self, labels=labels)

    def select(self, chosen: NDArray) -> Self:
        """Return some of the groups, given by number or by truth values ``[groups]``."""
        names = tuple(np.array(self.names, dtype=object)[chosen])
        return replace(self, names=names, starts=self.starts[chosen], sizes=self.sizes[chosen])

    def counts(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many of each group's rows are marked in ``rows`` ``[rows of the table]``, ``[groups]``."""
        before = np.concatenate([[0], np.cumsum(rows)])
        return before[self.ends] - before[self.starts]

    def rows(self) -> NDArray[np.int64]:
        """Return the numbers of all rows of the groups."""
        ranges = [np.arange(start, end) for start, end in zip(self.starts, self.ends, strict=True)]
        return np.concatenate([*ranges, np.zeros(0, np.int64)]).astype(np.int64)


def grouped(names: pl.Series, times: NDArray[np.float64] | None) -> tuple[NDArray[np.int64], Groups]:
    """Return the order that sorts rows by group and then by time, and the groups in that order.

    Args:
        names: Every row's group.
        times: Every row's time, ``[rows]``; None: rows stay in their order.
    """
    found, numbers = np.unique(np.array(names_of(names).to_list(), dtype=object), return_inverse=True)
    order = np.lexsort((np.zeros(len(numbers)) if times is None else times, numbers))
    sizes = np.bincount(numbers, minlength=len(found))
    return order, Groups(tuple(found), np.cumsum(sizes) - sizes, sizes, None if times is None else times[order])


def split_by_column(groups: Groups, values: pl.Series) -> list[Split]:
    """Return each group's split as a column of the sorted table names it.

    Raises:
        ValueError: If a value is no split, or a group has several.
    """
    splits: list[Split] = []
    for name, start, end in zip(groups.names, groups.starts, groups.ends, strict=True):
        own = values[int(start) : int(end)].unique().to_list()
        if len(own) > 1 or own[0] not in get_args(Split):
            raise ValueError(
                f"split_column {values.name!r} holds {', '.join(map(repr, own))} for group {name!r}: it must be one of "
                f"{', '.join(map(repr, get_args(Split)))}, the same in all rows of a group"
            )
        splits.append(own[0])
    return splits


def split_by_digest(names: Sequence[str], val_fraction: float, test_fraction: float) -> list[Split]:
    """Return each name's split: names are ordered by a digest, so that no seed and no order of rows matters.

    A fraction above 0 gives at least one name.
    """
    order = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in names])
    test, val = (max(1, round(f * len(names))) if f else 0 for f in (test_fraction, val_fraction))
    splits: list[Split] = ["train"] * len(names)
    for rank, number in enumerate(order[: test + val]):
        splits[number] = "test" if rank < test else "val"
    return splits
