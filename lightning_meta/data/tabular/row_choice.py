"""Which rows of a group are its task's support and query set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_meta.data.random_streams import sample_without_replacement
from lightning_meta.data.tabular.groups import Groups

Draws = Callable[[int], NDArray[np.float64]]
"""Returns so many uniform numbers for each task, ``[tasks, count]``; fewer are a beginning of more."""

Rows = NDArray[np.int64]
"""Numbers of rows, ``[tasks, rows]``; -1: padding."""


class RowChoice(ABC):
    """Chooses the rows of tasks among those of their groups."""

    groups: Groups

    @abstractmethod
    def enough(self) -> NDArray[np.bool_]:
        """Return which groups have enough rows for a task, ``[groups]``."""

    @abstractmethod
    def most_rows(self) -> tuple[int, int]:
        """Return the sizes of the largest support set and the largest query set, if all groups have enough rows."""

    @abstractmethod
    def rows(self, tasks: NDArray[np.int64], draws: Draws) -> tuple[Rows, Rows]:
        """Return the support and query rows of tasks, whose groups are given by number, ``[tasks]``."""

    @abstractmethod
    def fixed_by(self) -> str | None:
        """Return why a group has the same rows in all tasks, for errors; None: they are drawn at random."""

    @abstractmethod
    def with_shots(self, shots: int) -> RowChoice:
        """Return the choice with so many support rows.

        Raises:
            TypeError: If times give their number.
        """


@dataclass(eq=False)
class RandomRows(RowChoice):
    """Rows drawn without replacement.

    In classification, the support set has a row of each of the group's classes, if there are no more than ``shots``.

    Attributes:
        groups: The groups.
        shots: Support rows.
        query_shots: Query rows; None: all others.
    """

    groups: Groups
    shots: int
    query_shots: int | None

    def enough(self) -> NDArray[np.bool_]:
        """Return which groups have enough rows, ``[groups]``."""
        return self.groups.sizes >= self.shots + (self.query_shots or 1)

    def most_rows(self) -> tuple[int, int]:
        """Return the largest sizes of support and query set."""
        return self.shots, self.query_shots or int(self.groups.sizes.max()) - self.shots

    def rows(self, tasks: NDArray[np.int64], draws: Draws) -> tuple[Rows, Rows]:
        """Return support and query rows."""
        starts, sizes = self.groups.starts[tasks][:, None], self.groups.sizes[tasks][:, None]
        if self.query_shots is not None and self.groups.labels is None:
            drawn = self.shots + self.query_shots
            order = sample_without_replacement(sizes[:, 0], draws(2 * drawn))  # [tasks, drawn]
        else:
            positions = np.arange(sizes.max())
            keys = np.where(positions < sizes, draws(len(positions)), np.inf)  # [tasks, largest size]
            if self.groups.labels is not None:
                self._put_classes_first(keys, self.groups.labels[np.minimum(starts + positions, starts + sizes - 1)])
            order = keys.argsort(axis=1)  # positions within the group in random order, then padding
        rows = np.where(np.arange(order.shape[1]) < sizes, starts + order, -1)
        query_end = None if self.query_shots is None else self.shots + self.query_shots
        return rows[:, : self.shots], rows[:, self.shots : query_end]

    def fixed_by(self) -> None:
        """Return None: rows are drawn."""

    def with_shots(self, shots: int) -> RandomRows:
        """Return the choice with so many support rows."""
        return replace(self, shots=shots)

    def _put_classes_first(self, keys: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        """Make the smallest key of each class negative, if these rows fit into the support set."""
        firsts = np.zeros_like(keys, dtype=bool)
        for label in np.unique(labels):
            own = np.where(labels == label, keys, np.inf)  # [tasks, rows]
            firsts |= np.isfinite(own) & (own == own.min(axis=1, keepdims=True))
        firsts &= firsts.sum(axis=1, keepdims=True) <= self.shots
        keys -= firsts


@dataclass(eq=False)
class OrderedRows(RowChoice):
    """Support rows that precede the query rows in time, strictly; the query set follows directly."""

    groups: Groups

    @cached_property
    def after(self) -> NDArray[np.int64]:
        """The first later row of the same group for each row, or the group's end, ``[rows of the table]``."""
        times = self.groups.times
        assert times is not None
        changes = np.append(True, times[1:] != times[:-1])
        changes[self.groups.starts] = True
        firsts = np.append(np.flatnonzero(changes), len(times))
        following = firsts[np.searchsorted(firsts, np.arange(len(times)), side="right")]
        own_end = np.full(len(times), len(times))
        for start, end in zip(self.groups.starts, self.groups.ends, strict=True):
            own_end[start:end] = end
        return np.minimum(following, own_end)

    def followed(self, shots: int, query: int) -> NDArray[np.bool_]:
        """Return at which rows a window of support rows and later query rows can start, ``[rows of the table]``."""
        possible = np.zeros(len(self.after), dtype=bool)
        for start, end in zip(self.groups.starts, self.groups.ends, strict=True):
            last = np.arange(start + shots - 1, end)  # the last support rows
            possible[start : start + len(last)] = self.after[last] + query <= end
        return possible

    def cut(
        self, starts: NDArray[np.int64], support: NDArray[np.int64], query: int | None, ends: NDArray[np.int64]
    ) -> tuple[Rows, Rows]:
        """Return windows of support rows from ``starts``, and of the query rows after them, each ``[tasks, ...]``."""
        first_query = self.after[starts + support - 1]
        sizes = ends - first_query if query is None else np.full(len(starts), query)
        return _ranges(starts, support), _ranges(first_query, sizes)


