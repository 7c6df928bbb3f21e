"""Tasks of learn2learn become episodes that are functions of (seed, split, index)."""

from __future__ import annotations

import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import MAML, EpisodicDataModule
from lightning_meta.interop.learn2learn import MetaDatasetExamples, TasksetDataModule, episodes_from
from tests.interop.learn2learn import stand_ins

WAYS, SAMPLES, CLASSES = 3, 4, 7
# Each example's first input is its class, its second its number.
LABELS = torch.arange(70) % CLASSES
DATA = torch.stack([LABELS.double(), torch.arange(70).double()], dim=1).float()


def learn2learn_taskset(num_tasks=-1):
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed: see benchmarks/install_peers.sh")
    data = l2l.data.MetaDataset(TensorDataset(DATA, LABELS))
    transforms = l2l.data.transforms
    steps = [transforms.NWays(data, WAYS), transforms.KShots(data, SAMPLES), transforms.LoadData(data)]
    steps += [transforms.RemapLabels(data), transforms.ConsecutiveLabels(data)]
    return l2l.data.Taskset(data, steps, num_tasks=num_tasks)


def stand_in_taskset(num_tasks=-1):
    return stand_ins.Taskset(stand_ins.MetaDataset(DATA, LABELS.tolist()), WAYS, SAMPLES, num_tasks)


@pytest.fixture(params=[stand_in_taskset, learn2learn_taskset], ids=["stand_in", "learn2learn"])
def taskset(request):
    return request.param


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_an_episode_has_the_shots_of_each_class(taskset):
    episodes = episodes_from(taskset(), shots=1, ways=WAYS)
    for index in range(20):
        episode = episodes[index]
        assert episode.support_y.tolist() == [0, 1, 2]
        assert episode.query_y.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        classes = episode.support_x[:, 0].round().long()  # of each label
        assert len(set(classes.tolist())) == WAYS
        assert torch.equal(episode.query_x[:, 0].round().long(), classes.repeat_interleave(3))
        numbers = torch.cat([episode.support_x, episode.query_x])[:, 1].round()
        assert len(set(numbers.tolist())) == WAYS * SAMPLES  # no example twice


def test_a_task_is_a_function_of_seed_split_and_index(taskset):
    first, second = taskset(), taskset()
    second.sample()  # neither what was drawn before
    random.seed(99)  # nor the generators matter
    np.random.seed(99)
    torch.manual_seed(99)
    expected = episodes_from(first, shots=1)
    found = episodes_from(second, shots=1)
    for index in (5, 0, 7):
        torch.testing.assert_close(found[index], expected[index], rtol=0, atol=0)
    for other in ({"seed": 1}, {"split": "val"}):
        assert not torch.equal(episodes_from(first, shots=1, **other)[0].query_x, expected[0].query_x)
    assert not torch.equal(expected[0].query_x, expected[1].query_x)


def test_the_generators_of_the_caller_are_as_before(taskset):
    episodes = episodes_from(taskset(), shots=1)
    before = states()
    _ = episodes[0]
    assert states() == before


def test_the_generators_are_restored_after_an_error():
    class Broken:
        def sample(self):
            raise RuntimeError("no task")

    before = states()
    with pytest.raises(RuntimeError, match="no task"):
        _ = episodes_from(Broken(), shots=1)[0]
    assert states() == before


def test_workers_make_the_same_tasks(taskset):
    alone, workers = (
        torch.cat([b.query_x for b in TasksetDataModule(taskset(), train_tasks=6, **options).train_dataloader()])
        for options in ({"tasks_per_batch": 3}, {"tasks_per_batch": 2, "num_workers": 2})
    )
    assert torch.equal(alone, workers)


def test_a_finite_taskset_has_its_tasks_again_and_what_it_remembers_does_not_count(taskset):
    finite = taskset(num_tasks=5)
    episodes = episodes_from(finite, shots=1)
    assert len(episodes) == 5
    first = episodes[2]
    _ = [finite[i] for i in range(5)]
    torch.testing.assert_close(episodes[2], first, rtol=0, atol=0)
    torch.testing.assert_close(episodes[7], first, rtol=0, atol=0)


def test_a_loop_over_episodes_ends(taskset):
    episodes = episodes_from(taskset(), shots=1, num_tasks=3)
    for index, episode in enumerate(episodes):
        torch.testing.assert_close(episode, episodes[index], rtol=0, atol=0)
    assert index == 2


def test_a_finite_taskset_has_so_many_distinct_tasks(taskset):
    options = {"train_tasks": 6, "tasks_per_batch": 6, "redraw_examples": False}
    (batch,) = TasksetDataModule(taskset(num_tasks=4), **options, distinct_train_tasks=3).train_dataloader()
    assert torch.equal(batch.query_x[:3], batch.query_x[3:])
    assert torch.equal(batch.query_x[2], episodes_from(taskset(num_tasks=4), shots=1)[2].query_x)
    with pytest.raises(ValueError, match="distinct_train_tasks=5, but there are 4 distinct training tasks"):
        TasksetDataModule(taskset(num_tasks=4), **options, distinct_train_tasks=5).train_dataloader()
    with pytest.raises(TypeError, match="redraw_examples=True, but TasksetEpisodes cannot draw"):
        TasksetDataModule(taskset(), distinct_train_tasks=5).train_dataloader()


