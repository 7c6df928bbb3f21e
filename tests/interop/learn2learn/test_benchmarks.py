"""learn2learn's benchmarks over our data modules, and over its own files."""

from __future__ import annotations

import inspect

import pytest
import torch

from lightning_meta import MiniImagenetDataModule, OmniglotDataModule
from lightning_meta.data.vision import omniglot_files
from lightning_meta.interop.learn2learn import TasksetDataModule, get_tasksets
from tests.data.vision.look_alikes import COUNTS, drawings, write_zips
from tests.interop.learn2learn.mini_imagenet_files import write_mini_imagenet


def test_arguments_become_ours(tmp_path):
    data = get_tasksets("mini-imagenet", 5, 20, 5, 16, root=tmp_path, shots=5, val_tasks=7, seed=3)
    assert type(data) is MiniImagenetDataModule
    assert (data.ways, data.shots, data.query_shots, data.eval_query_shots) == (5, 5, 15, 11)
    assert (data.num_tasks["val"], data.seed) == (7, 3)


@pytest.mark.parametrize("folder", ["", "omniglot-py"], ids=["ours", "as in learn2learn"])
def test_omniglot_is_read_where_its_files_are(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(omniglot_files, "_CHARACTERS", COUNTS)
    (tmp_path / folder).mkdir(exist_ok=True)
    write_zips(tmp_path / folder, drawings())
    data = get_tasksets("omniglot", 2, 4, 2, 4, root=tmp_path, character_split="lake")
    assert type(data) is OmniglotDataModule
    assert data.root == tmp_path / folder


@pytest.mark.parametrize("name", ["omniglot", "mini-imagenet", "tiered-imagenet", "cifarfs", "fc100"])
def test_nothing_is_downloaded(tmp_path, name):
    data = get_tasksets(name, root=tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        data.setup("fit")
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="name='mnist' is not one of"):
        get_tasksets("mnist")
    with pytest.raises(ValueError, match="train_ways=5 and test_ways=20 differ"):
        get_tasksets("omniglot", test_ways=20)
    with pytest.raises(ValueError, match="test_samples=5 leaves no queries beside shots=5: raise test_samples"):
        get_tasksets("omniglot", test_samples=5, shots=5)


def test_arguments_of_its_function_without_counterpart_name_ours(tmp_path):
    with pytest.raises(ValueError, match="num_tasks=20000 .* pass train_tasks, val_tasks and test_tasks"):
        get_tasksets("omniglot", 5, 10, 5, 10, 20_000)
    with pytest.raises(ValueError, match="device='cuda' .* Trainer"):
        get_tasksets("omniglot", device="cuda")
    data = get_tasksets("omniglot", num_tasks=-1, device=None, root=tmp_path)
    assert data.root == tmp_path


def test_it_takes_the_arguments_of_its_function(l2l):
    ours, theirs = (inspect.signature(f).parameters for f in (get_tasksets, l2l.vision.benchmarks.get_tasksets))
    named = [name for name, parameter in theirs.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    assert {name: ours[name].default for name in named} == {name: theirs[name].default for name in named}
    positional = [name for name, p in ours.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == named[: len(positional)]


def test_its_mini_imagenet_feeds_our_data_module(l2l, tmp_path):
    """Its reader opens pickled files, here small ones of the same form."""
    write_mini_imagenet(tmp_path, examples=4)
    tasksets = l2l.vision.benchmarks.get_tasksets(
        "mini-imagenet", train_ways=5, train_samples=4, test_ways=5, test_samples=3, root=str(tmp_path)
    )
    data = TasksetDataModule(*tasksets, shots=2, ways=5, tasks_per_batch=3)
    batch = next(iter(data.test_dataloader()))
    assert batch.support_x.shape == (3, 10, 3, 84, 84)
    assert batch.query_y.tolist() == [[0, 1, 2, 3, 4]] * 3
    classes = batch.query_x[..., 0, 0, 0]
    assert torch.equal(batch.support_x[..., 0, 0, 0], classes.repeat_interleave(2, dim=1))
    assert (batch.query_x[..., 5, 5] == 2).all()
