"""Losses on held-out tasks, against the learner's own evaluation of one task at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, ProtoNet, SinusoidDataModule
from lightning_meta.analysis import held_out_losses
from tests.registry import BY_NAME


def test_losses_of_a_regression_are_those_of_adapted_and_unadapted_models():
    learner = MAML(nn.Sequential(MLP(), nn.Dropout(0.5)), nn.MSELoss()).train()
    learner.model[0].eval()
    tasks = SinusoidDataModule(shots=4, test_tasks=7).episodes("test")
    found = held_out_losses(learner, tasks, tasks_at_once=3)
    assert learner.training
    assert learner.model[1].training
    assert not learner.model[0].training
    learner.eval()
    assert found.kind == "loss"
    for index in range(7):
        task = tasks[index]
        adapted = learner.adapt(task.support_x, task.support_y)(task.query_x)
        assert float(found.adapted[index]) == pytest.approx(float(nn.MSELoss()(adapted, task.query_y)), rel=1e-4)
        unadapted = nn.MSELoss()(learner.model(task.query_x), task.query_y)
        assert float(found.unadapted[index]) == pytest.approx(float(unadapted.detach()), rel=1e-4)


def test_classes_have_errors_and_learners_without_steps_no_unadapted_ones():
    entry = BY_NAME["ProtoNet"]
    torch.manual_seed(0)
    learner = ProtoNet(nn.Linear(1, 2)).eval()
    tasks = entry.data(test_tasks=5).episodes("test")
    found = held_out_losses(learner, tasks, 4)
    task = tasks[3]
    wrong = learner.adapt(task.support_x, task.support_y)(task.query_x).argmax(1) != task.query_y
    assert found.kind == "error"
    assert found.unadapted is None
    assert float(found.adapted[3]) == pytest.approx(float(wrong.double().mean()))
    assert found.adapted.shape == (4,)


def test_errors_of_tasks_that_diverge_are_infinite():
    class Wild(type(BY_NAME["ProtoNet"].data().episodes("test"))):
        def make(self, indices):
            batch = super().make(indices)
            batch.support_x[indices == 2] = 3e38
            return batch

    own = BY_NAME["ProtoNet"].data(test_tasks=4).episodes("test")
    tasks = Wild(own.dataset, own.ways, own.shots, own.query_shots, "test", 4, 0)
    found = held_out_losses(MAML(nn.Linear(1, 3), inner_lr=1.0, inner_steps=4), tasks)
    assert np.flatnonzero(found.adapted.isinf()).tolist() == [2]
    assert math.isfinite(float(found.unadapted.sum()))
