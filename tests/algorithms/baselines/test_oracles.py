"""Baselines against numpy's closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import Episode, collate_episodes
from lightning_meta.algorithms.baselines import (
    LastTarget,
    LogisticRegression,
    MeanTarget,
    PooledModel,
    PooledRidge,
    RidgeClassifier,
    RidgeRegression,
)
from lightning_meta.inner.solvers.affine_ridge import affine_ridge
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


def numpy_ridge(x, y, penalty):
    """Weights with a penalty and an intercept without, by the normal equations of ``[x, 1]``."""
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalties = penalty * np.diag([*[1.0] * x.shape[1], 0.0])
    return lambda queries: (
        np.concatenate([queries, np.ones((len(queries), 1))], axis=1)
        @ np.linalg.solve(rows.T @ rows + penalties, rows.T @ y)
    )


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_constants(shape):
    x, y, query = torch.randn(5, 3), torch.randn(5, *shape), torch.randn(4, 3)
    for cls, expected in ((MeanTarget, y.mean(0)), (LastTarget, y[4])):
        torch.testing.assert_close(cls().adapt(x, y)(query), torch.stack([expected] * 4))
    mask = torch.tensor([True, False, True, True, False])
    batch = Episode(x, y, query, torch.randn(4, *shape), support_mask=mask)
    for cls, expected in ((MeanTarget, y[mask].mean(0)), (LastTarget, y[3])):
        found = cls().evaluate(collate_episodes([batch, batch])).outputs[1, -1]
        torch.testing.assert_close(found, torch.stack([expected] * 4))


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("support", "features"), [(20, 3), (4, 30), (1, 2)])
def test_ridge_regression(support, features, penalty):
    x, y, query = 5 + torch.randn(support, features), 7 + torch.randn(support, 2), torch.randn(6, features)
    expected = torch.from_numpy(numpy_ridge(x.numpy(), y.numpy(), penalty)(query.numpy()))
    found = RidgeRegression(penalty=penalty).adapt(x, y)(query)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_ridge_on_flattened_inputs_and_on_features():
    x, y, query = torch.randn(5, 2, 3), torch.randn(5, 2, 2), torch.randn(4, 2, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh())
    for learner, features in ((RidgeRegression(), nn.Flatten()), (RidgeRegression(model), model)):
        solved = numpy_ridge(features(x).detach().numpy(), y.flatten(1).numpy(), 1.0)
        expected = torch.from_numpy(solved(features(query).detach().numpy())).reshape(4, 2, 2)
        torch.testing.assert_close(learner.adapt(x, y)(query), expected)
    assert not any(p.requires_grad for p in model.parameters())
    whole, column = torch.randint(9, (5,)), torch.randn(5)  # inputs without features, and integers
    expected = torch.from_numpy(numpy_ridge(whole[:, None].double().numpy(), column.numpy(), 1.0)(np.ones((1, 1))))
    torch.testing.assert_close(RidgeRegression().adapt(whole, column)(torch.ones(1, dtype=torch.int64)), expected)


def test_ridge_classifier():
    x, y, query = torch.randn(8, 3), torch.arange(8) % 3, torch.randn(4, 3)
    expected = torch.from_numpy(numpy_ridge(x.numpy(), F.one_hot(y).double().numpy(), 0.7)(query.numpy()))
    torch.testing.assert_close(RidgeClassifier(penalty=0.7).adapt(x, y)(query), expected)


def test_logistic_regression_of_two_classes_is_the_binary_one():
    """Of two opposite columns ``± w / 2`` with a penalty λ each, w has a penalty of λ / 2."""
    x, y, query = torch.randn(12, 3), torch.arange(12) % 2, torch.randn(4, 3)
    center = x.mean(0)
    rows = torch.cat([x - center, torch.ones(12, 1)], dim=1)
    penalties = 0.4 / 2 * torch.tensor([1, 1, 1, 0.01])
    w = torch.zeros(4)
    for _ in range(30):  # Newton's method
        p = (rows @ w).sigmoid()
        curvature = rows.T @ (rows * (p * (1 - p))[:, None]) + penalties.diag()
        w = w - torch.linalg.solve(curvature, rows.T @ (p - y) + penalties * w)
    found = LogisticRegression(penalty=0.4).adapt(x, y).predict(query).mean[:, 1]
    torch.testing.assert_close(found, (torch.cat([query - center, torch.ones(4, 1)], dim=1) @ w).sigmoid())


def tasks(sizes=((4, 3), (6, 2), (5, 5)), shape=(1,)):
    return [
        Episode(3 + torch.randn(s, 3), torch.randn(s, *shape), 3 + torch.randn(q, 3), torch.randn(q, *shape))
        for s, q in sizes
    ]


@pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
def test_pooled_ridge_is_one_regression_on_all_examples(shape):
    own, more = tasks(shape=shape), tasks([(7, 4)], shape)
    x = torch.cat([part for task in own + more for part in (task.support_x, task.query_x)])
    y = torch.cat([part for task in own + more for part in (task.support_y, task.query_y)])
    learner = PooledRidge(penalty=0.6).fit_tasks(map(collate_episodes, (own, more)))
    query = torch.randn(4, 3)
    expected = torch.from_numpy(
        numpy_ridge(x.numpy(), y.flatten(1).numpy() if shape else y.numpy(), 0.6)(query.numpy())
    )
    task = learner.adapt(torch.randn(2, 3), torch.randn(2, *shape))
    torch.testing.assert_close(task(query), expected.reshape(4, *shape))
    learner.fit_tasks([collate_episodes(tasks(shape=shape))])  # starts anew, and leaves the task as it is
    torch.testing.assert_close(task(query), expected.reshape(4, *shape))
    assert not torch.allclose(learner.adapt(torch.randn(2, 3), torch.randn(2, *shape))(query), task(query))


def test_pooled_ridge_says_what_is_missing():
    one = tasks([(4, 3)])
    with pytest.raises(ValueError, match=r"not fitted: call fit_tasks\(batches\)"):
        PooledRidge().evaluate(collate_episodes(one))
    with pytest.raises(ValueError, match="batches is empty"):
        PooledRidge().fit_tasks([])
    learner = PooledRidge().fit_tasks([collate_episodes(one)])
    before = learner.weight
    with pytest.raises(ValueError, match="tasks of different shapes"):
        learner.fit_tasks(map(collate_episodes, (one, tasks([(4, 3)], (2,)))))
    assert learner.weight is before
    with pytest.raises(ValueError, match="would broadcast"):
        learner.evaluate(collate_episodes(tasks([(4, 3)], (2,))))
    with pytest.raises(TypeError, match="batch is a list, not an Episode"):
        learner.fit_tasks([[torch.zeros(1)]])


def test_pooled_model_has_the_gradient_of_the_mean_over_both_sets():
    model, own = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), tasks()
    found = meta_gradient(PooledModel(model, nn.MSELoss()), collate_episodes(own))
    losses = [F.mse_loss(model(torch.cat([t.support_x, t.query_x])), torch.cat([t.support_y, t.query_y])) for t in own]
    loss = sum(losses) / len(own)
    torch.testing.assert_close(found[0], loss.detach())
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    assert_same(found[1], dict(zip(dict(model.named_parameters()), slopes, strict=True)))
    task = PooledModel(model, nn.MSELoss()).adapt(own[0].support_x, own[0].support_y)
    torch.testing.assert_close(task(own[0].query_x), model(own[0].query_x).detach())
    assert task.state_dict().keys() == model.state_dict().keys()
    learner = PooledModel(model, nn.MSELoss())
    outputs = [learner._task_loss(dict(learner.named_parameters()), t)[1].outputs[0] for t in own]
    torch.testing.assert_close(outputs, [model(t.query_x) for t in own])


def test_a_pooled_model_is_where_other_learners_start():
    """Its model is the one it was given, trained."""
    model, own = nn.Linear(3, 1), collate_episodes(tasks())
    before = model.weight.detach().clone()
    pooled = PooledModel(model, nn.MSELoss())
    optimizer = pooled.configure_optimizers()
    pooled.training_step(own, 0).backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    x, y = torch.randn(5, 3), torch.randn(5, 1)
    expected = torch.from_numpy(numpy_ridge(model(x).detach().numpy(), y.numpy(), 1.0)(model(x).detach().numpy()))
    torch.testing.assert_close(RidgeRegression(model).adapt(x, y)(x), expected)


def test_ridge_of_half_precision_features_is_solved_in_single():
    x, y = torch.randn(12, 5), torch.randn(12, 2)
    weight, bias = affine_ridge(x.bfloat16(), y.bfloat16(), None, 0.3)
    exact = affine_ridge(x.bfloat16().double(), y.bfloat16().double(), None, 0.3)
    assert weight.dtype == bias.dtype == torch.bfloat16
    torch.testing.assert_close((weight, bias), tuple(part.bfloat16() for part in exact))
