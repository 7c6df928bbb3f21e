"""Splitting a task into support and query sets, and joining them in learn2learn's order."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_meta import Episode, EpisodicDataModule, SinusoidDataModule
from lightning_meta.interop.learn2learn import EpisodeTasks, join_task, meta_dataset_from, split_task


def test_the_order_of_examples_does_not_matter_to_the_classes():
    x, y = torch.arange(12), torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 0, 1, 2])
    episode = split_task(x, y, shots=1, query_shots=2)
    assert episode.support_x.tolist() == [1, 2, 0]
    assert episode.query_x.tolist() == [4, 8, 3, 7, 5, 6]
    assert episode.query_y.tolist() == [0, 0, 1, 1, 2, 2]


def test_it_splits_as_learn2learn_does(l2l):
    x, y = torch.randn(20, 3), torch.arange(20)[torch.randperm(20)] % 4
    (support_x, support_y), (query_x, query_y) = l2l.data.utils.partition_task(x, y, shots=2)
    torch.testing.assert_close(split_task(x, y, shots=2), Episode(support_x, support_y, query_x, query_y))


def test_inputs_may_be_pytrees_and_labels_of_any_integer_type():
    y = torch.tensor([1, 0, 1, 0], dtype=torch.int32)
    episode = split_task({"ids": torch.arange(4), "more": torch.arange(8).view(4, 2)}, y, shots=1)
    assert episode.support_x["more"].tolist() == [[2, 3], [0, 1]]
    assert episode.support_y.dtype == torch.int64


def test_joined_tasks_split_again_into_the_same_sets():
    data = EpisodicDataModule(train=TensorDataset(torch.randn(60, 2), torch.arange(60) % 6), shots=2, query_shots=3)
    for episode in (data.episodes("train")[0], SinusoidDataModule(shots=4).episodes("train")[0]):
        shots = 2 if episode.support_x.shape[0] == 10 else 4
        torch.testing.assert_close(split_task(*join_task(episode), shots), episode, rtol=0, atol=0)


def test_padding_is_left_out():
    mask = torch.tensor([True, False])
    episode = Episode(torch.tensor([1.0, 9]), torch.tensor([0, 0]), torch.tensor([2.0]), torch.tensor([0]), mask)
    assert join_task(episode)[0].tolist() == [1, 2]


def test_positions_of_learn2learns_lightning_modules_choose_the_support_set():
    """Its mask takes the first shots of each block of shots + queries examples."""
    shots, queries, ways = 2, 3, 4
    labelled = TensorDataset(torch.randn(80, 2), torch.arange(80) % 8)
    episodes = EpisodicDataModule(train=labelled, ways=ways, shots=shots, query_shots=queries).episodes("train")
    data, labels = EpisodeTasks(episodes)[5]
    is_support = torch.arange(ways * (shots + queries)) % (shots + queries) < shots
    torch.testing.assert_close(data[is_support], episodes[5].support_x)
    torch.testing.assert_close(labels[~is_support], episodes[5].query_y)


def test_tasks_have_the_length_of_the_epoch():
    tasks = EpisodeTasks(SinusoidDataModule(shots=2, train_tasks=3).episodes("train"))
    assert len(list(tasks)) == len(tasks) == 3
    sampled = tasks.sample()[0]
    assert any(torch.equal(sampled, x) for x, _ in tasks)


@pytest.mark.filterwarnings("ignore:You called `self.log")  # without a logger
def test_learn2learns_modules_train_on_our_tasks(l2l, tmp_path):
    """Its own Lightning module and batcher, which choose the support set by position."""
    import pytorch_lightning
    from learn2learn.utils.lightning import EpisodicBatcher

    labelled = TensorDataset(torch.randn(80, 2), torch.arange(80) % 8)
    data = EpisodicDataModule(train=labelled, val=labelled, ways=4, shots=1, query_shots=2)
    splits = (EpisodeTasks(data.episodes(split)) for split in ("train", "val"))
    batches = EpisodicBatcher(*splits, epoch_length=3)
    task = {"ways": 4, "shots": 1, "queries": 2}
    sizes = {f"{kind}_{name}": n for kind in ("train", "test") for name, n in task.items()}
    module = l2l.algorithms.LightningMAML(torch.nn.Linear(2, 4), adaptation_lr=0.1, **sizes)
    before = module.model.module.weight.detach().clone()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, batches)
    assert not torch.equal(module.model.module.weight, before)


def test_labelled_examples_are_its_meta_dataset(l2l):
    labelled = TensorDataset(torch.randn(12, 2), torch.arange(12) % 3)
    ours, theirs = meta_dataset_from(labelled), l2l.data.MetaDataset(labelled)
    assert ours.labels_to_indices == theirs.labels_to_indices
    assert ours.labels == theirs.labels
    taskset = l2l.data.Taskset(
        ours, [l2l.data.transforms.FusedNWaysKShots(ours, n=2, k=3), l2l.data.transforms.LoadData(ours)]
    )
    data, labels = taskset.sample()
    assert data.shape == (6, 2)
    assert len(labels.unique()) == 2


def test_labels_that_are_not_consecutive_are_refused():
    with pytest.raises(ValueError, match=r"the labels \[0, 7\]: they must be 0 to 1; .* add RemapLabels"):
        split_task(torch.zeros(4), torch.tensor([7, 0, 0, 7]), shots=1)


def test_uneven_tasks_are_refused():
    with pytest.raises(ValueError, match=r"different numbers of examples, \[3, 4\]"):
        split_task(torch.zeros(3), torch.zeros(4), shots=1)
    with pytest.raises(ValueError, match=r"labels have the shape \(4, 1\)"):
        split_task(torch.zeros(4), torch.zeros(4, 1, dtype=torch.int64), shots=1)