@dataclass(eq=False)
class TimeWindows(OrderedRows):
    """Windows of rows in time order that start anywhere.

    Attributes:
        groups: The groups.
        shots: Support rows.
        query_shots: Query rows; None: all later ones.
        from_start: Whether windows start at the group's first row.
    """

    shots: int
    query_shots: int | None
    from_start: bool

    @cached_property
    def _windows(self) -> NDArray[np.int64]:  # Later windows have no more rows after them: the first ones are possible.
        return self.groups.counts(self.followed(self.shots, self.query_shots or 1))

    def enough(self) -> NDArray[np.bool_]:
        """Return which groups have enough rows, ``[groups]``."""
        return self._windows > 0

    def most_rows(self) -> tuple[int, int]:
        """Return the largest sizes of support and query set."""
        left = self.groups.ends - self.after[self.groups.starts + self.shots - 1]
        return self.shots, self.query_shots or int(left.max())

    def rows(self, tasks: NDArray[np.int64], draws: Draws) -> tuple[Rows, Rows]:
        """Return support and query rows."""
        starts = self.groups.starts[tasks]
        if not self.from_start:
            starts = starts + np.floor(draws(1)[:, 0] * self._windows[tasks]).astype(np.int64)
        support = np.full(len(tasks), self.shots)
        return self.cut(starts, support, self.query_shots, self.groups.ends[tasks])

    def fixed_by(self) -> str | None:
        """Return that windows start at the first row, if they do."""
        return "windows start at the first row of their group" if self.from_start else None

    def with_shots(self, shots: int) -> TimeWindows:
        """Return windows with so many support rows."""
        return replace(self, shots=shots)


@dataclass(eq=False)
class TimeSplit(OrderedRows):
    """All rows before a time, and all later ones.

    Attributes:
        groups: The groups.
        split_time: The first time of query rows.
        least: The least number of support rows.
    """

    split_time: float
    least: int

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        assert self.groups.times is not None
        return self.groups.counts(self.groups.times < self.split_time)

    def enough(self) -> NDArray[np.bool_]:
        """Return which groups have enough rows, ``[groups]``."""
        return (self._before >= self.least) & (self._before < self.groups.sizes)

    def most_rows(self) -> tuple[int, int]:
        """Return the largest sizes of support and query set."""
        return int(self._before.max()), int((self.groups.sizes - self._before).max())

    def rows(self, tasks: NDArray[np.int64], draws: Draws) -> tuple[Rows, Rows]:
        """Return support and query rows."""
        return self.cut(self.groups.starts[tasks], self._before[tasks], None, self.groups.ends[tasks])

    def fixed_by(self) -> str:
        """Return that a time splits the rows."""
        return f"the support set is all rows before split_time={self.split_time:g}"

    def with_shots(self, shots: int) -> TimeSplit:
        """Raise a TypeError."""
        raise TypeError(f"shots={shots}, but {self.fixed_by()}: leave out split_time for another number")


@dataclass(eq=False)
class RandomTimeSplit(OrderedRows):
    """All rows up to a random one, and all later ones.

    Attributes:
        groups: The groups.
        least: The least number of rows in all.
    """

    least: int

    @cached_property
    def _cuts(self) -> NDArray[np.int64]:
        return self.groups.counts(self.followed(1, 1))

    def enough(self) -> NDArray[np.bool_]:
        """Return which groups have enough rows, ``[groups]``."""
        return (self.groups.sizes >= self.least) & (self._cuts > 0)

    def most_rows(self) -> tuple[int, int]:
        """Return the largest sizes of support and query set."""
        return int(self._cuts.max()), int((self.groups.ends - self.after[self.groups.starts]).max())

    def rows(self, tasks: NDArray[np.int64], draws: Draws) -> tuple[Rows, Rows]:
        """Return support and query rows."""
        support = 1 + np.floor(draws(1)[:, 0] * self._cuts[tasks]).astype(np.int64)
        return self.cut(self.groups.starts[tasks], support, None, self.groups.ends[tasks])

    def fixed_by(self) -> None:
        """Return None: the last support row is drawn."""

    def with_shots(self, shots: int) -> RandomTimeSplit:
        """Raise a TypeError."""
        raise TypeError(
            f"shots={shots}, but the support set ends at a random row: leave out split_time and random_split_time"
        )


def _ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Rows:
    steps = np.arange(sizes.max())
    return np.where(steps < sizes[:, None], starts[:, None] + steps, -1)
