"""What intervals over the tasks of a data module are about."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_meta import CLINC150DataModule, EpisodicDataModule, SinusoidDataModule, TabularTasksDataModule
from lightning_meta.data.base import scope_of
from tests.data.tabular.made import patients


def test_tasks_of_few_classes_are_of_these_classes():
    examples = TensorDataset(torch.zeros(12, 1), torch.arange(12) % 3)
    assert EpisodicDataModule(examples, ways=2, query_shots=1).interval_scope == "over tasks of these classes"
    assert CLINC150DataModule.interval_scope == "over tasks of these classes"
    assert SinusoidDataModule().interval_scope == "over tasks"


@pytest.mark.parametrize(
    ("options", "scope"),
    [
        ({}, "over tasks"),
        ({"test_tasks": 3}, "over tasks"),
        ({"train_tasks": 900}, "over tasks"),
        ({"test_tasks": 4}, "over tasks of these groups"),
        ({"val_tasks": 9}, "over tasks of these groups"),
    ],
)
def test_a_task_from_each_group_stands_for_new_groups(tmp_path, options, scope):
    patients().write_csv(tmp_path / "visits.csv")
    data = TabularTasksDataModule(str(tmp_path / "visits.csv"), "patient", "level", query_shots=2, **options)
    data.setup("fit")
    assert data.interval_scope == scope


def test_other_data_have_intervals_over_tasks():
    assert scope_of(None) == scope_of(object()) == "over tasks"
    assert scope_of(SinusoidDataModule()) == "over tasks"