def test_a_finite_taskset_is_tested_on_once(taskset):
    data = TasksetDataModule(taskset(), taskset(num_tasks=5), taskset(num_tasks=50), shots=1, test_tasks=20)
    assert {split: len(data.episodes(split)) for split in ("train", "val", "test")} == {
        "train": 1600,
        "val": 5,
        "test": 20,
    }


def test_it_trains_and_tests(taskset, tmp_path):
    options = {"tasks_per_batch": 4, "train_tasks": 8, "val_tasks": 4, "test_tasks": 6}
    data = TasksetDataModule(taskset(), taskset(), taskset(), shots=1, ways=WAYS, **options)
    learner = MAML(nn.Linear(2, WAYS), inner_lr=0.01)
    before = learner.model.weight.detach().clone()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(learner, data)
    (results,) = trainer.test(learner, data, verbose=False)
    assert not torch.equal(learner.model.weight, before)
    assert 0 <= results["test/acc"] <= 1


def test_processes_share_the_tasks(taskset, monkeypatch):
    """Two processes draw what one alone draws, each its own half."""
    data = TasksetDataModule(taskset(), shots=1, tasks_per_batch=4, train_tasks=8)
    alone = torch.cat([batch.query_x for batch in data.train_dataloader()])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        (batch,) = data.train_dataloader()
        assert torch.equal(batch.query_x, alone[rank::2])


def test_anything_with_sample_is_a_taskset_of_regressions_too():
    class Lines:
        def sample(self):
            x = torch.randn(10, 1)
            return x, random.random() * x + np.random.rand()

    episodes = episodes_from(Lines(), shots=4, query_shots=5)
    episode = episodes[3]
    assert episode.support_x.shape == (4, 1)
    assert episode.query_y.shape == (5, 1)
    torch.testing.assert_close(episodes[3], episode, rtol=0, atol=0)
    slope, start = (episode.support_y.diff(dim=0) / episode.support_x.diff(dim=0)).mean(), episode.support_y[0]
    torch.testing.assert_close(episode.query_y, start + slope * (episode.query_x - episode.support_x[0]))


@pytest.mark.parametrize("labels", [LABELS.tolist(), [f"class {i}" for i in LABELS.tolist()]], ids=["int", "str"])
def test_a_meta_dataset_gives_tasks(labels):
    source = stand_ins.MetaDataset(DATA, labels)
    episodes = episodes_from(source, shots=2, query_shots=3, ways=4, split="val", num_tasks=9)
    expected = EpisodicDataModule(
        train=TensorDataset(DATA, LABELS), val=TensorDataset(DATA, LABELS), ways=4, shots=2, query_shots=3, val_tasks=9
    ).episodes("val")
    assert len(episodes) == 9
    torch.testing.assert_close(episodes[3], expected[3], rtol=0, atol=0)


def test_a_filtered_meta_dataset_of_learn2learn_gives_tasks(l2l):
    whole = l2l.data.MetaDataset(TensorDataset(DATA, LABELS))
    filtered = l2l.data.FilteredMetaDataset(whole, [5, 1, 3])
    examples = MetaDatasetExamples(filtered)
    assert examples.class_names == ["5", "1", "3"]
    classes = {
        (int(c), int(label))
        for i in range(9)
        for e in [EpisodicDataModule(train=examples, ways=3, query_shots=2).episodes("train")[i]]
        for c, label in zip(e.query_x[:, 0], e.query_y, strict=True)
    }
    assert {c for c, _ in classes} == {1, 3, 5}
    assert {label for _, label in classes} == {0, 1, 2}


def test_errors_name_the_argument_and_the_cure():
    taskset = stand_in_taskset()
    with pytest.raises(ValueError, match=r"shots=4 .* need 5 examples, but class 0 has 4: raise the k of KShots"):
        _ = episodes_from(taskset, shots=4)[0]
    with pytest.raises(ValueError, match=r"ways=5 but a task has the labels \[0, 1, 2\].*RemapLabels"):
        _ = episodes_from(taskset, shots=1, ways=5)[0]
    with pytest.raises(ValueError, match="shots=0 must be an integer of at least 1"):
        episodes_from(taskset, shots=0)
    with pytest.raises(TypeError, match="must be a Taskset or a MetaDataset"):
        episodes_from([1, 2], shots=1)
    with pytest.raises(ValueError, match="ways=None and query_shots=None: a MetaDataset has no tasks of its own"):
        episodes_from(taskset.dataset, shots=1)
    with pytest.raises(ValueError, match="made with test=None"):
        TasksetDataModule(taskset).episodes("test")

    class Odd:
        def sample(self):
            return torch.zeros(3)

    with pytest.raises(TypeError, match=r"must be \(data, labels\)"):
        _ = episodes_from(Odd(), shots=1)[0]
