"""Proto-MAML against a plain loop of autograd, finite differences, and prototypical networks."""

from __future__ import annotations

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_meta import Episode, EpisodicDataModule, ProtoMAML, ProtoNet, collate_episodes
from lightning_meta.inner import Adam, Checkpointed, FirstOrder
from tests.reference import RULES, NaiveRule, assert_same, meta_gradient, without_running_statistics

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))


def task(ways=3, shots=2, queries=5, seed=0):
    """A task whose classes have ``shots`` support examples each, in no order."""
    generator = torch.Generator().manual_seed(seed)
    y, query_y = (torch.arange(n) % ways for n in (ways * shots, queries))
    order = torch.randperm(ways * shots, generator=generator)
    x = torch.randn(ways * shots, 3, generator=generator)
    return Episode(x, y[order], torch.randn(queries, 3, generator=generator), query_y)


def naive_scores(model, parameters, task, lr=0.1, steps=2, first_order=False, adapted=None, rule="sgd"):
    """Section 3 of the paper class by class, and MAML's steps by autograd."""

    def embedded(parameters, x):
        return functional_call(model, parameters, (x,))

    names = list(parameters) if adapted is None else adapted
    features = embedded(parameters, task.support_x)
    prototypes = [features[task.support_y == k].mean(0) for k in range(int(task.support_y.max()) + 1)]
    weight = torch.stack([2 * c for c in prototypes])
    bias = torch.stack([-(c @ c) for c in prototypes])
    # Copies, because an inner step takes the head for given: its gradient does not flow through the prototypes.
    values, update = [*(parameters[name].clone() for name in names), weight, bias], NaiveRule(rule)
    for _ in range(steps):
        body = {**parameters, **dict(zip(names, values[:-2], strict=True))}
        loss = F.cross_entropy(embedded(body, task.support_x) @ values[-2].T + values[-1], task.support_y)
        slopes = torch.autograd.grad(loss, values, create_graph=not first_order, retain_graph=True)
        slopes = [slope.detach() for slope in slopes] if first_order else slopes
        values = update(values, slopes, lr)
    body = {**parameters, **dict(zip(names, values[:-2], strict=True))}
    return embedded(body, task.query_x) @ values[-2].T + values[-1]


def naive_gradient(model, tasks, **options):
    model = without_running_statistics(model)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    losses = [F.cross_entropy(naive_scores(model, parameters, one, **options), one.query_y) for one in tasks]
    loss = sum(losses) / len(tasks)
    slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return loss.detach(), dict(zip(parameters, slopes, strict=True))


def assert_naive(learner, tasks, **options):
    found, expected = meta_gradient(learner, collate_episodes(tasks)), naive_gradient(learner.model, tasks, **options)
    torch.testing.assert_close(found[0], expected[0])
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("chunk", [None, 2, 1])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    ("adapt", "adapted"), [("all", None), ("head", []), (["2.*", "0.bias"], ["0.bias", "2.weight", "2.bias"])]
)
def test_the_meta_gradient_is_that_of_a_plain_loop(model, adapt, adapted, first_order, chunk):
    learner = ProtoMAML(model, inner_lr=0.1, inner_steps=2, adapt=adapt, first_order=first_order, task_chunk_size=chunk)
    assert_naive(learner, [task(seed=seed) for seed in range(3)], adapted=adapted, first_order=first_order)


@pytest.mark.parametrize("rule", RULES)
def test_every_update_rule_takes_the_steps_of_a_plain_loop(model, rule):
    learner = ProtoMAML(model, inner_lr=0.05, inner_steps=3, inner_optimizer=RULES[rule])
    assert_naive(learner, [task(), task(seed=1)], rule=rule, lr=0.05, steps=3)


def test_checkpointed_steps_have_the_same_meta_gradient(model):
    tasks = [task(seed=seed) for seed in range(3)]
    learner = ProtoMAML(model, inner_lr=0.1, inner_steps=5, meta_gradient=Checkpointed())
    assert_naive(learner, tasks, steps=5)
    assert_naive(ProtoMAML(model, inner_lr=0.1, inner_steps=2, meta_gradient=FirstOrder()), tasks, first_order=True)


