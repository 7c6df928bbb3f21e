"""R2-D2 against the closed form in NumPy, a plain loop over tasks, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_meta import R2D2, Episode, collate_episodes
from tests.reference import assert_same, meta_gradient, without_running_statistics

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def task(ways, shots, queries, seed=0):
    """A task whose classes have ``shots`` support examples each, in no order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=generator)
    y, query_y = (torch.arange(n) % ways for n in (ways * shots, queries))
    x = torch.randn(ways * shots, 3, generator=generator)
    return Episode(x, y[order], torch.randn(queries, 3, generator=generator), query_y)


def regression(shots, queries, shape=(2,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(shots, 3), (shots, *shape), (queries, 3), (queries, *shape)]
    return Episode(*(torch.randn(size, generator=generator) for size in sizes))


def with_constant(features):
    return torch.cat([features, torch.ones(len(features), 1)], 1)


def naive(learner, parameters, task):
    """The paper's equation with an inverse, on the classes that the support set has: scores and loss."""
    embed = without_running_statistics(learner.model)
    own = {name.removeprefix("model."): p for name, p in parameters.items() if name.startswith("model.")}
    x, query = (with_constant(functional_call(embed, own, (part,))) for part in (task.support_x, task.query_x))
    penalty, alpha = parameters["log_penalty"].exp(), parameters["log_scale"].exp()
    if task.support_y.is_floating_point():
        y = task.support_y.reshape(len(x), -1)
    else:
        y = F.one_hot(task.support_y, int(task.support_y.max()) + 1).double()
    weight = torch.inverse(x.T @ x + penalty * torch.eye(x.shape[1])) @ x.T @ y
    output = alpha * query @ weight + parameters["shift"]
    if task.support_y.is_floating_point():
        output = output.reshape(task.query_y.shape)
        return output, (output - task.query_y).square().mean()
    return output, -output.log_softmax(1)[torch.arange(len(output)), task.query_y].mean()


def naive_gradient(learner, tasks):
    parameters = {name: p.detach().clone().requires_grad_() for name, p in learner.named_parameters()}
    loss = sum(naive(learner, parameters, task)[1] for task in tasks) / len(tasks)
    slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return loss.detach(), dict(zip(parameters, slopes, strict=True))


def own_gradient(learner, tasks):
    loss, _ = meta_gradient(learner, collate_episodes(tasks))
    return loss, {name: p.grad.clone() for name, p in learner.named_parameters()}


def assert_naive(learner, tasks):
    found, expected = own_gradient(learner, tasks), naive_gradient(learner, tasks)
    torch.testing.assert_close(found[0], expected[0])
    assert_same(found[1], expected[1], 1e-9)


# More features than examples (dual), as many, and fewer (primal).
SIZES = [(2, 1), (5, 1), (3, 2), (5, 5), (20, 2)]


@pytest.mark.parametrize(("ways", "shots"), SIZES)
def test_head_is_the_closed_form_in_both_forms(ways, shots, model):
    learner, one = R2D2(model, ridge_penalty=0.3), task(ways, shots, 7)
    head = learner.adapt(one.support_x, one.support_y).state
    x = np.concatenate([model(one.support_x).detach().numpy(), np.ones((ways * shots, 1))], 1)
    y = np.eye(ways)[one.support_y.numpy()]
    primal = np.linalg.solve(x.T @ x + 0.3 * np.eye(5), x.T @ y)
    dual = x.T @ np.linalg.solve(x @ x.T + 0.3 * np.eye(len(x)), y)
    for expected in (primal, dual):
        np.testing.assert_allclose(head.weight.numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [None, 2, 1])
@pytest.mark.parametrize(("ways", "shots"), SIZES)
def test_loss_scores_and_gradient_are_the_papers(ways, shots, chunk, model):
    learner = R2D2(model, ridge_penalty=0.3, output_scale=3.0, task_chunk_size=chunk)
    tasks = [task(ways, shots, 7, seed) for seed in range(3)]
    assert_naive(learner, tasks)
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    for one, output in zip(tasks, outputs, strict=True):
        scores = naive(learner, dict(learner.named_parameters()), one)[0].detach()
        torch.testing.assert_close(output, scores)
        adapted = learner.adapt(one.support_x, one.support_y)
        torch.testing.assert_close(adapted(one.query_x), scores)
        torch.testing.assert_close(adapted.predict(one.query_x).mean, scores.softmax(1))


@pytest.mark.parametrize("shape", [(2,), (1,), (), (2, 3)])
@pytest.mark.parametrize("shots", [3, 9])
def test_real_targets_are_regressed_on(shots, shape, model):
    learner = R2D2(model, nn.MSELoss(), ridge_penalty=0.3, output_scale=1.5)
    nn.init.constant_(learner.shift, 0.2)
    assert_naive(learner, [regression(shots, 5, shape, seed) for seed in range(3)])


@pytest.mark.parametrize("real", [False, True])
def test_slopes_of_penalty_scale_and_shift_are_finite_differences(real, model):
    learner = R2D2(model, nn.MSELoss() if real else None, ridge_penalty=0.3)
    tasks = [regression(4, 6) if real else task(3, 2, 6)]
    _, slopes = own_gradient(learner, tasks)
    for name in ("log_penalty", "log_scale", "shift"):
        parameter, losses = getattr(learner, name), []
        start = parameter.item()
        for step in (1e-5, -1e-5):
            nn.init.constant_(parameter, start + step)
            losses.append(learner.training_step(collate_episodes(tasks), 0).item())
        nn.init.constant_(parameter, start)
        difference = (losses[0] - losses[1]) / 2e-5
        assert math.isclose(float(slopes[name]), difference, rel_tol=1e-6, abs_tol=1e-9)
        assert (abs(difference) > 1e-4) == (real or name != "shift")  # all classes have the same shift


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_tasks_of_different_sizes_train_as_each_alone(chunk, batch_norm, model):
    if batch_norm:  # whose padding is cut off
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    learner = R2D2(model, task_chunk_size=chunk)
    assert_naive(learner, [task(3, shots, queries, shots) for shots, queries in ((1, 6), (3, 4), (2, 5))])


def test_regressions_of_different_sizes_train_as_each_alone(model):
    learner = R2D2(model, nn.MSELoss())
    assert_naive(learner, [regression(*sizes, seed=sizes[0]) for sizes in ((2, 6), (9, 4), (5, 5))])


def test_a_task_with_fewer_classes_than_others_has_its_own_value_and_gradient(model):
    """All have 12 support examples, of 2, 3 and 6 classes."""
    tasks = [task(ways, 12 // ways, 6, ways) for ways in (2, 3, 6)]
    learner = R2D2(model)
    assert_naive(learner, tasks)
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    assert (outputs[0, :, 2:] == -torch.inf).all()
    expected = naive(learner, dict(learner.named_parameters()), tasks[0])[0].detach()
    torch.testing.assert_close(outputs[0, :, :2], expected)


def test_a_binary_loss_compares_one_output(model):
    one = regression(5, 6, (1,))
    one = one._replace(support_y=(one.support_y > 0).double(), query_y=(one.query_y > 0).double())
    learner = R2D2(model, nn.BCEWithLogitsLoss(), output_scale=5.0)
    loss = learner.training_step(collate_episodes([one]), 0)
    output = naive(learner, dict(learner.named_parameters()), one)[0].detach()
    torch.testing.assert_close(loss.detach(), F.binary_cross_entropy_with_logits(output, one.query_y))


def test_half_precision_is_solved_in_single(model):
    learner, one = R2D2(model.float()), task(3, 2, 6)
    one = one._replace(support_x=one.support_x.float(), query_x=one.query_x.float())
    with torch.autocast("cpu", torch.bfloat16):
        scores = learner.adapt(one.support_x, one.support_y)(one.query_x)
    assert scores.dtype == torch.float32
    expected = learner.adapt(one.support_x, one.support_y)(one.query_x)
    torch.testing.assert_close(scores, expected, rtol=0.1, atol=0.2)


def test_wrong_arguments_and_shapes_are_named(model):
    with pytest.raises(ValueError, match=r"ridge_penalty=0.0 must be a positive number"):
        R2D2(model, ridge_penalty=0.0)
    with pytest.raises(ValueError, match=r"output_scale=-1 must be a positive number"):
        R2D2(model, output_scale=-1)
    one = task(3, 2, 5)
    with pytest.raises(ValueError, match=r"model gives features of shape .* R2D2 needs \[examples, features\]"):
        R2D2(nn.Unflatten(1, (3, 1))).adapt(one.support_x, one.support_y)
    with pytest.raises(ValueError, match="query_y holds the label 3 .*support set"):
        R2D2(model).training_step(collate_episodes([one._replace(query_y=torch.tensor([0, 1, 2, 3, 0]))]), 0)
    real = regression(4, 5, (1,))
    with pytest.raises(ValueError, match="query_y has shape"):
        R2D2(model, nn.MSELoss()).training_step(collate_episodes([real._replace(query_y=real.query_y[:, 0])]), 0)
