"""Relation networks against a plain loop over the paper's equations, pair by pair."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import Conv4, Episode, RelationNet, collate_episodes
from lightning_meta.models import (
    Conv4Maps,
    RelationConv,
    RelationMLP,
    ResNet12,
    TextTransformer,
    VisionTransformer,
    WideResNet,
)
from tests.reference import assert_same, without_running_statistics

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def task(ways, shots, queries, seed=0, shape=(3,)):
    """A task whose classes have ``shots`` support examples each, in no order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=generator)
    x, query_x = (torch.randn(n, *shape, generator=generator) for n in (ways * shots, queries))
    return Episode(x, (torch.arange(ways * shots) % ways)[order], query_x, torch.arange(queries) % ways)


def naive_scores(learner, parameters, task):
    """Equation 1 with sums over shots: relation scores ``[query, classes]`` of the classes in the support set.

    All pairs go through the relation module together, as batch normalization of pairs asks for.
    """
    of_model, of_relation = (
        {k.removeprefix(f"{part}."): v for k, v in parameters.items() if k.startswith(f"{part}.")}
        for part in ("model", "relation")
    )
    plain = without_running_statistics(learner.model)
    support = functional_call(plain, of_model, (task.support_x,))
    query = functional_call(plain, of_model, (task.query_x,))
    classes = sorted(set(task.support_y.tolist()))
    sums = [sum(support[i] for i, y in enumerate(task.support_y.tolist()) if y == k) for k in classes]
    pairs = torch.stack([torch.cat([c, f]) for f in query for c in sums])
    scores = functional_call(without_running_statistics(learner.relation), of_relation, (pairs,))
    return torch.sigmoid(scores.reshape(len(query), len(classes))), classes


def naive_loss(learner, parameters, task):
    """Equation 2, as a mean."""
    scores, classes = naive_scores(learner, parameters, task)
    errors = [
        (scores[j, column] - (1.0 if y == k else 0.0)) ** 2
        for j, y in enumerate(task.query_y.tolist())
        for column, k in enumerate(classes)
    ]
    return sum(errors) / len(errors)


def assert_naive(learner, tasks, loss_of=naive_loss):
    parameters = {name: p.detach().clone().requires_grad_() for name, p in learner.named_parameters()}
    expected = sum(loss_of(learner, parameters, one) for one in tasks) / len(tasks)
    slopes = dict(zip(parameters, torch.autograd.grad(expected, list(parameters.values())), strict=True))
    learner.zero_grad()
    loss = learner.training_step(collate_episodes(tasks), 0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    assert_same({name: p.grad for name, p in learner.named_parameters()}, slopes)


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (5, 3)])
def test_loss_scores_and_gradient_are_the_papers(ways, shots, chunk, model):
    learner = RelationNet(model, task_chunk_size=chunk)
    tasks = [task(ways, shots, 6, seed) for seed in range(3)]
    assert_naive(learner, tasks)
    for one in tasks:
        scores = naive_scores(learner, dict(learner.named_parameters()), one)[0].detach()
        adapted = learner.adapt(one.support_x, one.support_y)
        torch.testing.assert_close(adapted(one.query_x), scores.log())
        torch.testing.assert_close(adapted.predict(one.query_x).mean, scores / scores.sum(1, keepdim=True))


def test_pairs_of_maps_are_the_papers():
    """The default network has batch normalization, over all pairs of a task."""
    learner = RelationNet(nn.Conv2d(1, 3, kernel_size=3, padding=1))
    assert isinstance(learner.relation, RelationConv)
    tasks = [task(3, shots, 4, shots, (1, 8, 8)) for shots in (2, 1)]
    assert_naive(learner, tasks)


def test_a_relation_module_with_torchs_batch_normalization(model):
    relation = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
    learner = RelationNet(model, relation=relation)
    before = relation[1].running_mean.clone()
    assert_naive(learner, [task(3, 2, 5), task(3, 2, 5, 1)])
    assert torch.equal(relation[1].running_mean, before)


