"""A dashboard shows what it can, and never ends a training."""

from __future__ import annotations

import lightning as L
import polars as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import nn

from lightning_meta import MLP, BayesianMAML
from lightning_meta.callbacks import EpisodeDashboard
from tests.callbacks.test_episode_dashboard import learner, sinusoids, trainer
from tests.offline_runs import without_connection, without_drawing
from tests.registry import BY_NAME

_MODULE = "lightning_meta.callbacks.episode_dashboard"


@pytest.mark.parametrize("name", ["ProtoNet", "regression with a noise model"])
def test_bfloat16(name, tmp_path):
    entry = BY_NAME["ProtoNet"]
    own, data = entry.learner(), entry.data(tasks_per_batch=2, train_tasks=2, val_tasks=2)
    if name != "ProtoNet":
        own, data = BayesianMAML(MLP(hidden=[6]), nn.MSELoss(), num_particles=2), sinusoids(train_tasks=2)
    trainer(tmp_path, EpisodeDashboard(), precision="bf16-true", max_epochs=1).fit(own, data)
    assert (tmp_path / "episodes/val/step_0/calibration.png").is_file()


@pytest.mark.parametrize("finite", [0, 1])
def test_metrics_that_are_not_finite(finite, tmp_path):
    own = learner()
    metrics = own.task_metrics

    def partly_infinite(*args):
        (mse,) = metrics(*args).values()
        return {"mse": torch.where(torch.arange(len(mse)) < finite, mse, float("inf"))}

    own.task_metrics = partly_infinite
    with without_connection(tmp_path):
        loggers = [
            *(CSVLogger(tmp_path, "", ""), TensorBoardLogger(tmp_path, "tensorboard", "")),
            WandbLogger(save_dir=tmp_path, offline=True),
        ]
        trainer(tmp_path, EpisodeDashboard(), logger=loggers).validate(own, sinusoids(), verbose=False)
    files = {path.name for path in (tmp_path / "episodes/val/step_0").iterdir()}
    assert {"tasks.png", "adaptation.png", "per_task.csv"} <= files
    assert ("difficulty.png" in files) == (finite > 0)


@pytest.mark.parametrize("part", [f"{_MODULE}.{name}" for name in ("record_of", "add_to_calibration", "outlet_of")])
def test_a_failure_is_one_warning_and_the_training_goes_on(part, tmp_path, monkeypatch):
    without_drawing(monkeypatch)

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(part, fail)
    runner = trainer(tmp_path, EpisodeDashboard(), max_epochs=3)
    with pytest.warns(UserWarning, match="EpisodeDashboard cannot show") as warned:
        runner.fit(learner(), sinusoids())
    texts = [str(warning.message) for warning in warned if "EpisodeDashboard" in str(warning.message)]
    assert texts == ["EpisodeDashboard cannot show an evaluation: OSError: disk full. The run goes on without."]
    assert runner.global_step == 12


@pytest.mark.filterwarnings("default:EpisodeDashboard saves no files")
@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_nothing_is_saved_beside_a_logger_with_a_remote_folder(kind, tmp_path, monkeypatch):
    without_drawing(monkeypatch)
    monkeypatch.chdir(tmp_path)
    runner = trainer(tmp_path, EpisodeDashboard(), logger=kind("memory://logs", "", ""), max_epochs=2)
    with pytest.warns(UserWarning, match="EpisodeDashboard saves no files in memory://logs"):
        runner.fit(learner(), sinusoids())
    assert not list(tmp_path.iterdir())


def test_validations_of_other_learners_have_no_common_curves(tmp_path, monkeypatch):
    without_drawing(monkeypatch)
    seen = []
    monkeypatch.setattr(f"{_MODULE}.draw_adaptation", lambda metric, history, scope: seen.append((len(history), scope)))
    dashboard = EpisodeDashboard()
    for _ in range(2):
        trainer(tmp_path, dashboard, logger=CSVLogger(tmp_path)).validate(learner(), sinusoids(), verbose=False)
    assert seen == [(1, "over tasks")] * 2


def test_no_more_tasks_than_are_shown_are_kept_and_adapted_to_again(tmp_path, monkeypatch):
    without_drawing(monkeypatch)
    kept = []

    class Spy(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            kept.extend(dashboard._batches)

    dashboard = EpisodeDashboard(num_episodes=3)
    trainer(tmp_path, Spy(), dashboard).validate(learner(), sinusoids(tasks_per_batch=5), verbose=False)
    (batch,) = kept
    assert batch.num_tasks == 3
    assert batch.query_x.untyped_storage().nbytes() == batch.query_x.nbytes


def test_learners_without_inner_steps_add_no_empty_row(tmp_path, monkeypatch):
    without_drawing(monkeypatch)
    entry = BY_NAME["ProtoNet"]
    runner = trainer(tmp_path, EpisodeDashboard())
    runner.fit(entry.learner(), entry.data(tasks_per_batch=2, train_tasks=4, val_tasks=4))
    rows = pl.read_csv(tmp_path / "metrics.csv").drop("step", "epoch").rows()
    assert len(rows) >= 2
    assert all(any(value is not None for value in row) for row in rows)
