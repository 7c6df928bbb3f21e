"""The dashboard's metrics by inner step agree with what the evaluation logs."""

from __future__ import annotations

import polars as pl
import pytest
from torch import nn

from lightning_meta import ABML, MAML, MLP
from lightning_meta.callbacks import EpisodeDashboard
from tests.callbacks.test_episode_dashboard import sinusoids, trainer
from tests.offline_runs import without_drawing


def logged(folder, learner, num_episodes):
    runner = trainer(folder, EpisodeDashboard(num_episodes=num_episodes))
    (values,) = runner.validate(learner, sinusoids(), verbose=False)
    table = pl.read_csv(folder / "metrics.csv")
    by_step = [table[f"val_episodes/mse_step_{step}"].drop_nulls()[0] for step in range(4)]
    return values, by_step, learner.per_task("val")


@pytest.mark.parametrize("all_steps", [False, True])
@pytest.mark.parametrize("algorithm", [MAML, ABML])
def test_the_first_and_last_step_are_those_of_the_evaluation(algorithm, all_steps, tmp_path, monkeypatch):
    without_drawing(monkeypatch)
    learner = algorithm(MLP(hidden=[6]), nn.MSELoss(), eval_inner_steps=3, log_step_metrics=all_steps)
    values, by_step, _ = logged(tmp_path, learner, num_episodes=5)
    assert by_step[0] == pytest.approx(values["val/mse_pre"], rel=1e-5)
    assert by_step[3] == pytest.approx(values["val/mse"], rel=1e-5)
    if all_steps:
        assert by_step[2] == pytest.approx(values["val/mse_step_2"], rel=1e-5)


@pytest.mark.parametrize("all_steps", [False, True])
def test_the_mean_is_over_the_shown_tasks_or_over_all(all_steps, tmp_path, monkeypatch):
    without_drawing(monkeypatch)
    learner = MAML(MLP(hidden=[6]), nn.MSELoss(), eval_inner_steps=3, log_step_metrics=all_steps)
    _, by_step, per_task = logged(tmp_path, learner, num_episodes=3)
    tasks = 5 if all_steps else 3
    assert by_step[0] == pytest.approx(float(per_task["mse_pre"][:tasks].mean()), rel=1e-5)
    assert by_step[3] == pytest.approx(float(per_task["mse"][:tasks].mean()), rel=1e-5)
