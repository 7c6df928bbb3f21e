"""A number of distinct training tasks that return again and again."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import MAML, MLP, EpisodicDataModule, SinusoidDataModule, TabularTasksDataModule
from lightning_meta.cli import main
from lightning_meta.data import EpisodeDataset, TaskDataModule
from lightning_meta.data.distinct_tasks import FIRST_RESERVED_DRAW, first_distinct
from lightning_meta.data.episodes import EpisodeSampler
from tests.data.tabular.made import patients


def numbered(classes=6, each=9):
    """Examples that carry their own number and class."""
    labels = torch.arange(classes * each) % classes
    return TensorDataset(torch.stack([torch.arange(classes * each), labels], dim=1), labels)


def n_way(**options):
    return EpisodicDataModule(numbered(), **{"ways": 3, "query_shots": 4, "tasks_per_batch": 4} | options)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "visits.csv"
    patients().write_csv(path)

    def make(**options):
        defaults = {"task_column": "patient", "target_column": "level", "shots": 3, "query_shots": 2}
        return TabularTasksDataModule(str(path), **(defaults | {"tasks_per_batch": 4} | options))

    return make


@pytest.fixture(params=["sinusoid", "classes", "table"])
def module(request, table):
    return {"sinusoid": SinusoidDataModule, "classes": n_way, "table": table}[request.param]


def stream(data, epochs):
    """The support and query inputs of every training task, task by task, over some epochs."""
    loader = data.train_dataloader()
    tasks = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            tasks += list(torch.cat([batch.support_x, batch.query_x], 1))
    return tasks


def naive(data, distinct, redraw, count):
    """The same, by a loop over single tasks."""
    tasks = data.episodes("train")
    indices = tasks.distinct_indices(distinct)
    single = []
    for i in range(count):
        draw = i // distinct if redraw else 0
        task = tasks.redrawn(np.array([indices[i % distinct]]), np.array([draw])).select(0)
        single.append(torch.cat([task.support_x, task.query_x]))
    return single


@pytest.mark.parametrize("redraw", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_as_a_naive_loop_says(module, redraw, workers):
    """Epochs of 26 tasks are no multiple of the 7 distinct ones, nor of the batch."""
    options = {"train_tasks": 26, "num_workers": workers, "tasks_per_batch": 4}
    data = module(distinct_train_tasks=7, redraw_examples=redraw, **options)
    found, expected = stream(data, 2), naive(module(), 7, redraw, 52)
    assert len(found) == 52
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_redrawing_every_visit_is_identical(module):
    tasks = stream(module(distinct_train_tasks=5, redraw_examples=False, train_tasks=20, tasks_per_batch=5), 2)
    for i, task in enumerate(tasks):
        assert torch.equal(task, tasks[i % 5])
    assert len({task.numpy().tobytes() for task in tasks}) == 5


def test_with_redrawing_no_visit_is_identical(module):
    tasks = stream(module(distinct_train_tasks=5, train_tasks=20), 2)
    assert len({task.numpy().tobytes() for task in tasks}) == 40


def test_a_long_stream_has_exactly_so_many_tasks(table):
    tasks = n_way(ways=2, distinct_train_tasks=25).training_tasks()
    batch = tasks.make(np.arange(1000))
    pairs = batch.support_x[:, :, 1]  # of 30 that are possible: without care, some of 25 would coincide
    assert len(pairs.unique(dim=0)) == 25
    assert torch.equal(pairs, pairs[np.arange(1000) % 25])
    data = table(distinct_train_tasks=11)
    own, groups = data.training_tasks()._indices, data.episodes("train").choice.groups
    assert len(np.unique(data.episodes("train").group_numbers(own))) == 11
    support, _ = data.episodes("train").row_numbers(own)
    assert len(np.unique(np.searchsorted(groups.starts, support, side="right"))) == 11
    curves = SinusoidDataModule(distinct_train_tasks=6).training_tasks()._indices
    assert curves.tolist() == [0, 1, 2, 3, 4, 5]


def test_groups_are_chosen_by_the_seed(table):
    def first(seed):
        return table(seed=seed, distinct_train_tasks=4).episodes("train").group_numbers(np.arange(4)).tolist()

    assert first(0) == first(0) != first(1)


def test_first_distinct_is_as_a_loop_finds_it():
    keys = np.random.default_rng(0).integers(0, 9, size=(5000, 2))
    found = first_distinct(lambda indices: keys[indices], 81)
    seen, expected = set(), []
    for index, key in enumerate(map(tuple, keys)):
        if key not in seen:
            expected.append(index)
        seen.add(key)
    assert found.tolist() == expected[:81]


def test_analyses_get_new_examples_of_the_tasks_of_training():
    data = n_way(distinct_train_tasks=6)
    tasks, indices = data.training_tasks(), np.arange(6)
    fresh = tasks.redrawn(indices, np.full(6, FIRST_RESERVED_DRAW))
    assert torch.equal(fresh.query_x[..., 1], tasks.make(indices).query_x[..., 1])
    assert not torch.equal(fresh.query_x, tasks.make(indices).query_x)
    again = n_way().training_tasks().redrawn(data.training_tasks()._indices, np.full(6, FIRST_RESERVED_DRAW))
    assert torch.equal(fresh.query_x, again.query_x)
    assert tasks.with_shots(2)[0].support_x.shape[0] == 6


def test_processes_share_visits_without_overlap(monkeypatch):
    data = SinusoidDataModule(train_tasks=11, distinct_train_tasks=4)
    seen = []
    for epoch in range(2):
        for rank in range(3):
            monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
            monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            sampler = EpisodeSampler(data.training_tasks(), fresh=True)
            sampler.set_epoch(epoch)
            seen += list(data.training_tasks().make(np.array(list(sampler))).support_x)
    expected = SinusoidDataModule(distinct_train_tasks=4).training_tasks().make(np.arange(24)).support_x
    assert {task.numpy().tobytes() for task in seen} == {task.numpy().tobytes() for task in expected}
    assert len(seen) == 24


class Seen(L.Callback):
    def __init__(self):
        self.inputs = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.inputs += list(torch.cat([batch.support_x, batch.query_x], 1))


def test_a_resumed_epoch_goes_on_with_the_next_visits(tmp_path):
    def trained(ckpt_path=None):
        data = SinusoidDataModule(shots=3, tasks_per_batch=2, train_tasks=10, val_tasks=2, distinct_train_tasks=7)
        seen, saved = Seen(), ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = L.Trainer(max_epochs=2, callbacks=[seen, saved], **options)
        trainer.fit(MAML(MLP(hidden=[4]), nn.MSELoss()), data, ckpt_path=ckpt_path, weights_only=False)
        return seen.inputs

    whole = trained()
    expected = naive(SinusoidDataModule(shots=3), 7, True, 20)
    assert all(torch.equal(a, b) for a, b in zip(whole, expected, strict=True))
    resumed = trained(tmp_path / "step=3.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(resumed, expected[6:], strict=True))


def test_too_many_distinct_tasks_are_an_error(table):
    with pytest.raises(ValueError, match="distinct_train_tasks=15, but there are 14 distinct training tasks: set"):
        table(distinct_train_tasks=15).train_dataloader()
    with pytest.raises(ValueError, match="distinct_train_tasks=31, but there are 30 distinct"):
        n_way(ways=2, distinct_train_tasks=31).train_dataloader()
    assert len(n_way(ways=2, distinct_train_tasks=30).training_tasks()._indices) == 30


def test_unfit_arguments():
    with pytest.raises(ValueError, match="distinct_train_tasks=0 must be an integer of at least 1"):
        SinusoidDataModule(distinct_train_tasks=0)
    with pytest.raises(ValueError, match="redraw_examples=False, but fresh tasks never return: set"):
        SinusoidDataModule(redraw_examples=False)


class Own(EpisodeDataset):
    def make(self, indices):
        return SinusoidDataModule().episodes("train").make(indices)


class OwnDataModule(TaskDataModule):
    def episodes(self, split):
        return Own(self.num_tasks[split])


def test_tasks_that_cannot_be_redrawn_can_return_unchanged(table):
    with pytest.raises(TypeError, match=r"redraw_examples=True, but Own cannot .* or set redraw_examples=False"):
        OwnDataModule(distinct_train_tasks=3).train_dataloader()
    assert len(stream(OwnDataModule(distinct_train_tasks=3, redraw_examples=False, train_tasks=6), 1)) == 6
    split_in_time = {"time_column": "day", "query_shots": None, "split_time": 6.0, "distinct_train_tasks": 3}
    with pytest.raises(TypeError, match=r"all rows before split_time=6; or set redraw_examples=False"):
        table(**split_in_time).train_dataloader()
    assert len(table(**split_in_time, redraw_examples=False).training_tasks()) == 1600


def test_the_command_line_trains_on_distinct_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--data.train_tasks=8", "--data.val_tasks=2", "--data.tasks_per_batch=4", "--trainer.max_epochs=2"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    model = ["--model=MAML", "--model.model=MLP", "--model.loss_fn=torch.nn.MSELoss"]
    distinct = ["--data=SinusoidDataModule", "--data.distinct_train_tasks=3", "--data.redraw_examples=false"]
    cli = main(["fit", *model, *distinct, *small, *quiet])
    assert cli.trainer.global_step == 4
    saved = SinusoidDataModule.load_from_checkpoint(cli.trainer.checkpoint_callback.best_model_path)
    assert (saved.distinct_train_tasks, saved.redraw_examples) == (3, False)
    tasks = saved.training_tasks()
    assert torch.equal(tasks[1].support_x, tasks[100].support_x)


def test_arguments_are_kept():
    data = SinusoidDataModule(distinct_train_tasks=3, redraw_examples=False)
    assert (data.hparams.distinct_train_tasks, data.hparams.redraw_examples) == (3, False)
    assert SinusoidDataModule().training_tasks().split == "train"
