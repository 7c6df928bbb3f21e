"""Matching networks against a plain loop over the paper's equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import Episode, MatchingNet, collate_episodes
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def task(ways, shots, queries, seed=0):
    """A task whose classes have ``shots`` support examples each, in no order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=generator)
    x = torch.randn(ways * shots, 3, generator=generator)
    labels = torch.arange(ways * shots) % ways
    return Episode(x, labels[order], torch.randn(queries, 3, generator=generator), torch.arange(queries) % ways)


def naive(model, parameters, task, scale):
    """Equation 1, example by example: probabilities ``[query, ways]``, and the mean negative log-likelihood."""
    support = functional_call(model, parameters, (task.support_x,))
    query = functional_call(model, parameters, (task.query_x,))
    rows = []
    for f in query:
        weights = [torch.exp(scale * (f @ g) / (f.norm() * g.norm())) for g in support]
        votes = [torch.zeros(()) for _ in range(int(task.support_y.max()) + 1)]
        for weight, label in zip(weights, task.support_y.tolist(), strict=True):
            votes[label] = votes[label] + weight / sum(weights)
        rows.append(torch.stack(votes))
    probabilities = torch.stack(rows)
    losses = [-torch.log(probabilities[j, y]) for j, y in enumerate(task.query_y.tolist())]
    return probabilities, sum(losses) / len(losses)


def assert_naive(learner, tasks, scale):
    parameters = {name: p.detach().clone().requires_grad_() for name, p in learner.model.named_parameters()}
    loss = sum(naive(learner.model, parameters, task, scale)[1] for task in tasks) / len(tasks)
    slopes = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    found = meta_gradient(learner, collate_episodes(tasks))
    torch.testing.assert_close(found[0], loss.detach())
    assert all(torch.isfinite(slope).all() for slope in found[1].values())
    assert_same(found[1], slopes)


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize(("ways", "shots", "scale"), [(2, 1, 1.0), (5, 3, 1.0), (5, 1, 100.0), (7, 2, 10.0)])
def test_loss_probabilities_and_gradient_are_the_papers(ways, shots, scale, chunk, model):
    learner = MatchingNet(model, scale=scale, task_chunk_size=chunk)
    tasks = [task(ways, shots, 6, seed) for seed in range(3)]
    assert_naive(learner, tasks, scale)
    for one in tasks:
        expected = naive(model, dict(model.named_parameters()), one, scale)[0].detach()
        adapted = learner.adapt(one.support_x, one.support_y)
        torch.testing.assert_close(adapted(one.query_x), expected.log())
        torch.testing.assert_close(adapted.predict(one.query_x).mean, expected)


def test_tasks_of_different_sizes_and_classes_train_as_each_alone(model):
    tasks = [task(2, 6, 4), task(3, 1, 7, 1), task(6, 2, 5, 2)]
    learner = MatchingNet(model, scale=5.0)
    assert_naive(learner, tasks, 5.0)
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    assert (outputs[0, :, 2:] == -torch.inf).all()
    expected = naive(model, dict(model.named_parameters()), tasks[0], 5.0)[0].detach()
    torch.testing.assert_close(outputs[0, :4, :2], expected.log())


def test_a_learned_scale_has_the_slope_of_the_loop(model):
    learner, one = MatchingNet(model, scale=3.0, learn_scale=True), task(4, 2, 8)
    meta_gradient(learner, collate_episodes([one]))
    log_scale = torch.tensor(3.0).log().requires_grad_()
    (slope,) = torch.autograd.grad(naive(model, dict(model.named_parameters()), one, log_scale.exp())[1], log_scale)
    torch.testing.assert_close(learner.log_scale.grad, slope)


def test_a_large_scale_gives_no_infinite_loss_and_no_nan(model):
    """In probabilities exp(-2000) would be 0."""
    one, learner = task(3, 2, 6), MatchingNet(model, scale=1000.0)
    loss, slopes = meta_gradient(learner, collate_episodes([one]))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(slope).all() for slope in slopes.values())


def test_features_of_images_are_refused():
    learner = MatchingNet(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match="MatchingNet needs \\[examples, features\\]; add a Flatten"):
        learner.adapt(torch.randn(4, 1, 5, 5), torch.arange(4))
