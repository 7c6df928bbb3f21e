"""What is recorded of an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, ProtoNet, SinusoidDataModule, collate_episodes
from lightning_meta.callbacks.episodes.record import record_of, shown_steps
from tests.registry import BY_NAME, every


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, (0,)), (1, (0, 1)), (10, tuple(range(11))), (64, (0, 6, 13, 19, 26, 32, 38, 45, 51, 58, 64))],
)
def test_steps_are_spread_evenly_from_the_first_to_the_last(steps, expected):
    assert shown_steps(steps) == expected


@every(lambda entry: entry.takes_steps)
def test_many_inner_steps_stay_few_points(entry):
    learner = entry.learner(eval_inner_steps=23, inner_lr=1e-3)
    batch = entry.batch(tasks=3)
    record = record_of(learner, [batch], {entry.metric: torch.rand(3), f"{entry.metric}_pre": torch.rand(3)}, 2)
    assert record.curve.steps == list(shown_steps(23))
    assert len(record.curve.mean) == len(record.curve.ci95) == 11
    assert 1 <= len(record.gradient_norm.steps) <= 11
    assert len(record.episodes) == 2


def test_ragged_tasks_are_shown_without_padding():
    entry = BY_NAME["MAML"]
    tasks = [entry.task(support=4, query=3), entry.task(support=6, query=5)]
    learner = entry.learner(eval_inner_steps=2)
    record = record_of(learner, [collate_episodes(tasks)], {"mse": torch.rand(2), "mse_pre": torch.rand(2)}, 5)
    for shown, task in zip(record.episodes, tasks, strict=True):
        torch.testing.assert_close(shown.task.support_x, task.support_x)
        torch.testing.assert_close(shown.task.query_y, task.query_y)
        own = learner.adapt(task.support_x, task.support_y).predict(task.query_x).mean
        torch.testing.assert_close(shown.prediction.mean, own)


def test_curves_are_means_over_tasks_of_all_batches():
    data = SinusoidDataModule(tasks_per_batch=2, val_tasks=5)
    learner = MAML(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.05, eval_inner_steps=2)
    batches = list(data.val_dataloader())[:2]
    tasks = [batch.select(i) for batch in batches for i in range(2)]
    by_step = torch.stack(
        [
            torch.stack(
                [
                    (learner.adapt(task.support_x, task.support_y, steps)(task.query_x) - task.query_y).square().mean()
                    if steps
                    else (learner.model(task.query_x) - task.query_y).detach().square().mean()
                    for task in tasks
                ]
            )
            for steps in range(3)
        ]
    )
    values = {name: torch.rand(8) for name in ("mse", "mse_pre")}  # of two processes that take turns
    values["mse"][::2], values["mse_pre"][::2] = by_step[2], by_step[0]
    record = record_of(learner, batches, values, 4, processes=2)
    assert record.curve.mean == pytest.approx(by_step.mean(1).tolist(), rel=1e-4)
    assert record.curve.ci95 == pytest.approx((1.96 * by_step.std(1) / 2).tolist(), rel=1e-4)
    assert [shown.number for shown in record.episodes] == [0, 2, 4, 6]
    assert record.curve.tasks == record.support_loss.tasks == record.gradient_norm.tasks == "the 4 shown tasks"


def test_metrics_by_step_of_all_tasks_are_taken_where_the_learner_logs_them():
    learner = MAML(MLP(hidden=[6]), nn.MSELoss(), inner_steps=1, log_step_metrics=True)
    values = {"mse": torch.ones(7), "mse_step_0": torch.full((7,), 3.0), "mse_step_1": torch.ones(7)}
    record = record_of(learner, [BY_NAME["MAML"].batch(2)], values, 1)
    assert record.curve.mean == [3.0, 1.0]
    assert record.curve.tasks == "all 7 tasks"
    assert record.support_loss.tasks == "the 1 shown tasks"


def test_learners_without_inner_steps_have_no_curves():
    learner = ProtoNet(MLP(1, 4, hidden=[6]))
    record = record_of(learner, [BY_NAME["ProtoNet"].batch(2)], {"acc": torch.rand(2), "acc_pre": torch.rand(2)}, 1)
    assert (record.curve, record.support_loss, record.gradient_norm) == (None, None, None)
    assert record.episodes[0].prediction.mean.sum(1) == pytest.approx(1)