def test_the_meta_gradient_agrees_with_finite_differences(model):
    tasks = [task(seed=seed) for seed in range(2)]
    batch, direction = collate_episodes(tasks), {name: torch.randn_like(p) for name, p in model.named_parameters()}
    learner = ProtoMAML(model, inner_lr=0.1, inner_steps=3)
    _, gradient = meta_gradient(learner, batch)

    def loss_at(move):
        other = ProtoMAML(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)), inner_lr=0.1, inner_steps=3)
        other.model.load_state_dict({name: p + move * direction[name] for name, p in model.state_dict().items()})
        return other.evaluate(batch).loss.mean()

    slope = sum((gradient[name] * value).sum() for name, value in direction.items())
    torch.testing.assert_close(slope, (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ways", [2, 3, 20])
def test_before_any_step_its_probabilities_are_those_of_a_prototypical_network(model, ways):
    one = task(ways, 2, 7)
    before = ProtoMAML(model, inner_lr=0.1, inner_steps=2).evaluate(collate_episodes([one]), record=(0, 2)).outputs[0]
    expected = ProtoNet(model).adapt(one.support_x, one.support_y).predict(one.query_x).mean
    torch.testing.assert_close(before[0].softmax(1), expected)
    assert not torch.allclose(before[1].softmax(1), expected)


def test_steps_of_evaluation_may_differ_from_those_of_training(model):
    one, parameters = task(), dict(model.named_parameters())
    learner = ProtoMAML(model, inner_lr=0.1, inner_steps=2, eval_inner_steps=5)
    for steps, adapted in ((5, learner.adapt(*one[:2])), (1, learner.adapt(*one[:2], steps=1))):
        expected = naive_scores(model, parameters, one, steps=steps)
        torch.testing.assert_close(adapted(one.query_x), expected.detach())
    torch.testing.assert_close(
        learner.evaluate(collate_episodes([one])).outputs[0, -1], learner.adapt(*one[:2])(one[2])
    )


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("chunk", [None, 1])
def test_tasks_of_other_sizes_and_ways_train_as_each_alone(model, chunk, first_order):
    learner = ProtoMAML(model, inner_lr=0.1, inner_steps=2, task_chunk_size=chunk, first_order=first_order)
    assert_naive(learner, [task(2, 3, 4), task(3, 1, 7, 1), task(6, 2, 5, 2)], first_order=first_order)


def test_batch_normalization_trains_as_each_task_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert_naive(ProtoMAML(model, inner_lr=0.1, inner_steps=2), [task(2, 3, 4), task(3, 1, 7, 1), task(6, 2, 5, 2)])


def test_classes_that_a_task_lacks_get_no_score(model):
    tasks = [task(ways, 12 // ways, 6, ways) for ways in (2, 6)]
    outputs = ProtoMAML(model, inner_lr=0.1, inner_steps=2).evaluate(collate_episodes(tasks)).outputs[:, -1]
    assert (outputs[0, :, 2:] == -torch.inf).all()
    expected = naive_scores(model, dict(model.named_parameters()), tasks[0])
    torch.testing.assert_close(outputs[0, :, :2], expected.detach())


def test_a_head_on_a_model_without_parameters_adapts():
    one = task(4, 3, 6)
    learner = ProtoMAML(nn.Flatten(), inner_lr=0.1, inner_steps=2, adapt="head")
    one.support_x.requires_grad_()  # for the naive loop's head
    expected = naive_scores(nn.Flatten(), {}, one, adapted=[])
    one.support_x.requires_grad_(False)
    torch.testing.assert_close(learner.adapt(*one[:2])(one.query_x), expected.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapt": "body"}, 'adapt=\'body\' is not "all", "head" or a list'),
        ({"adapt": ["fc.*"]}, "the pattern 'fc.*' matches no trainable parameter"),
        (
            {"compile": True, "meta_gradient": Checkpointed()},
            "compile=True does not support meta_gradient",
        ),
        ({"first_order": True, "meta_gradient": FirstOrder()}, "meta_gradient=.* replaces first_order"),
        ({"inner_steps": 0}, "inner_steps=0 must be an integer"),
    ],
)
def test_arguments_that_cannot_be_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        ProtoMAML(model, **options)


def test_features_of_another_form_are_refused():
    one = task()
    with pytest.raises(ValueError, match=r"features of shape \(6, 1, 3\).*ProtoMAML needs \[examples, features\]"):
        ProtoMAML(nn.Unflatten(1, (1, 3)), adapt="head").adapt(*one[:2])


def test_a_learner_trained_five_way_is_evaluated_twenty_way(tmp_path):
    torch.set_default_dtype(torch.float32)  # the fixture restores it
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24).repeat(12)
    centers = 3 * torch.randn(24, 3, generator=generator)
    x = centers[labels] + 0.3 * torch.randn(len(labels), 3, generator=generator)
    examples = torch.utils.data.TensorDataset(x, labels)
    options = {"shots": 2, "query_shots": 3, "tasks_per_batch": 4, "train_tasks": 80, "test_tasks": 20}
    five, twenty = (EpisodicDataModule(examples, None, examples, ways=ways, **options) for ways in (5, 20))
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 8))
    learner = ProtoMAML(model, inner_lr=0.02, inner_steps=2, inner_optimizer=Adam())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=3, **quiet)
    trainer.fit(learner, five)
    loaded = ProtoMAML.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    (of_five,) = trainer.test(loaded, five, verbose=False)
    (of_twenty,) = trainer.test(loaded, twenty, verbose=False)
    assert of_five["test/acc"] > of_twenty["test/acc"] > 0.4
    assert torch.cat(trainer.predict(loaded, twenty)).shape == (20, 60, 20)


def test_in_mixed_precision_small_steps_of_the_head_are_not_rounded_away():
    model = nn.Linear(3, 4).float()
    still, moving = ProtoMAML(model, inner_lr=1e-12), ProtoMAML(model, inner_lr=5e-5, inner_steps=100, adapt="head")
    x, y = torch.randn(12, 3).float(), torch.arange(12) % 3

    def moved():
        end, start = (learner.adapt(x, y).state.adapted["head.weight"] for learner in (moving, still))
        return end - start

    with torch.autocast("cpu", torch.bfloat16):
        mixed = moved()
    assert (mixed - moved()).norm() < 0.1 * moved().norm()
    assert ProtoMAML(model.bfloat16()).adapt(x.bfloat16(), y)(x.bfloat16()).isfinite().all()
