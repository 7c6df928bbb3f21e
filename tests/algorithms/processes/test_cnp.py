"""Conditional neural processes against a loop over examples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import CNP, MAML, collate_episodes
from tests.algorithms.processes.naive import (
    all_gradients,
    class_model,
    class_task,
    examples,
    gaussian_nll,
    pair,
    regression_model,
    tasks,
)
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("float64")

SMALL = {"hidden": 6, "layers": 2, "compile": False}


def represented(learner, task, targets):
    encoded = [
        learner.encoder(pair(learner.model, x, y)[None])[0] for x, y in zip(task.support_x, targets, strict=True)
    ]
    return sum(encoded) / len(encoded)


def decoded(learner, r, x):
    return learner.decoder(torch.cat([learner.model[:2](x[None])[0], r])[None])[0]


def loop_loss(learner, task):
    """Equations 1 to 4 of the paper, one example after another."""
    r = represented(learner, task, task.support_y)
    scored = examples(task) if learner.score_support else examples(task)[len(task.support_x) :]
    values = [gaussian_nll(learner.model, decoded(learner, r, x), x, y, learner.min_std) for x, y in scored]
    return torch.stack(values).mean()


@pytest.mark.parametrize("score_support", [True, False])
def test_two_steps_on_ragged_tasks_are_those_of_a_loop(score_support):
    learner = CNP(regression_model(), nn.MSELoss(), score_support=score_support, min_std=0.2, **SMALL)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for _ in range(2):
        drawn = tasks()
        expected = torch.stack([loop_loss(learner, task) for task in drawn]).mean()
        slopes = torch.autograd.grad(expected, list(learner.parameters()))
        loss, found = all_gradients(learner, collate_episodes(drawn))
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
        assert_same(found, dict(zip((name for name, _ in learner.named_parameters()), slopes, strict=True)))
        optimizer.step()


def test_class_labels_are_encoded_as_one_hot_rows():
    learner, task = CNP(class_model(), **SMALL), class_task()
    r = represented(learner, task, torch.eye(3)[task.support_y])
    logits = torch.stack([decoded(learner, r, x) + learner.model(x[None])[0] for x in task.query_x])
    found = learner.adapt(task.support_x, task.support_y)(task.query_x)
    torch.testing.assert_close(found, logits)
    loss = CNP.task_loss(learner, dict(learner.named_parameters()), task)[1].diagnostics["nll"]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, task.query_y))


def test_predictions_have_the_decoders_variance_and_no_epistemic_part():
    learner, task = CNP(regression_model(), nn.MSELoss(), **SMALL), tasks()[0]
    prediction = learner.adapt(task.support_x, task.support_y).predict(task.query_x)
    r = represented(learner, task, task.support_y)
    std = torch.stack([0.1 + 0.9 * nn.functional.softplus(decoded(learner, r, x)[1]) for x in task.query_x])
    torch.testing.assert_close(prediction.total, std.square()[:, None])
    assert torch.equal(prediction.total, prediction.aleatoric)
    assert prediction.epistemic is None


@pytest.mark.parametrize("least", [0.0, 1.0, -0.1])
def test_a_least_deviation_out_of_range_is_an_error(least):
    with pytest.raises(ValueError, match="min_std"):
        CNP(regression_model(), nn.MSELoss(), min_std=least)


def test_a_loss_without_a_likelihood_is_an_error():
    with pytest.raises(ValueError, match="no negative log-likelihood"):
        CNP(regression_model(), nn.L1Loss())


def test_a_model_without_a_linear_layer_at_its_end_is_an_error():
    with pytest.raises(ValueError, match="model ends in BatchNorm1d, and CNP reads the inputs of an nn.Linear"):
        CNP(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.MSELoss())
    with pytest.raises(ValueError, match="model ends in nothing"):
        CNP(nn.Identity(), nn.MSELoss())


def test_a_head_whose_output_is_changed_is_an_error():
    learner = CNP(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), nn.MSELoss())
    with pytest.raises(ValueError, match=r"CNP needs a head that is called once, on \[examples, features\]"):
        learner.adapt(torch.randn(4, 2), torch.randn(4, 3))


def test_the_model_of_another_learner_fits():
    """One configuration of a model is for all learners: its outputs are the targets."""
    for cls in (MAML, CNP):
        learner = cls(regression_model(), nn.MSELoss())
        assert learner.adapt(torch.randn(4, 2), torch.randn(4, 1))(torch.randn(3, 2)).shape == (3, 1)
