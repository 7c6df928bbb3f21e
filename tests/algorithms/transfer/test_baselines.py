"""Baseline and Baseline++ against plain torch: training as a classifier, and the head that is fitted to a task."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import Baseline, BaselinePlusPlus, Episode, collate_episodes
from lightning_meta.inner import Chain, Momentum, WeightDecay

pytestmark = pytest.mark.usefixtures("float64")
CLASSES = 7


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def joint(size=20, seed=0):
    """A batch of examples of all classes, as data modules serve it."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(size, 3, generator=generator), torch.randint(CLASSES, (size,), generator=generator)
    return Episode(torch.zeros(1, 3), torch.tensor([CLASSES - 1]), x, y)


def task(ways, shots, queries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=generator)
    x = torch.randn(ways * shots, 3, generator=generator)
    labels = torch.arange(ways * shots) % ways
    return Episode(x, labels[order], torch.randn(queries, 3, generator=generator), torch.arange(queries) % ways)


def scores_of(learner, head, features):
    """One example and one class at a time."""
    if isinstance(learner, Baseline):
        weight, bias = head
        return torch.stack([torch.stack([w @ f + b for w, b in zip(weight, bias, strict=True)]) for f in features])
    (weight,) = head
    return torch.stack(
        [torch.stack([learner.scale * F.cosine_similarity(w, f, dim=0) for w in weight]) for f in features]
    )


LEARNERS = pytest.mark.parametrize("cls", [Baseline, BaselinePlusPlus])


@LEARNERS
@pytest.mark.parametrize("batches", [1, 3])
def test_training_is_that_of_a_plain_classifier(cls, batches, model):
    learner = cls(model, num_train_classes=CLASSES)
    parts = [joint(seed=seed) for seed in range(batches)]
    head = [p for name, p in learner.named_parameters() if name.startswith("classifier.")]
    assert len(head) == (2 if cls is Baseline else 1)
    losses = [F.cross_entropy(scores_of(learner, head, model(part.query_x)), part.query_y) for part in parts]
    expected = sum(losses) / batches
    slopes = torch.autograd.grad(expected, list(learner.parameters()))
    loss = learner.training_step(collate_episodes(parts), 0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    for parameter, slope in zip(learner.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)


def fitted(learner, one, rule):
    """The head by an optimizer of torch, from the learner's start; features do not change."""
    ways, features = int(one.support_y.max()) + 1, learner.model(one.support_x).detach()
    if isinstance(learner, Baseline):
        head = [torch.zeros(ways, 4, requires_grad=True), torch.zeros(ways, requires_grad=True)]
    else:
        unit = torch.stack([f / f.norm() for f in features])
        head = [torch.stack([unit[one.support_y == k].mean(0) for k in range(ways)]).requires_grad_()]
    optimizer, losses = rule(head), []
    for _ in range(learner.inner_steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(scores_of(learner, head, features), one.support_y)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    return [p.detach() for p in head], torch.stack(losses)


@LEARNERS
@pytest.mark.parametrize("with_decay", [False, True])
def test_a_tasks_head_is_the_one_of_a_plain_loop(cls, with_decay, model):
    options = {"inner_lr": 0.3, "inner_steps": 5, "num_train_classes": CLASSES}
    inner = Chain([WeightDecay(0.05)], Momentum(0.8)) if with_decay else "sgd"
    learner = cls(model, inner_optimizer=inner, **options)
    decay = {"momentum": 0.8, "weight_decay": 0.05} if with_decay else {}
    tasks = [task(5, 2, 8), task(5, 2, 8, 1)]
    result = learner.evaluate(collate_episodes(tasks))
    for number, one in enumerate(tasks):
        head, losses = fitted(learner, one, lambda parameters: torch.optim.SGD(parameters, 0.3, **decay))
        expected = scores_of(learner, head, model(one.query_x)).detach()
        torch.testing.assert_close(learner.adapt(one.support_x, one.support_y)(one.query_x), expected)
        torch.testing.assert_close(result.outputs[number, -1], expected)
        torch.testing.assert_close(result.support_losses[number], losses)
        torch.testing.assert_close(result.loss[number], F.cross_entropy(expected, one.query_y))


@LEARNERS
def test_padding_and_absent_classes_do_not_change_a_task(cls, model):
    learner = cls(model, num_train_classes=CLASSES, inner_steps=4, inner_lr=0.2)
    tasks = [task(2, 6, 4), task(3, 1, 7, 1), task(6, 2, 5, 2)]
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    for one, output in zip(tasks, outputs, strict=True):
        alone = learner.adapt(one.support_x, one.support_y)(one.query_x)
        torch.testing.assert_close(output[: len(alone), : alone.shape[1]], alone)
        assert (output[: len(alone), alone.shape[1] :] == -torch.inf).all()


def test_a_learned_scale_of_cosines_is_trained(model):
    learner, one = BaselinePlusPlus(model, num_train_classes=CLASSES, scale=4.0, learn_scale=True), joint()
    learner.training_step(collate_episodes([one]), 0).backward()
    log_scale = torch.tensor(4.0).log().requires_grad_()
    cosines = F.normalize(model(one.query_x), dim=1) @ F.normalize(learner.classifier.weight, dim=1).T
    (slope,) = torch.autograd.grad(F.cross_entropy(log_scale.exp() * cosines, one.query_y), log_scale)
    torch.testing.assert_close(learner.log_scale.grad, slope)


def test_a_learner_without_training_classes_adapts(model):
    one = task(3, 2, 5)
    trained, bare = Baseline(model, num_train_classes=CLASSES), Baseline(model)
    found = [learner.adapt(one.support_x, one.support_y)(one.query_x) for learner in (trained, bare)]
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="num_train_classes=None of Baseline, but training batches have 7 classes"):
        bare.training_step(collate_episodes([joint()]), 0)


def test_the_number_of_features_is_told_or_given():
    with pytest.raises(ValueError, match=r"Flatten has no nn.Linear.*a classifier of features; set num_features"):
        Baseline(nn.Flatten(), num_train_classes=CLASSES)
    learner = Baseline(nn.Flatten(), num_train_classes=CLASSES, num_features=3)
    assert torch.isfinite(learner.training_step(collate_episodes([joint()]), 0))
    with pytest.raises(ValueError, match="model gives 3 features.*set num_features=3"):
        Baseline(nn.Flatten(), num_train_classes=CLASSES, num_features=5).training_step(collate_episodes([joint()]), 0)


@LEARNERS
def test_in_mixed_precision_small_steps_of_a_head_are_not_rounded_away(cls):
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).float()
    learner = cls(model, inner_lr=0.002 if cls is Baseline else 0.0002, inner_steps=200)
    one = task(3, 4, 5)
    x, y = one.support_x.float(), one.support_y
    with torch.autocast("cpu", torch.bfloat16):
        mixed = learner.adapt(x, y).state.head["weight"]
    start = cls(model, inner_lr=1e-9, inner_steps=1).adapt(x, y).state.head["weight"]
    whole = learner.adapt(x, y).state.head["weight"]
    assert (mixed - whole).norm() < 0.08 * (whole - start).norm()
    half = cls(model.bfloat16(), inner_steps=3)
    assert half.adapt(x.bfloat16(), y)(x.bfloat16()).isfinite().all()
