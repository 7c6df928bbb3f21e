"""Support and query rows of groups."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_meta.data.random_streams import uniforms
from lightning_meta.data.tabular.groups import grouped
from lightning_meta.data.tabular.row_choice import RandomRows, RandomTimeSplit, TimeSplit, TimeWindows

TABLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=40)
"""Rows of (group, time), with ties."""


def sorted_groups(rows):
    names, times = pl.Series([str(group) for group, _ in rows]), np.array([time for _, time in rows], dtype=float)
    return grouped(names, times)[1]


def sets(choice, seed):
    """Pairs of group, support times and query times of some tasks; checks that rows are distinct and of one group."""
    groups = choice.groups.select(choice.enough())
    if not groups.names:
        return
    choice.groups = groups
    choice.__dict__ = {name: value for name, value in choice.__dict__.items() if name in choice.__dataclass_fields__}
    tasks = np.arange(12) % len(groups.names)
    support, query = choice.rows(tasks, lambda count: uniforms(seed, "train", np.arange(12), count))
    most_support, most_query = choice.most_rows()
    assert support.shape[1] <= most_support
    assert query.shape[1] <= most_query
    for task, *both in zip(tasks, support, query, strict=True):
        first, second = (rows[rows >= 0] for rows in both)
        together = np.concatenate([first, second])
        assert len(set(together)) == len(together)
        assert (groups.starts[task] <= together).all()
        assert (together < groups.ends[task]).all()
        assert len(second) >= 1
        yield task, first, second


@settings(max_examples=60, deadline=None)
@given(TABLES, st.integers(1, 4), st.none() | st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_no_window_looks_ahead(rows, shots, query_shots, from_start, seed):
    choice = TimeWindows(sorted_groups(rows), shots, query_shots, from_start)
    times = choice.groups.times
    for task, support, query in sets(choice, seed):
        assert len(support) == shots
        assert times[support].max() < times[query].min()
        assert (np.diff(times[support]) >= 0).all()
        # The query follows directly: rows between the two have the time of the last support row.
        between = np.arange(support[-1] + 1, query[0])
        assert (times[between] == times[support[-1]]).all()
        assert len(query) == (query_shots or choice.groups.ends[task] - query[0])
        assert not from_start or support[0] == choice.groups.starts[task]


@settings(max_examples=60, deadline=None)
@given(TABLES, st.integers(1, 4), st.none() | st.integers(1, 4))
def test_groups_with_a_window_are_found(rows, shots, query_shots):
    """Against a loop over all windows."""
    groups = sorted_groups(rows)
    found = TimeWindows(groups, shots, query_shots, False).enough()
    for group, start, end in zip(range(len(groups.names)), groups.starts, groups.ends, strict=True):
        times = groups.times[start:end]
        later = [(times > times[i + shots - 1]).sum() for i in range(len(times) - shots + 1)]
        assert found[group] == (max(later, default=0) >= (query_shots or 1))


@settings(max_examples=60, deadline=None)
@given(TABLES, st.integers(1, 4), st.integers(0, 6), st.integers(0, 9))
def test_splits_in_time(rows, least, split_time, seed):
    choice = TimeSplit(sorted_groups(rows), float(split_time), least)
    for task, support, query in sets(choice, seed):
        times = choice.groups.times
        assert len(support) >= least
        assert times[support].max() < split_time <= times[query].min()
        assert len(support) + len(query) == choice.groups.sizes[task]
    choice = RandomTimeSplit(sorted_groups(rows), least)
    for task, support, query in sets(choice, seed):
        assert choice.groups.times[support].max() < choice.groups.times[query].min()
        assert choice.groups.sizes[task] >= least
        assert support[0] == choice.groups.starts[task]
        assert query[-1] == choice.groups.ends[task] - 1


@settings(max_examples=60, deadline=None)
@given(TABLES, st.integers(1, 4), st.none() | st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_random_rows(rows, shots, query_shots, seed, with_classes):
    groups = sorted_groups(rows)
    if with_classes:
        groups = groups.with_labels(groups.times.astype(np.int64))
    choice = RandomRows(groups, shots, query_shots)
    for task, support, query in sets(choice, seed):
        assert len(support) == shots
        assert len(query) == (query_shots or choice.groups.sizes[task] - shots)
        if with_classes:
            own = groups.labels[choice.groups.starts[task] : choice.groups.ends[task]]
            possible = len(set(own)) <= shots
            assert not possible or set(groups.labels[support]) == set(own)


@pytest.mark.parametrize("labels", [None, np.zeros(6, np.int64)])
@pytest.mark.parametrize("query_shots", [None, 2])
def test_all_rows_are_drawn_equally_often(labels, query_shots):
    groups = sorted_groups([(0, time) for time in range(6)])
    choice = RandomRows(groups if labels is None else groups.with_labels(labels), 2, query_shots)
    tasks = np.zeros(6000, np.int64)
    support, query = choice.rows(tasks, lambda count: uniforms(0, "train", np.arange(6000), count))
    for rows in (support[:, 0], support[:, 1], query[:, 0]):
        np.testing.assert_allclose(np.bincount(rows, minlength=6) / 6000, 1 / 6, atol=0.02)
