"""MetaOptNet against its solvers, called task by task, and finite differences; solvers have tests of their own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import Episode, MetaOptNet, collate_episodes
from lightning_meta.inner.solvers.support_vectors import support_vectors
from tests.reference import meta_gradient, without_running_statistics

pytestmark = pytest.mark.usefixtures("float64")

HEADS = ["svm", "ridge"]


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


def naive(learner, one):
    """One task's scores and loss: the ridge head by an inverse, the machine by its solver without a batch."""
    embed = without_running_statistics(learner.model)
    parameters = {name.removeprefix("model."): p.detach() for name, p in learner.named_parameters()}
    scale = parameters.pop("log_scale").exp()
    x, query = (functional_call(embed, parameters, (part,)) for part in (one.support_x, one.query_x))
    y = nn.functional.one_hot(one.support_y, int(one.support_y.max()) + 1).double()
    if learner.head == "svm":
        weight = support_vectors(x, y, None, learner.svm_cost, 30).weight
    else:
        weight = x.T @ torch.inverse(x @ x.T + learner.ridge_penalty * torch.eye(len(x))) @ y
    scores = scale * query @ weight
    return scores, -scores.log_softmax(1)[torch.arange(len(scores)), one.query_y].mean()


def assert_differences(learner, tasks, samples=3):
    """Compare the loss, and the meta-gradient along random directions, with the naive loss and its differences."""
    loss, _ = meta_gradient(learner, collate_episodes(tasks))
    torch.testing.assert_close(
        loss, torch.stack([naive(learner, one)[1] for one in tasks]).mean(), rtol=1e-7, atol=1e-9
    )
    parameters = list(learner.parameters())
    for seed in range(samples):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=generator) for p in parameters]
        slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
            ends.append(float(torch.stack([naive(learner, one)[1] for one in tasks]).mean()))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=1e-6)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-7)
        assert abs(slope) > 1e-4


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("ways", "shots", "chunk"), [(5, 1, None), (3, 3, None), (3, 3, 1)])
def test_loss_scores_and_gradient_are_those_of_the_solution(head, ways, shots, chunk, model):
    learner = MetaOptNet(model, head=head, svm_cost=1.0, ridge_penalty=2.0, output_scale=3.0, task_chunk_size=chunk)
    tasks = [task(ways, shots, 7, seed) for seed in range(2)]
    assert_differences(learner, tasks)
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    for one, output in zip(tasks, outputs, strict=True):
        scores = naive(learner, one)[0]
        torch.testing.assert_close(output, scores, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(learner.adapt(one.support_x, one.support_y)(one.query_x), output)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_tasks_of_different_sizes_train_as_each_alone(head, batch_norm, model):
    if batch_norm:  # whose padding is cut off
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    learner = MetaOptNet(model, head=head, output_scale=3.0)
    assert_differences(learner, [task(3, shots, queries, shots) for shots, queries in ((1, 6), (3, 4), (2, 5))], 1)


@pytest.mark.parametrize("head", HEADS)
def test_a_task_with_fewer_classes_than_others_has_its_own_value_and_gradient(head, model):
    """All have 12 support examples, of 2, 3 and 6 classes."""
    tasks = [task(ways, 12 // ways, 6, ways) for ways in (2, 3, 6)]
    learner = MetaOptNet(model, head=head, output_scale=3.0)
    assert_differences(learner, tasks, 1)
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    assert (outputs[0, :, 2:] == -torch.inf).all()
    torch.testing.assert_close(outputs[0, :, :2], naive(learner, tasks[0])[0], rtol=1e-6, atol=1e-7)


def test_unsolved_machines_are_told_once(model):
    learner = MetaOptNet(model, svm_cost=10.0, solver_steps=1)
    batch = collate_episodes([task(3, 2, 5)])
    with pytest.warns(UserWarning, match="far from solved after solver_steps=1.*raise solver_steps"):
        learner.training_step(batch, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.training_step(batch, 0)
        MetaOptNet(model, svm_cost=10.0).training_step(batch, 0)
        MetaOptNet(model, head="ridge", solver_steps=1).training_step(batch, 0)


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_is_solved_in_single(head, model):
    learner, one = MetaOptNet(model.float(), head=head, output_scale=3.0), task(3, 2, 6)
    one = one._replace(support_x=one.support_x.float(), query_x=one.query_x.float())
    with torch.autocast("cpu", torch.bfloat16):
        scores = learner.adapt(one.support_x, one.support_y)(one.query_x)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, learner.adapt(one.support_x, one.support_y)(one.query_x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"head": "svc"}, "head='svc' is not one of"),
        ({"svm_cost": 0.0}, "svm_cost=0.0 must be a positive number"),
        ({"ridge_penalty": -1.0}, "ridge_penalty=-1.0 must be a positive number"),
        ({"output_scale": 0.0}, "output_scale=0.0 must be a positive number"),
        ({"solver_steps": 0}, "solver_steps=0 must be an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_named(options, error, model):
    with pytest.raises(ValueError, match=error):
        MetaOptNet(model, **options)


def test_real_targets_are_refused(model):
    one = task(3, 2, 5)
    with pytest.raises(ValueError, match=r"support_y is torch.float64 .*needs class labels 0, 1"):
        MetaOptNet(model, nn.MSELoss()).training_step(collate_episodes([one._replace(support_y=one.support_x)]), 0)
