"""What docs/how-to/coming-from-learn2learn.md reports about learn2learn 0.2.0; a failure means that the page is old."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset


def test_all_classes_of_a_task_are_turned_alike(l2l):
    """One pixel in a corner shows the rotation; with one for each class, 4 in 1024 tasks would have equal ones."""
    picture = torch.zeros(40, 1, 4, 4)
    picture[:, 0, 0, 0] = 1
    data = l2l.data.MetaDataset(TensorDataset(picture, torch.arange(40) // 4))
    steps = [l2l.data.transforms.FusedNWaysKShots(data, n=5, k=2), l2l.data.transforms.LoadData(data)]
    turn = l2l.vision.transforms.RandomClassRotation(data, [0.0, 90.0, 180.0, 270.0])
    taskset = l2l.data.Taskset(data, [*steps, turn])
    corners = [taskset.sample()[0].flatten(1).argmax(1) for _ in range(30)]
    assert all(len(of_task.unique()) == 1 for of_task in corners)
    assert len(torch.cat(corners).unique()) == 4


def test_omniglots_splits_share_their_classes(l2l, monkeypatch):
    class Characters(Dataset):
        """Pictures whose pixels are the number of the character."""

        def __init__(self, root, transform=None, download=False):
            pass

        def __len__(self):
            return 1623 * 2

        def __getitem__(self, index):
            return torch.full((1, 2, 2), float(index // 2)), index // 2

    monkeypatch.setattr(l2l.vision.datasets, "FullOmniglot", Characters)
    tasksets = l2l.vision.benchmarks.get_tasksets("omniglot", 20, 2, 20, 2, root="")
    train, test = ({int(c) for _ in range(100) for c in t.sample()[0][:, 0, 0, 0]} for t in (tasksets[0], tasksets[2]))
    assert len(tasksets.train.dataset.labels) == 1100
    assert len(train) > 1100
    assert train & test


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_meta_sgd_unties_a_layer_in_two_places(l2l):
    layer = nn.Linear(3, 3)
    clone = l2l.algorithms.MetaSGD(nn.Sequential(layer, nn.Sequential(layer)), lr=0.1).clone()
    clone.adapt(clone(torch.ones(2, 3)).square().sum())
    assert not torch.equal(clone.module[0].weight, layer.weight)
    assert torch.equal(clone.module[1][0].weight, layer.weight)


def test_meta_sgd_cannot_adapt_a_model_with_unused_parameters(l2l):
    clone = l2l.algorithms.MetaSGD(nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), lr=0.1).clone()
    with pytest.raises(RuntimeError, match="have been used in the graph"):
        clone.adapt(clone.module[0](torch.ones(2, 3)).square().sum())


def test_scales_made_by_module_transform_start_at_the_number_of_elements(l2l):
    transform = l2l.optim.ModuleTransform(l2l.nn.Scale)(torch.zeros(3, 4))
    assert transform.transform.alpha.tolist() == [12.0] * 12


def test_lightning_modules_take_misspelt_arguments(l2l):
    module = l2l.algorithms.LightningMAML(nn.Linear(2, 5), adaptation_step=7)
    assert module.adaptation_steps == 1


def test_testing_needs_inference_mode_off(l2l, tmp_path):
    """Its modules differentiate by autograd, which inference mode does not record."""
    pytorch_lightning = pytest.importorskip("pytorch_lightning")
    module = l2l.algorithms.LightningMAML(nn.Linear(2, 5), test_queries=1, train_queries=1)
    batches = [(torch.randn(10, 2), torch.arange(5).repeat_interleave(2))]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pytorch_lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    with pytest.raises((RuntimeError, UnboundLocalError)):
        trainer.test(module, batches, verbose=False)