@pytest.mark.parametrize("mode", ["new", "train", "eval"])
def test_a_relation_module_with_torchs_instance_normalization(mode):
    """Each pair is normalized by its own statistics, whatever the mode."""
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    relation = nn.Sequential(nn.Conv2d(6, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))
    learner = RelationNet(nn.Conv2d(1, 3, 3), relation=relation.eval())
    learner = learner if mode == "new" else learner.train(mode == "train")
    before = copy.deepcopy(relation.state_dict())
    tasks = [task(3, 2, 4, seed, (1, 8, 8)) for seed in range(2)]
    assert_naive(learner, tasks)
    scores = naive_scores(learner, dict(learner.named_parameters()), tasks[0])[0].detach()
    torch.testing.assert_close(learner.adapt(*tasks[0][:2])(tasks[0].query_x), scores.log())
    assert_same(relation.state_dict(), before)


def test_tasks_of_different_sizes_and_classes_train_as_each_alone(model):
    learner, tasks = RelationNet(model), [task(2, 6, 4), task(3, 1, 7, 1), task(6, 2, 5, 2)]
    assert_naive(learner, tasks)
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    assert (outputs[0, :4, 2:] == -torch.inf).all()


def test_training_on_the_loss_of_the_outputs(model):
    def cross_entropy(learner, parameters, task):
        scores, _ = naive_scores(learner, parameters, task)
        shares = scores / scores.sum(1, keepdim=True)
        return -torch.stack([shares[j, y].log() for j, y in enumerate(task.query_y.tolist())]).mean()

    learner, tasks = RelationNet(model, meta_loss="loss_fn"), [task(3, 2, 5), task(3, 2, 5, 1)]
    assert_naive(learner, tasks, cross_entropy)
    batch, parameters = collate_episodes(tasks), dict(learner.named_parameters())
    by_task = torch.stack([cross_entropy(learner, parameters, one).detach() for one in tasks])
    torch.testing.assert_close(RelationNet(model, relation=learner.relation).evaluate(batch).loss, by_task)


def test_the_default_network_suits_the_models_last_layer(model):
    assert isinstance(RelationNet(model).relation, RelationMLP)
    assert isinstance(RelationNet(Conv4(16)).relation, RelationMLP)
    assert isinstance(RelationNet(Conv4Maps()).relation, RelationConv)
    assert isinstance(RelationNet(TextTransformer(num_classes=None, embedding_size=8)).relation, RelationMLP)
    with pytest.raises(ValueError, match="relation=None, and Flatten has no nn.Linear or nn.Conv2d"):
        RelationNet(nn.Flatten())


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_of_the_relation_module_draws(rate, model):
    learner = RelationNet(model, relation=nn.Sequential(nn.Dropout(rate), nn.Linear(8, 1)))
    assert learner._traits().is_stochastic == (rate > 0)


@pytest.mark.parametrize(
    "model",
    [
        ResNet12(num_classes=None, widths=(2, 2, 2, 2)),
        WideResNet(num_classes=None, depth=10, width_factor=1),
        VisionTransformer(num_classes=None, embedding_size=8),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_vectors_of_a_size_that_no_layer_tells_are_refused(model):
    with pytest.raises(ValueError, match=r"relation=None, and .* gives vectors .*set relation, such as RelationMLP"):
        RelationNet(model)


def test_what_cannot_be_compared_is_refused(model):
    one = task(3, 2, 5)
    with pytest.raises(ValueError, match=r"RelationMLP takes pairs \[pairs, 10\], got \(15, 8\): set relation"):
        RelationNet(model, relation=RelationMLP(5)).training_step(collate_episodes([one]), 0)
    with pytest.raises(ValueError, match=r"relation gives \(15, 2\) for 15 pairs: it must give one score"):
        RelationNet(model, relation=nn.Linear(8, 2)).training_step(collate_episodes([one]), 0)
    with pytest.raises(ValueError, match="relation module has batch normalization"):
        RelationNet(nn.Conv2d(1, 2, 3), batch_statistics="running")
    tracking = nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="relation module has .*running statistics"):
        RelationNet(nn.Conv2d(1, 2, 3), relation=tracking, batch_statistics="running")
    with pytest.raises(ValueError, match=r"meta_loss='mse' is not one of \['regression', 'loss_fn'\]"):
        RelationNet(model, meta_loss="mse")
    small = task(3, 2, 5, shape=(1, 5, 5))
    with pytest.raises(ValueError, match="at least 4"):
        RelationNet(nn.Conv2d(1, 2, 3)).training_step(collate_episodes([small]), 0)
    with pytest.raises(TypeError, match="relation="):
        RelationNet(model, relation="MLP")
