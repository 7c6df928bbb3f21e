from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_meta import Episode, collate_episodes
from lightning_meta.data import EpisodicDataModule, NWayDataModule, SinusoidDataModule
from lightning_meta.data.episodes import EpisodeSampler
from lightning_meta.data.labelled import labels_of


@pytest.fixture
def numbered():
    """Examples that carry their own number and class; unequal classes, shuffled, with labels that skip."""
    labels = torch.tensor([7] * 9 + [2] * 6 + [30] * 12 + [4] * 7)[torch.randperm(34)]
    return TensorDataset(torch.stack([torch.arange(34), labels], dim=1), labels)


def module(dataset, **kwargs):
    return EpisodicDataModule(dataset, **{"ways": 3, "shots": 2, "query_shots": 4, "tasks_per_batch": 4} | kwargs)


def test_episodes_are_well_formed(numbered):
    for batch in module(numbered, train_tasks=200).train_dataloader():
        assert batch.support_x.shape == (4, 6, 2)
        assert batch.query_x.shape == (4, 12, 2)
        for i in range(4):
            task = batch.select(i)
            examples = torch.cat([task.support_x, task.query_x])[:, 0]
            assert len(examples.unique()) == 18
            classes = torch.cat([task.support_x, task.query_x])[:, 1]
            labels = torch.cat([task.support_y, task.query_y])
            pairs = {(int(c), int(label)) for c, label in zip(classes, labels, strict=True)}
            assert len(pairs) == len({c for c, _ in pairs}) == 3
            assert sorted(label for _, label in pairs) == [0, 1, 2]
            assert task.support_y.bincount().tolist() == [2, 2, 2]
            assert task.query_y.bincount().tolist() == [4, 4, 4]


def test_all_classes_examples_and_labels_turn_up(numbered):
    seen = set()
    for batch in module(numbered, train_tasks=400).train_dataloader():
        x, y = batch.support_x.flatten(0, 1), batch.support_y.flatten()
        seen |= {(int(number), int(label)) for (number, _), label in zip(x, y, strict=True)}
    assert len(seen) == 34 * 3


def test_a_task_does_not_depend_on_its_batch(numbered):
    episodes = module(numbered).episodes("train")
    batch = episodes.__getitems__([5, 900, 17])
    for row, index in enumerate([5, 900, 17]):
        alone = episodes[index]
        assert torch.equal(alone.query_x, batch.query_x[row])
    assert not torch.equal(module(numbered, seed=1).episodes("train")[5].query_x, batch.query_x[0])


