"""VERSA against a plain loop over classes and draws, and against draws of the weights themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import VERSA, Episode, collate_episodes
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("float64")


def noise(*shape, **options):
    return torch.linspace(-1.5, 2, torch.Size(shape).numel()).cos().view(shape)


@pytest.fixture
def same_noise(monkeypatch):
    monkeypatch.setattr(torch, "randn", noise)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def task(ways, shots, queries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=generator)
    y, query_y = (torch.arange(n) % ways for n in (ways * shots, queries))
    x = torch.randn(ways * shots, 3, generator=generator)
    return Episode(x, y[order], torch.randn(queries, 3, generator=generator), query_y)


def classifier(learner, values, x, y):
    """The distribution of each class's weights and bias, class by class."""
    of_model, network = (
        {name.removeprefix(f"{part}."): p for name, p in values.items() if name.startswith(f"{part}.")}
        for part in ("model", "inference")
    )
    features = functional_call(learner.model, of_model, (x,))
    found = []
    for k in sorted(set(y.tolist())):
        own = [features[i] for i, label in enumerate(y) if label == k]
        pooled = sum(own) / len(own)
        output = functional_call(learner.inference, network, (pooled,))
        mean = output[:5] + torch.cat([pooled, torch.zeros(1)])
        found.append((mean, (output[5:] + learner.initial_log_std).exp()))
    return found


def naive_loss(learner, values, one):
    """Equation 4, query by query and draw by draw."""
    classes = classifier(learner, values, one.support_x, one.support_y)
    of_model = {name.removeprefix("model."): p for name, p in values.items() if name.startswith("model.")}
    features = functional_call(learner.model, of_model, (one.query_x,))
    drawn = noise(learner.num_samples, len(features), len(classes))
    losses = []
    for i, (feature, y) in enumerate(zip(features, one.query_y, strict=True)):
        extended = torch.cat([feature, torch.ones(1)])
        likelihoods = []
        for sample in range(learner.num_samples):
            scores = [
                extended @ mean + ((extended * std) ** 2).sum().sqrt() * drawn[sample, i, k]
                for k, (mean, std) in enumerate(classes)
            ]
            likelihoods.append(torch.stack(scores).softmax(0)[y])
        losses.append(-torch.stack(likelihoods).mean().log())
    return torch.stack(losses).mean()


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("chunk", [None, 1])
def test_loss_and_gradient_are_the_papers(model, chunk):
    learner = VERSA(model, num_samples=3, initial_log_std=-1.0, task_chunk_size=chunk)
    tasks = [task(3, shots, 5, shots) for shots in (2, 1, 2)]
    values = {name: p.detach().clone().requires_grad_() for name, p in learner.named_parameters()}
    expected = sum(naive_loss(learner, values, one) for one in tasks) / 3
    slopes = torch.autograd.grad(expected, list(values.values()))
    loss = learner.training_step(collate_episodes(tasks), 0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    found = {name: p.grad for name, p in learner.named_parameters()}
    assert_same(found, dict(zip(values, slopes, strict=True)))


def test_predictions_are_those_of_drawn_weights(model):
    """Local reparameterization does not change the mean of the class probabilities."""
    learner = VERSA(model, eval_num_samples=40_000, initial_log_std=-0.5).eval()
    one = task(3, 2, 4)
    found = learner.adapt(one.support_x, one.support_y).predict(one.query_x)
    with torch.no_grad():
        classes = classifier(learner, dict(learner.named_parameters()), one.support_x, one.support_y)
        means, stds = (torch.stack(values) for values in zip(*classes, strict=True))
        weights = means + stds * torch.randn(40_000, *means.shape)  # [draws, ways, features + 1]
        features = torch.cat([model(one.query_x), torch.ones(4, 1)], dim=1)
        probabilities = (features @ weights.mT).softmax(2)  # [draws, query, ways]
    torch.testing.assert_close(found.mean, probabilities.mean(0), rtol=0, atol=0.01)
    aleatoric = torch.special.entr(probabilities).sum(2).mean(0)
    torch.testing.assert_close(found.aleatoric, aleatoric, rtol=0, atol=0.01)
    epistemic = torch.special.entr(probabilities.mean(0)).sum(1) - aleatoric
    torch.testing.assert_close(found.epistemic, epistemic, rtol=0, atol=0.02)
    assert (epistemic > 0.03).all()


def test_a_class_does_not_depend_on_the_others(model):
    """The paper's context-independent inference."""
    learner, one = VERSA(model).eval(), task(4, 2, 3)
    state = learner.adapt(one.support_x, one.support_y).state
    kept = one.support_y < 2
    fewer = learner.adapt(one.support_x[kept], one.support_y[kept]).state
    torch.testing.assert_close(fewer.mean, state.mean[:2])
    torch.testing.assert_close(fewer.log_std, state.log_std[:2])


@pytest.mark.parametrize("ways", [2, 9])
def test_one_learner_takes_any_number_of_ways(model, ways):
    one = task(ways, 2, 6)
    assert VERSA(model).adapt(one.support_x, one.support_y).predict(one.query_x).mean.shape == (6, ways)


def test_a_class_without_examples_has_no_probability(model):
    tasks = [task(ways, 6 // ways, 6, ways) for ways in (2, 3)]
    learner = VERSA(model)
    learner.training_step(collate_episodes(tasks), 0).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    assert (outputs[0, :, 2] == -torch.inf).all()
    assert torch.isfinite(outputs[1]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_variance_the_gradient_is_finite(model, dtype):
    learner = VERSA(model, initial_log_std=-400.0).to(dtype)
    one = task(3, 2, 6)
    one = one._replace(support_x=one.support_x.to(dtype), query_x=one.query_x.to(dtype))
    learner.training_step(collate_episodes([one]), 0).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", ["single", "half"])
def test_half_precision_keeps_what_exceeds_it(dtype, weights):
    """Features of several hundreds, whose squares and products half precision cannot hold."""
    one = task(3, 2, 6)
    x, query_x = (300 * part.to(dtype) for part in (one.support_x, one.query_x))
    single = VERSA(nn.Linear(3, 3), eval_num_samples=2).float().eval()
    nn.init.eye_(single.model.weight)
    expected = single.adapt(x.float(), one.support_y)(query_x.float())
    if weights == "half":
        found = copy.deepcopy(single).to(dtype).adapt(x, one.support_y)(query_x)
    else:
        with torch.autocast("cpu", dtype):
            found = single.adapt(x.float(), one.support_y)(query_x.float())
    assert expected.abs().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1000.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be an integer of at least 1"),
        ({"eval_num_samples": 0}, "eval_num_samples=0 must be an integer of at least 1"),
        ({"hidden": 0}, "hidden=0 must be an integer of at least 1"),
        ({"num_features": 0}, "num_features=0 must be an integer of at least 1"),
        ({"loss_fn": nn.MSELoss()}, "VERSA needs class labels, and so nn.CrossEntropyLoss"),
        ({"model": nn.Conv2d(1, 2, 3)}, "Conv2d has no nn.Linear.*infers a weight for each feature; set num_features"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        VERSA(**{"model": nn.Linear(3, 2), **wrong})


def test_features_of_another_size_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten())
    with pytest.raises(ValueError, match="model gives 4 features, .* says 5: set num_features=4"):
        VERSA(model, num_features=5).adapt(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))
