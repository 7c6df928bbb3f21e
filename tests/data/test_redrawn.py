"""The same tasks with other examples, tasks of disjoint classes, and other numbers of shots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_meta import EpisodicDataModule, SinusoidDataModule, TabularTasksDataModule
from lightning_meta.data.episodes import EpisodeDataset
from tests.data.tabular.made import patients

LARGE = 2**40 + 3


def same(a, b):
    pairs = [(a.support_x, b.support_x), (a.support_y, b.support_y), (a.query_x, b.query_x), (a.query_y, b.query_y)]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def numbered():
    """Examples that carry their own number and class: seven classes of eleven examples."""
    labels = torch.arange(77) % 7
    return TensorDataset(torch.stack([torch.arange(77), labels], dim=1), labels)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "visits.csv"
    patients(groups=10).write_csv(path)

    def make(split="train", **options):
        defaults = {"task_column": "patient", "target_column": "level", "shots": 3, "query_shots": 2}
        return TabularTasksDataModule(str(path), **(defaults | options)).episodes(split)

    return make


def classes(dataset, split="test", **options):
    data = EpisodicDataModule(dataset, test=dataset, **{"ways": 3, "shots": 2, "query_shots": 4} | options)
    return data.episodes(split)


@pytest.fixture(params=["sinusoid", "classes", "table"])
def tasks(request, numbered, table) -> EpisodeDataset:
    made = {"sinusoid": SinusoidDataModule(noise_std=0.1).episodes, "classes": lambda split: classes(numbered, split)}
    return made.get(request.param, table)("train")


def test_draw_0_is_the_task_itself(tasks):
    indices = np.array([3, 900, 17, 3])
    assert same(tasks.redrawn(indices, np.zeros(4, np.int64)), tasks.make(indices))


def test_a_draw_depends_on_index_and_number_alone(tasks):
    together = tasks.redrawn(np.array([3, 3, 900, 3]), np.array([1, LARGE, 1, 0]))
    for row, (index, draw) in enumerate([(3, 1), (3, LARGE), (900, 1), (3, 0)]):
        alone = tasks.redrawn(np.array([index]), np.array([draw]))
        assert same(alone.select(0), together.select(row))
    for row, other in [(0, 1), (0, 3), (1, 3)]:
        assert not torch.equal(together.select(row).support_x, together.select(other).support_x)


def test_draws_of_a_sinusoid_lie_on_its_curve():
    tasks = SinusoidDataModule(shots=30, query_shots=30).episodes("train")
    indices, draws = np.arange(40) % 4, np.arange(40)
    batch = tasks.redrawn(indices, draws)
    amplitude, phase = (values[:, None, None] for values in tasks.curve(indices))
    for x, y in [(batch.support_x, batch.support_y), (batch.query_x, batch.query_y)]:
        np.testing.assert_allclose(y.numpy(), amplitude * np.sin(x.double().numpy() - phase), atol=1e-5)
    points = torch.cat([batch.support_x, batch.query_x], 1)[..., 0]
    assert len(points.unique()) == 40 * 60
    correlations = np.corrcoef(points.numpy()) - np.eye(40)
    assert np.abs(correlations).max() < 5 / np.sqrt(60)
    assert np.histogram(points, bins=5, range=(-5, 5))[0] / 2400 == pytest.approx(np.full(5, 0.2), abs=0.05)


def test_draws_of_a_task_have_its_classes_and_labels(numbered):
    batch = classes(numbered, eval_outside_ways=2).redrawn(np.arange(60) % 2, np.arange(60))
    for task in range(2):
        own = slice(task, None, 2)
        assert len(batch.support_x[own, ::2, 1].unique(dim=0)) == 1
        assert (batch.query_x[own, :, 1] == batch.query_x[task, :, 1]).all()
        assert (batch.query_x[own, ::4, 1] == batch.support_x[own, ::2, 1]).all()
        assert (batch.ood_x[own, :, 1] == batch.ood_x[task, :, 1]).all()
    assert (batch.query_y == batch.query_y[0]).all()


def test_draws_choose_examples_as_a_naive_loop_does(numbered):
    """Each example equally often, and two draws have as many in common as two drawn by numpy."""
    draws = 4000
    batch = classes(numbered).redrawn(np.full(draws, 5), np.arange(draws))
    drawn = torch.cat([batch.support_x[:, :2, 0], batch.query_x[:, :4, 0]], 1).numpy()  # of the task's first class
    expected = draws * 6 / 11
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 11
    assert ((counts - expected) ** 2 / expected).sum() < 35  # 10 degrees of freedom: exceeded once in 10,000
    generator = np.random.default_rng(0)
    naive = np.stack([generator.permutation(11)[:6] for _ in range(draws)])

    def in_common(sets):
        return np.array([len(set(a) & set(b)) for a, b in zip(sets[::2], sets[1::2], strict=True)])

    assert in_common(drawn).mean() == pytest.approx(in_common(naive).mean(), abs=5 / np.sqrt(draws / 2))


def test_draws_of_a_table_have_rows_of_its_group(table):
    for split, options in [("train", {}), ("test", {"query_shots": None}), ("test", {"time_column": "day"})]:
        tasks = table(split, **options)
        for index in range(3):
            draws = np.arange(200)
            support, query = tasks.row_numbers(np.full(200, index), draws)
            groups, group = tasks.choice.groups, tasks.group_numbers(np.array([index]))[0]
            rows = np.concatenate([support, query], axis=1)
            assert ((rows >= groups.starts[group]) & (rows < groups.ends[group])).all()
            assert len(np.unique(support, axis=0)) > 1
            assert len(np.unique(support)) >= groups.sizes[group] - 2  # in time order, the last ones are queries


def test_rows_that_nothing_draws_are_not_drawn_anew(table):
    first = table("test", time_column="day", query_shots=None)
    with pytest.raises(TypeError, match="because windows start at the first row of their group"):
        first.redrawn(np.arange(2), np.ones(2, np.int64))
    options = {"time_column": "day", "query_shots": None, "split_time": 6.0}
    with pytest.raises(TypeError, match="because the support set is all rows before split_time=6"):
        table(**options).redrawn(np.arange(2), np.ones(2, np.int64))
    at_random = table(**options, random_split_time=True)
    assert not same(at_random.redrawn(np.arange(9), np.ones(9, np.int64)), at_random.make(np.arange(9)))


def test_disjoint_tasks_share_no_classes(numbered):
    tasks = classes(numbered, eval_outside_ways=1).disjoint()
    batch = tasks.make(np.arange(len(tasks)))
    assert len(tasks) == 2
    assert batch.ood_x is None
    own = [set(batch.support_x[task, :, 1].tolist()) | set(batch.query_x[task, :, 1].tolist()) for task in range(2)]
    assert [len(each) for each in own] == [3, 3]
    assert not own[0] & own[1]
    again = tasks.make(np.array([2]))
    assert torch.equal(again.query_x[0, :, 1], batch.query_x[0, :, 1])
    assert not torch.equal(again.query_x[0, :, 0], batch.query_x[0, :, 0])
    assert len(tasks.distinct_indices(9)) == 2


def test_classes_are_shared_out_at_random_by_the_seed(numbered):
    def first_class(seed):
        return int(classes(numbered, seed=seed).disjoint()[0].support_x[0, 1])

    counts = np.bincount([first_class(seed) for seed in range(210)], minlength=7)
    assert ((counts - 30) ** 2 / 30).sum() < 28  # 6 degrees of freedom: exceeded once in 10,000
    assert first_class(4) == first_class(4)


def test_too_few_classes_are_an_error(numbered):
    with pytest.raises(ValueError, match="ways=8 but the train split has 7 classes"):
        classes(numbered, ways=8)


def test_sinusoids_are_disjoint_as_they_are():
    tasks = SinusoidDataModule().episodes("test")
    assert tasks.disjoint() is tasks


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_disjoint_tasks_of_a_table_have_a_group_each(table, split):
    tasks = table(split, val_tasks=9, val_fraction=0.3)
    disjoint = tasks.disjoint()
    groups = len(tasks.choice.groups.names)
    assert len(disjoint) == groups
    assert sorted(disjoint.group_numbers(np.arange(groups))) == list(range(groups))
    if split != "train":
        assert same(disjoint.make(np.arange(groups)), tasks.make(np.arange(groups)))


def test_other_shots_leave_the_task(numbered, table):
    for tasks in (classes(numbered), classes(numbered).disjoint()):
        more = tasks.with_shots(5)
        assert more.make(np.arange(2)).support_x.shape[1] == 15
        assert torch.equal(more[1].query_x[:, 1], tasks[1].query_x[:, 1])
        assert tasks[1].support_x.shape[0] == 6
        assert same(more.with_shots(2)[1], tasks[1])
    tasks = SinusoidDataModule(shots=3, query_shots=4).episodes("test")
    assert tasks.with_shots(8)[0].support_x.shape == (8, 1)
    for before, after in zip(tasks.curve(np.arange(5)), tasks.with_shots(8).curve(np.arange(5)), strict=True):
        assert np.array_equal(before, after)
    for options in ({}, {"time_column": "day"}):
        tasks = table(**options)
        assert tasks.with_shots(5)[2].support_x.shape[0] == 5
        indices = np.arange(30)
        assert np.array_equal(tasks.with_shots(5).group_numbers(indices), tasks.group_numbers(indices))


def test_impossible_shots_name_the_cause(numbered, table):
    with pytest.raises(ValueError, match="shots=8 and query_shots=4 need 12 examples per class"):
        classes(numbered).with_shots(8)
    with pytest.raises(ValueError, match=r"shots=8: \d+ of 6 train groups have too few rows \(.p\d. has \d\)"):
        table().with_shots(8)
    for tasks in (classes(numbered), table(), SinusoidDataModule().episodes("test")):
        with pytest.raises(ValueError, match="shots=0 must be an integer of at least 1"):
            tasks.with_shots(0)
    options = {"time_column": "day", "query_shots": None, "split_time": 6.0}
    with pytest.raises(TypeError, match="shots=2, but the support set is all rows before split_time=6"):
        table(**options).with_shots(2)
    with pytest.raises(TypeError, match="shots=2, but the support set ends at a random row"):
        table(**options, random_split_time=True).with_shots(2)