class ItemByItem(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        x, y = self.source[i]
        return {"value": x, "twice": 2 * x}, int(y)


def test_any_labelled_data_set_serves(numbered):
    expected = module(numbered).episodes("train").make(np.arange(3))
    found = module(ItemByItem(numbered)).episodes("train").make(np.arange(3))
    assert torch.equal(found.support_x["value"], expected.support_x)
    assert torch.equal(found.query_x["twice"], 2 * expected.query_x)
    part = Subset(numbered, list(range(33, -1, -1)))
    assert np.array_equal(labels_of(part), numbered.tensors[1].numpy()[::-1])


def test_processes_share_tasks_without_overlap(monkeypatch):
    episodes = SinusoidDataModule(train_tasks=11).episodes("train")

    def taken(fresh, epoch, rank):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        sampler = EpisodeSampler(episodes, fresh)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    for epoch in range(2):
        evaluated = [taken(False, epoch, rank) for rank in range(3)]
        assert sorted(i for own in evaluated for i in own) == list(range(11))  # each once, so that metrics are exact
    trained = [taken(True, epoch, rank) for epoch in range(2) for rank in range(3)]
    assert {len(own) for own in trained} == {4}  # processes wait for each other
    assert sorted(i for own in trained for i in own) == list(range(24))


def test_episodes_travel_to_worker_processes(numbered):
    for episodes in [module(numbered).episodes("train"), module(ItemByItem(numbered)).episodes("train")]:
        again = pickle.loads(pickle.dumps(episodes))
        for found, expected in zip(tree_leaves(again[3]), tree_leaves(episodes[3]), strict=True):
            assert found is expected is None or torch.equal(found, expected)


class Unlabelled(Dataset):
    targets = ("a", "b")

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.zeros(1), 0.5


def test_labels_must_be_integers_one_each():
    with pytest.raises(ValueError, match=r"Unlabelled has 3 examples, and labels of type <U1 and shape \(2,\)"):
        labels_of(Unlabelled())
    with pytest.raises(ValueError, match="labels of type float32"):
        labels_of(TensorDataset(torch.zeros(3, 1), torch.tensor([0.5, 1.0, 2.0])))


def test_workers_make_the_same_episodes(numbered):
    alone = list(module(numbered, train_tasks=20).train_dataloader())
    with_workers = list(module(numbered, train_tasks=20, num_workers=2).train_dataloader())
    assert len(alone) == len(with_workers) == 5
    for a, b in zip(alone, with_workers, strict=True):
        assert torch.equal(a.support_x, b.support_x)
        assert torch.equal(a.query_y, b.query_y)


def test_sinusoids_follow_the_paper():
    episodes = SinusoidDataModule(shots=10, query_shots=5).episodes("train")
    amplitude, phase = episodes.curve(np.arange(4000))
    assert 0.1 <= amplitude.min() < 0.12
    assert 4.98 < amplitude.max() <= 5
    assert 0 <= phase.min() < 0.01
    assert 3.13 < phase.max() <= np.pi
    batch = episodes.make(np.arange(4000))
    assert batch.support_x.shape == (4000, 10, 1)
    assert batch.query_y.shape == (4000, 5, 1)
    assert -5 <= batch.support_x.min() < -4.99
    assert 4.99 < batch.support_x.max() < 5
    curve = amplitude[:, None, None] * np.sin(batch.query_x.double().numpy() - phase[:, None, None])
    np.testing.assert_allclose(batch.query_y.numpy(), curve, atol=1e-5)
    # E[A²] E[sin²] with A uniform in [0.1, 5]; the integral over x and the phase taken numerically.
    x, p = np.meshgrid(np.linspace(-5, 5, 801), np.linspace(0, np.pi, 401))
    power = (5**3 - 0.1**3) / (3 * 4.9) * (np.sin(x - p) ** 2).mean()
    assert float(batch.support_y.square().mean()) == pytest.approx(power, rel=0.05)


def test_sinusoid_noise_is_gaussian_with_its_standard_deviation():
    clean = SinusoidDataModule().episodes("test").make(np.arange(2000))
    noisy = SinusoidDataModule(noise_std=0.3).episodes("test").make(np.arange(2000))
    assert torch.equal(clean.support_x, noisy.support_x)
    noise = (noisy.support_y - clean.support_y).flatten()
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert float((noise / 0.3).pow(4).mean()) == pytest.approx(3, rel=0.1)


def test_collation_pads_and_marks():
    tasks = [Episode(torch.ones(n, 2), torch.ones(n), torch.ones(3, 2), torch.ones(3)) for n in (2, 4)]
    batch = collate_episodes(tasks)
    assert batch.support_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.query_mask is None
    assert batch.support_x.sum((1, 2)).tolist() == [4, 8]
    assert collate_episodes(batch) is batch


def test_outside_examples_are_of_other_classes_than_the_task(numbered):
    data = module(numbered, ways=2, test=numbered, eval_outside_ways=2)
    assert next(iter(data.train_dataloader())).ood_x is None
    batch = next(iter(data.test_dataloader()))
    assert batch.ood_x.shape == (4, 8, 2)
    for task in range(4):
        own = set(batch.support_x[task, :, 1].tolist()) | set(batch.query_x[task, :, 1].tolist())
        assert len(own) == 2
        outside = batch.ood_x[task, :, 1].tolist()
        assert not own & set(outside)
        assert sorted(outside.count(c) for c in set(outside)) == [4, 4]
    without = next(iter(module(numbered, ways=2, test=numbered).test_dataloader()))
    assert torch.equal(batch.support_x, without.support_x)
    assert torch.equal(batch.query_x, without.query_x)
    with pytest.raises(ValueError, match="ways=2 and eval_outside_ways=3 but the test split has 4 classes"):
        module(numbered, ways=2, test=numbered, eval_outside_ways=3)


def test_batches_that_span_blocks_of_drawing_hold_the_same_tasks(numbered):
    episodes = module(numbered).episodes("train")
    across = episodes.__getitems__(range(508, 516))
    for row, index in enumerate(range(508, 516)):
        assert torch.equal(across.query_x[row], episodes[index].query_x)


def test_a_data_set_derived_from_a_tensor_data_set_keeps_its_own_items(numbered):
    class Shifted(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + 1000, y

    batch = next(iter(module(Shifted(*numbered.tensors)).train_dataloader()))
    assert (batch.support_x >= 1000).all()


class Blobs(NWayDataModule):
    keeps_arguments = True

    def __init__(self, size: int = 40, **options):
        super().__init__(**options)
        self.size = size

    def datasets(self):
        return {"train": TensorDataset(torch.randn(self.size, 2), torch.arange(self.size) % 8)}


def test_a_new_data_module_names_its_data_sets():
    data = Blobs(ways=3, query_shots=2, tasks_per_batch=4, seed=5)
    assert next(iter(data.train_dataloader())).query_x.shape == (4, 6, 2)
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="made with test=None"):
        data.test_dataloader()
    assert (data.hparams.size, data.hparams.seed, data.hparams.shots) == (40, 5, 1)
    with pytest.raises(TypeError, match="way"):
        Blobs(way=3)
