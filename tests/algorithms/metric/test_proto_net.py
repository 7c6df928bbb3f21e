"""Prototypical networks against a plain loop over the paper's equations."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import Episode, EpisodicDataModule, ProtoNet, collate_episodes
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


def naive(model, parameters, task):
    """Equations 1 and 2, class by class and query by query: the scores, and the negative log-likelihood."""
    support = functional_call(model, parameters, (task.support_x,))
    query = functional_call(model, parameters, (task.query_x,))
    classes = sorted(set(task.support_y.tolist()))
    prototypes = [support[[i for i, y in enumerate(task.support_y) if y == k]].mean(0) for k in classes]
    scores = torch.stack([torch.stack([-((f - c) ** 2).sum() for c in prototypes]) for f in query])
    losses = [
        -(scores[j, classes.index(int(y))] - torch.log(sum(torch.exp(score) for score in scores[j])))
        for j, y in enumerate(task.query_y)
    ]
    return scores, sum(losses) / len(losses)


def naive_gradient(model, tasks):
    model = without_running_statistics(model)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = sum(naive(model, parameters, task)[1] for task in tasks) / len(tasks)
    slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return loss.detach(), dict(zip(parameters, slopes, strict=True))


def assert_naive(learner, tasks):
    found, expected = meta_gradient(learner, collate_episodes(tasks)), naive_gradient(learner.model, tasks)
    torch.testing.assert_close(found[0], expected[0])
    assert all(torch.isfinite(slope).all() for slope in found[1].values())
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("chunk", [None, 2, 1])
@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (5, 1), (5, 5), (20, 2)])
def test_loss_scores_and_gradient_are_the_papers(ways, shots, chunk, model):
    learner = ProtoNet(model, task_chunk_size=chunk)
    tasks = [task(ways, shots, 7, seed) for seed in range(3)]
    assert_naive(learner, tasks)
    parameters = dict(model.named_parameters())
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    for one, output in zip(tasks, outputs, strict=True):
        scores = naive(model, parameters, one)[0].detach()
        torch.testing.assert_close(output, scores)
        adapted = learner.adapt(one.support_x, one.support_y)
        torch.testing.assert_close(adapted(one.query_x), scores)
        torch.testing.assert_close(adapted.predict(one.query_x).mean, scores.softmax(1))


def test_classes_may_have_different_numbers_of_examples(model):
    one = task(3, 4, 6)
    uneven = one._replace(support_y=torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2]))
    assert_naive(ProtoNet(model), [uneven, one])


@pytest.mark.parametrize(
    "model_of", [lambda: nn.Linear(3, 4), lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))]
)
def test_tasks_of_different_query_sizes_train_as_each_alone(model_of):
    assert_naive(ProtoNet(model_of()), [task(3, 2, queries, queries) for queries in (4, 7, 5)])


@pytest.mark.parametrize("chunk", [None, 1])
def test_tasks_of_different_support_sizes_train_as_each_alone(chunk, model):
    assert_naive(ProtoNet(model, task_chunk_size=chunk), [task(3, shots, 6, shots) for shots in (1, 3, 2)])


def test_tasks_of_different_sizes_train_as_each_alone_where_padding_is_cut_off():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert_naive(ProtoNet(model), [task(3, shots, 6, shots) for shots in (1, 3, 2)])


def test_a_task_with_fewer_classes_than_others_has_its_own_value_and_gradient(model):
    """All have 12 support examples, of 2, 3 and 6 classes."""
    tasks = [task(ways, 12 // ways, 6, ways) for ways in (2, 3, 6)]
    learner = ProtoNet(model)
    assert_naive(learner, tasks)
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    assert (outputs[0, :, 2:] == -torch.inf).all()
    torch.testing.assert_close(outputs[0, :, :2], naive(model, dict(model.named_parameters()), tasks[0])[0].detach())
    metrics = learner.task_metrics(outputs, torch.stack([one.query_y for one in tasks]), None)
    assert all(torch.isfinite(value).all() for value in metrics.values())


def test_labels_that_the_support_lacks_are_refused(model):
    one = task(3, 2, 5)
    beyond = one._replace(query_y=torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="query_y holds the label 3 .*support set"):
        ProtoNet(model).training_step(collate_episodes([beyond]), 0)
    real = one._replace(support_y=one.support_y.double())
    with pytest.raises(ValueError, match="support_y is torch.float64 .*needs class labels 0, 1"):
        ProtoNet(model).training_step(collate_episodes([real]), 0)
    with pytest.raises(ValueError, match="smallest value -1"):
        ProtoNet(model).adapt(one.support_x, one.support_y - 1)


def test_a_label_between_those_of_the_support_is_no_score(model):
    """A class without support examples has no prototype: its queries have an infinite loss, which is told."""
    one = task(3, 2, 6)
    gap = one._replace(support_y=torch.where(one.support_y == 1, 0, one.support_y))
    with pytest.raises((ValueError, FloatingPointError)):
        ProtoNet(model).training_step(collate_episodes([gap]), 0)


def test_inner_steps_are_refused(model):
    one = task(3, 2, 5)
    with pytest.raises(ValueError, match="steps=2, but ProtoNet takes no inner steps"):
        ProtoNet(model).adapt(one.support_x, one.support_y, steps=2)
    with pytest.raises(TypeError, match="inner_lr"):
        ProtoNet(model, inner_lr=0.1)


def test_a_learner_trained_five_way_is_evaluated_twenty_way(tmp_path):
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(24, 3, generator=generator)
    labels = torch.arange(24).repeat(12)
    x = centers[labels] + 0.3 * torch.randn(len(labels), 3, generator=generator)
    examples = torch.utils.data.TensorDataset(x, labels)
    options = {"shots": 2, "query_shots": 3, "tasks_per_batch": 4, "train_tasks": 80, "test_tasks": 20}
    five, twenty = (EpisodicDataModule(examples, None, examples, ways=ways, **options) for ways in (5, 20))
    learner = ProtoNet(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 8)))
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, five)
    (of_five,) = trainer.test(learner, five, verbose=False)
    (of_twenty,) = trainer.test(learner, twenty, verbose=False)
    assert of_five["test/acc"] > of_twenty["test/acc"] > 0.4
    assert torch.cat(trainer.predict(learner, twenty)).shape == (20, 60, 20)


def test_queries_are_apart_with_the_supports_statistics():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    one = task(3, 2, 6)
    apart, together = (ProtoNet(model, batch_statistics=choice).eval() for choice in ("support", "batch"))
    batch = collate_episodes([one])
    found = apart.evaluate(batch).outputs[0, -1]
    plain, parameters = without_running_statistics(model), dict(model.named_parameters())
    with torch.no_grad():
        support = functional_call(plain, parameters, (one.support_x,))
        prototypes = torch.stack([support[one.support_y == k].mean(0) for k in range(3)])
        for query, scores in zip(one.query_x, found, strict=True):
            feature = functional_call(plain, parameters, (torch.cat([one.support_x, query[None]]),))[-1]
            torch.testing.assert_close(scores, -(feature - prototypes).square().sum(1))
    torch.testing.assert_close(apart.adapt(one.support_x, one.support_y)(one.query_x), found)
    assert not torch.allclose(together.evaluate(batch).outputs[0, -1], found)
    assert_naive(apart.train(), [one, task(3, 2, 6, 1)])  # training is transductive


def test_the_default_scale_changes_no_bit(model):
    one, learner = task(3, 2, 6), ProtoNet(model)
    with torch.no_grad():
        support, query = model(one.support_x), model(one.query_x)
        one_hot = torch.nn.functional.one_hot(one.support_y).double()
        prototypes = one_hot.mT @ support / one_hot.sum(0)[:, None]
        expected = -(query[:, None] - prototypes).square().sum(2)
    assert torch.equal(learner.adapt(one.support_x, one.support_y)(one.query_x), expected)
    assert {name.partition(".")[0] for name, _ in learner.named_parameters()} == {"model"}


def test_a_scale_multiplies_squared_distances(model):
    """As if features were longer by its square root."""
    one, longer = task(3, 2, 6), nn.Sequential(model, nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        longer[1].weight.copy_(0.3**0.5 * torch.eye(4))
    found = ProtoNet(model, scale=0.3).adapt(one.support_x, one.support_y)(one.query_x)
    torch.testing.assert_close(found, naive(longer, dict(longer.named_parameters()), one)[0].detach())


def test_a_learned_scale_has_the_slope_of_finite_differences(model):
    batch = collate_episodes([task(3, 2, 6, seed) for seed in range(3)])
    learner = ProtoNet(model, scale=0.7, learn_scale=True)
    torch.testing.assert_close(
        learner.training_step(batch, 0).detach(), ProtoNet(model, scale=0.7).training_step(batch, 0).detach()
    )
    meta_gradient(learner, batch)
    width, losses = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            learner.log_scale += sign * width
        losses.append(learner.training_step(batch, 0).detach())
        with torch.no_grad():
            learner.log_scale -= sign * width
    torch.testing.assert_close(learner.log_scale.grad, (losses[0] - losses[1]) / (2 * width), rtol=1e-7, atol=1e-9)


def test_a_scale_that_is_not_positive_is_refused(model):
    with pytest.raises(ValueError, match="scale=0 must be a positive number"):
        ProtoNet(model, scale=0)
