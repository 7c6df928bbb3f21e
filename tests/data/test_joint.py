"""Batches of all training classes at once: each pass has every example once, whatever process, worker or step."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import MAML, Baseline, EpisodicDataModule, SimpleShot, SinusoidDataModule
from lightning_meta.data.joint import JointBatches
from lightning_meta.data.labelled import AugmentedExamples

NUMBERS = torch.arange(50)


def examples(labels=None):
    """Fifty examples, whose inputs are their numbers, of the five classes 3, 5, 7, 9, 11."""
    return TensorDataset(NUMBERS[:, None].double(), 2 * (NUMBERS % 5) + 3 if labels is None else labels)


class Noisy(AugmentedExamples):
    """Examples whose changes are their seeds."""

    def __init__(self):
        self.labels = (NUMBERS % 5).numpy()

    def inputs(self, numbers):
        return torch.from_numpy(numbers)

    def augmented(self, numbers, seeds):
        return torch.from_numpy(seeds)


def numbers_of(batches, indices):
    return batches.make(np.asarray(indices)).query_x.flatten().long().tolist()


@pytest.mark.parametrize("size", [1, 7, 10, 50, 70])
def test_each_pass_has_every_example_once(size):
    batches = JointBatches(examples(), size, seed=3)
    assert len(batches) == -(-50 // size)
    row = numbers_of(batches, range(350 // size + 1))
    for start in range(0, 300, 50):
        assert sorted(row[start : start + 50]) == NUMBERS.tolist()
    assert row[:50] != row[50:100]


def test_labels_number_the_classes_and_the_support_set_tells_how_many():
    batch = JointBatches(examples(), 16, seed=0).make(np.arange(4))
    assert torch.equal(batch.query_y, batch.query_x[..., 0].long() % 5)
    assert batch.support_y.tolist() == [[4]] * 4
    assert (batch.support_x.flatten() % 5 == 4).all()
    assert batch.query_x.shape == (4, 16, 1)


def test_a_batch_is_a_function_of_seed_and_index():
    one, other, another = (JointBatches(examples(), 7, seed=seed) for seed in (0, 0, 1))
    numbers_of(other, [12, 30])
    assert numbers_of(one, [9]) == numbers_of(other, [2, 9])[7:] == one[9].query_x[:, 0].long().tolist()
    assert numbers_of(one, [9]) != numbers_of(another, [9])


def test_changes_of_examples_are_functions_of_seed_and_index():
    one, other = (JointBatches(Noisy(), 7, seed=0) for _ in range(2))
    assert torch.equal(one[9].query_x, other.make(np.array([2, 9])).query_x[1])
    assert len(set(one.make(np.arange(20)).query_x.flatten().tolist())) == 140
    assert sorted(one.inputs(0, 50).tolist()) == NUMBERS.tolist()  # without changes


def test_inputs_have_every_example_once_and_mix_the_classes():
    batches = JointBatches(examples(torch.sort(NUMBERS % 5).values), 7, seed=0)
    parts = [batches.inputs(first, min(first + 20, 50)) for first in range(0, 50, 20)]
    assert sorted(torch.cat(parts).flatten().tolist()) == NUMBERS.tolist()
    assert len(set((parts[0].flatten() // 10).tolist())) > 2


def data_module(**options):
    sizes = {"ways": 3, "shots": 2, "query_shots": 3, "val_tasks": 4, "test_tasks": 4, "tasks_per_batch": 2}
    return EpisodicDataModule(examples(), examples(), examples(), **{**sizes, "joint_batch_size": 16, **options})


def trainer(**options):
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", max_epochs=3, enable_checkpointing=False, **silent, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_goes_through_all_examples_and_evaluation_has_tasks(workers):
    seen = []

    class Noting(Baseline):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(batch.query_x.flatten().long())

        def on_validation_batch_start(self, batch, batch_idx):
            assert batch.support_x.shape[:2] == (2, 6)

    learner = Noting(nn.Linear(1, 2).double(), num_train_classes=5, inner_steps=1)
    trainer(num_sanity_val_steps=0).fit(learner, data_module(num_workers=workers))
    assert [len(batch) for batch in seen] == [16] * 12  # 3 epochs of 4 batches
    row = torch.cat(seen).tolist()
    assert all(sorted(row[start : start + 50]) == NUMBERS.tolist() for start in (0, 50, 100))


def test_what_does_not_belong_together_is_told_before_training():
    learner = Baseline(nn.Linear(1, 2).double(), num_train_classes=5)
    with pytest.raises(
        ValueError, match=r"num_train_classes=7 of SimpleShot, but .* 5 classes: set num_train_classes=5"
    ):
        trainer().fit(SimpleShot(nn.Linear(1, 2).double(), num_train_classes=7), data_module())
    with pytest.raises(ValueError, match=r"num_train_classes=None of Baseline.*set num_train_classes=5"):
        trainer().fit(Baseline(nn.Linear(1, 2).double()), data_module())
    with pytest.raises(ValueError, match="EpisodicDataModule serves tasks: set its joint_batch_size"):
        trainer().fit(learner, data_module(joint_batch_size=None))
    with pytest.raises(ValueError, match="which SinusoidDataModule does not serve: use a data module of labelled"):
        trainer().fit(learner, SinusoidDataModule())
    with pytest.raises(ValueError, match="joint_batch_size=16 of EpisodicDataModule .* MAML trains on tasks: leave it"):
        trainer().fit(MAML(nn.Linear(1, 3).double(), nn.CrossEntropyLoss()), data_module())
    with pytest.raises(ValueError, match="distinct_train_tasks=4 on tasks: leave one of them out"):
        data_module(distinct_train_tasks=4)
    with pytest.raises(ValueError, match="joint_batch_size=0 must be an integer of at least 1"):
        data_module(joint_batch_size=0)


def test_tasks_given_as_loaders_are_told_in_the_first_step():
    learner, data = Baseline(nn.Linear(1, 2).double(), num_train_classes=5), data_module(joint_batch_size=None)
    with pytest.raises(ValueError, match="training batches have 3 classes: .*or if these are tasks"):
        trainer(num_sanity_val_steps=0).fit(learner, data.train_dataloader(), data.val_dataloader())


def test_the_data_module_knows_its_training_classes():
    assert data_module().num_train_classes == 5
    assert data_module(joint_batch_size=None).joint_batches(8)[0].query_x.shape == (8, 1)
    with pytest.raises(ValueError, match="joint_batch_size=None: set it, or pass batch_size"):
        data_module(joint_batch_size=None).joint_batches()
