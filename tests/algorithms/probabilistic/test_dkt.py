"""Deep kernel transfer against torch's multivariate Gaussian and conditioning by explicit inverses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from lightning_meta import DKT, Episode, collate_episodes
from lightning_meta.algorithms.probabilistic import dkt
from lightning_meta.inner.solvers.ridge import ridge
from lightning_meta.models.kernels import make_kernel
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("float64")

KERNELS = ["linear", "rbf", "cosine", "bn_cosine", "spectral_mixture"]
WAYS = 3


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def learner_of(model, **options):
    """A learner whose parameters are not at their start."""
    learner = DKT(model, **options)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if not name.startswith("model."):
                parameter += 0.3 * torch.randn(parameter.shape)
    return learner


def real_task(support=6, query=5, outputs=(1,)):
    targets = (torch.randn(n, *outputs) for n in (support, query))
    return Episode(torch.randn(support, 3), next(targets), torch.randn(query, 3), next(targets))


def class_task(support=6, query=5):
    labels = (torch.arange(n) % WAYS for n in (support, query))
    return Episode(torch.randn(support, 3), next(labels), torch.randn(query, 3), next(labels))


def covariance(kernel, name, first, second):
    """A kernel's formula, pair by pair."""
    p = {key: value.exp() for key, value in kernel.named_parameters()}

    def of_pair(a, b):
        if name == "linear":
            return p["log_variance"] * sum(a * b)
        if name == "rbf":
            return p["log_variance"] * torch.exp(-sum((a - b) ** 2) / (2 * p["log_length"] ** 2))
        if name in ("cosine", "bn_cosine"):
            return p["log_variance"] * sum(a * b) / (a.norm() * b.norm())
        total = 0.0
        for weight, means, deviations in zip(p["log_weights"], p["log_means"], p["log_deviations"], strict=True):
            decays = torch.exp(-2 * math.pi**2 * (a - b) ** 2 * deviations**2)
            total = total + weight * torch.prod(decays * torch.cos(2 * math.pi * (a - b) * means))
        return total

    return torch.stack([torch.stack([of_pair(a, b) for b in second]) for a in first])


class Naive:
    """A task's joint Gaussian, and its conditional by explicit inverses."""

    def __init__(self, learner, task):
        x = torch.cat([task.support_x, task.query_x])
        features, size = learner.model(x), len(task.support_x)
        if learner.kernel_name == "bn_cosine":
            own = features[:size]
            features = (features - own.mean(0)) / (own.var(0, correction=0) + 1e-5).sqrt()
        self.size, self.mean = size, learner.mean
        self.k = covariance(learner.kernel, learner.kernel_name, features, features)
        log_std = learner.noise.log_std if learner.log_label_std is None else learner.log_label_std
        self.noise = (2 * log_std).exp()

    def log_marginal(self, y):
        jitter = 1e-5 * self.k.diagonal().mean()
        total = self.k + (self.noise + jitter) * torch.eye(len(y))
        return MultivariateNormal(self.mean.expand(len(y)), total).log_prob(y)

    def conditional(self, y):
        s = self.size
        jitter = 1e-5 * self.k.diagonal()[:s].mean()
        weights = self.k[s:, :s] @ torch.linalg.inv(self.k[:s, :s] + (self.noise + jitter) * torch.eye(s))
        return self.mean + weights @ (y - self.mean), self.k[s:, s:] - weights @ self.k[:s, s:]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_their_formulas(name):
    kernel = make_kernel(name, 4)
    first, second = torch.randn(5, 4), torch.randn(3, 4)
    torch.testing.assert_close(kernel(first, second), covariance(kernel, name, first, second))
    together = kernel(torch.cat([first, second]), torch.cat([first, second]))
    torch.testing.assert_close(together, together.mT)
    assert torch.linalg.eigvalsh(together).min() > -1e-12
    batched = kernel(first[:, None], first[:, None])[:, 0, 0]
    torch.testing.assert_close(batched, kernel(first, first).diagonal())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("outputs", [(1,), (2,)])
def test_regression_is_the_gaussian_process(model, name, outputs):
    learner = learner_of(model, loss_fn=nn.MSELoss(), kernel=name)
    tasks = [real_task(support, query, outputs) for support, query in ((5, 4), (3, 5))]
    losses = []
    for task in tasks:
        y, naive = torch.cat([task.support_y, task.query_y]), Naive(learner, task)
        losses.append(-torch.stack([naive.log_marginal(each) for each in y.T]).mean() / len(y))
    expected = sum(losses) / 2
    slopes = torch.autograd.grad(expected, list(learner.parameters()), materialize_grads=True)
    loss = learner.training_step(collate_episodes(tasks), 0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    names = dict(learner.named_parameters())
    assert_same({n: p.grad for n, p in names.items()}, dict(zip(names, slopes, strict=True)), 1e-8)

    for task in tasks:
        samples = learner.adapt(task.support_x, task.support_y).samples(task.query_x)
        naive = Naive(learner, task)
        for i, y in enumerate(task.support_y.T):
            mean, spread = naive.conditional(y)
            torch.testing.assert_close(samples.outputs[0, :, i], mean.detach())
            torch.testing.assert_close(samples.spread[0, :, i], spread.diagonal().detach(), rtol=1e-6, atol=1e-8)
        prediction = learner.adapt(task.support_x, task.support_y).predict(task.query_x)
        torch.testing.assert_close(prediction.epistemic, samples.spread[0])
        torch.testing.assert_close(prediction.aleatoric, naive.noise.detach().expand_as(prediction.mean))


@pytest.mark.parametrize("loss_fn", [nn.MSELoss(), nn.CrossEntropyLoss()], ids=["regression", "classes"])
@pytest.mark.parametrize("meta_loss", ["marginal", "predictive"])
def test_training_reports_what_evaluation_predicts(model, loss_fn, meta_loss, monkeypatch):
    """With the jitter of both sets in place of the support set's, which are equal for this kernel."""
    monkeypatch.setattr(dkt, "_TRAINING_DRAWS", 20_000)
    learner = learner_of(model, loss_fn=loss_fn, kernel="rbf", meta_loss=meta_loss, eval_num_samples=50_000)
    task = real_task() if isinstance(loss_fn, nn.MSELoss) else class_task()
    batch = collate_episodes([task])
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    prepared = learner._prepared(batch).select(0)
    loss, result = learner.task_loss(meta, prepared)
    found = learner.evaluate(batch)
    if isinstance(loss_fn, nn.MSELoss):
        torch.testing.assert_close(result.outputs[0], found.outputs[0, -1])
        samples = learner.adapt(task.support_x, task.support_y).samples(task.query_x)
        expected = learner.predictive_nll(samples, task.query_y, None)
        torch.testing.assert_close(result.diagnostics["nll"], expected)
    else:  # by other draws
        torch.testing.assert_close(result.outputs[0].softmax(1), found.outputs[0, -1].exp(), rtol=0, atol=0.01)
        torch.testing.assert_close(result.diagnostics["nll"], found.loss[0], rtol=0.02, atol=0)
    if meta_loss == "predictive":
        torch.testing.assert_close(loss, result.diagnostics["nll"])


@pytest.mark.parametrize("ways", [2, 5, 20])
def test_no_class_number_is_preferred(model, ways):
    """Support examples that are all alike tell nothing: each class is as probable as any other."""
    learner = learner_of(model, kernel="rbf", eval_num_samples=32)
    task = learner.adapt(torch.ones(ways, 3), torch.arange(ways))
    torch.testing.assert_close(task(torch.ones(1, 3)).softmax(1), torch.full((1, ways), 1 / ways))


@pytest.mark.parametrize("name", ["linear", "bn_cosine"])
def test_classes_are_one_versus_rest(model, name):
    learner = learner_of(model, kernel=name, eval_num_samples=40_000)
    tasks = [class_task() for _ in range(2)]
    losses, probabilities = [], []
    for task in tasks:
        naive, y = Naive(learner, task), torch.cat([task.support_y, task.query_y])
        each = [naive.log_marginal(torch.where(y == k, 1.0, -1.0)) / len(y) for k in range(WAYS)]
        losses.append(-sum(each) / WAYS)
        own = [naive.conditional(torch.where(task.support_y == k, 1.0, -1.0)) for k in range(WAYS)]
        mean = torch.stack([m for m, _ in own], dim=1).detach()
        std = own[0][1].diagonal().detach().sqrt()[:, None]
        scale = float(learner.log_scale.detach().exp())
        draws = scale * (mean + std * torch.randn(40_000, *mean.shape))
        probabilities.append(draws.softmax(2).mean(0))
    names = {n: p for n, p in learner.named_parameters() if n != "log_scale"}
    slopes = torch.autograd.grad(sum(losses) / 2, list(names.values()), materialize_grads=True)
    learner.training_step(collate_episodes(tasks), 0).backward()
    # The scale alone learns from the likelihood of classes.
    assert_same({n: p.grad for n, p in names.items()}, dict(zip(names, slopes, strict=True)), 1e-8)
    assert float(learner.log_scale.grad.abs()) > 1e-4
    for task, expected in zip(tasks, probabilities, strict=True):
        prediction = learner.adapt(task.support_x, task.support_y).predict(task.query_x)
        torch.testing.assert_close(prediction.mean, expected, rtol=0, atol=0.01)
        assert (prediction.epistemic > 0).all()


@pytest.mark.parametrize("meta_loss", ["marginal", "predictive"])
@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_padding_changes_nothing(model, kind, meta_loss):
    """Whatever stands in the place of examples that do not count."""
    loss_fn = nn.MSELoss() if kind == "regression" else nn.CrossEntropyLoss()
    learner = learner_of(model, loss_fn=loss_fn, meta_loss=meta_loss, kernel="bn_cosine")
    task = real_task() if kind == "regression" else class_task()
    padded = []
    for x, y in ((task.support_x, task.support_y), (task.query_x, task.query_y)):
        padded += [torch.cat([1e3 * torch.ones(2, 3), x]), torch.cat([y[:2], y])]
    masks = [torch.arange(len(x)) >= 2 for x in padded[::2]]
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    one = learner._prepared(collate_episodes([task])).select(0)
    other = learner._prepared(Episode(*[each[None] for each in padded], *[mask[None] for mask in masks])).select(0)
    expected, found = (torch.func.grad_and_value(learner.task_loss, has_aux=True)(meta, each) for each in (one, other))
    torch.testing.assert_close(found[1][0], expected[1][0])
    assert_same(found[0], expected[0])
    states = [learner.adapt_task(meta, each.support) for each in (one, other)]
    torch.manual_seed(1)
    outputs = learner.query_samples(meta, states[0], task.query_x)
    torch.manual_seed(1)
    torch.testing.assert_close(learner.query_samples(meta, states[1], task.query_x), outputs)


def test_the_linear_kernel_is_bayesian_linear_regression(model):
    """The head of amortized MAML, with a prior around 0."""
    learner = learner_of(model, loss_fn=nn.MSELoss(), kernel="linear", observation_std=0.6)
    task = real_task()
    with torch.no_grad():
        learner.mean.zero_()
        features, query = model(task.support_x), model(task.query_x)
        variance = learner.kernel.log_variance.exp()
        noise = 0.36 + 1e-5 * variance * features.square().sum(1).mean()
        head = ridge(features, task.support_y, noise / variance, torch.zeros(4, 1))
    samples = learner.adapt(task.support_x, task.support_y).samples(task.query_x)
    torch.testing.assert_close(samples.outputs[0], query @ head.weight)
    torch.testing.assert_close(samples.spread[0, :, 0], noise * head.variance(query))
    assert float(samples.noise[0, 0, 0]) == pytest.approx(0.36)


def test_single_precision_stands_noise_free_targets(model):
    learner = DKT(model, nn.MSELoss(), observation_std=1e-6).float()
    x = torch.randn(1, 30, 3, dtype=torch.float32) / 10
    batch = Episode(x, x[..., :1], x, x[..., :1])
    learner.training_step(batch, 0).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KERNELS)
def test_half_precision_weights_are_conditioned_in_single(model, name, dtype):
    half = learner_of(model, loss_fn=nn.MSELoss(), kernel=name, num_features=4).to(dtype).eval()
    single = copy.deepcopy(half).float()
    one = Episode(*(part.to(dtype) for part in real_task()[:4]))
    found = half.adapt(one.support_x, one.support_y).predict(one.query_x)
    expected = single.adapt(one.support_x.float(), one.support_y.float()).predict(one.query_x.float())
    torch.testing.assert_close(found.mean, expected.mean, rtol=0.05, atol=0.05)
    torch.testing.assert_close(found.epistemic, expected.epistemic, rtol=0.1, atol=0.02)
    half.training_step(collate_episodes([one]), 0).backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


def test_targets_may_be_plain_numbers_and_models_without_parameters():
    learner = DKT(nn.Identity(), nn.MSELoss())
    task = real_task()
    flat = task._replace(support_y=task.support_y[:, 0], query_y=task.query_y[:, 0])
    losses = [learner.training_step(collate_episodes([each]), 0) for each in (task, flat)]
    torch.testing.assert_close(*losses)
    prediction = learner.adapt(flat.support_x, flat.support_y).predict(flat.query_x)
    assert prediction.mean.shape == prediction.epistemic.shape == (5,)
    torch.testing.assert_close(prediction.mean[:, None], learner.adapt(*task[:2])(task.query_x))


@pytest.mark.parametrize("ways", [2, 9])
def test_one_learner_takes_any_number_of_ways(model, ways):
    task = DKT(model).adapt(torch.randn(2 * ways, 3), torch.arange(2 * ways) % ways)
    assert task.predict(torch.randn(6, 3)).mean.shape == (6, ways)


def test_a_task_with_fewer_classes_has_its_own_value_and_gradient(model):
    learner = learner_of(model, kernel="bn_cosine")
    fewer = class_task()
    fewer = fewer._replace(support_y=fewer.support_y % 2, query_y=fewer.query_y % 2)
    found = []
    for tasks in ([fewer], [class_task()], [fewer, class_task()]):
        torch.manual_seed(2)
        tasks = [task if task is fewer else class_task() for task in tasks]
        learner.zero_grad()
        learner.training_step(collate_episodes(tasks), 0).backward()
        found.append({name: p.grad.clone() for name, p in learner.named_parameters()})
    alone, other, together = found
    assert_same(together, {name: (alone[name] + other[name]) / 2 for name in alone})
    outputs = learner.evaluate(collate_episodes([fewer, class_task()])).outputs[0, -1]
    assert (outputs[:, 2] == -torch.inf).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": "matern"}, "kernel='matern' is not one of"),
        ({"meta_loss": "evidence"}, "meta_loss='evidence' is not one of"),
        ({"eval_num_samples": 0}, "eval_num_samples=0 must be an integer of at least 1"),
        ({"loss_fn": nn.BCEWithLogitsLoss()}, "DKT takes nn.MSELoss"),
        ({"loss_fn": nn.HuberLoss()}, "is no negative log-likelihood"),
        ({"model": nn.Conv2d(1, 2, 3), "kernel": "spectral_mixture"}, "learns frequencies for each"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DKT(**{"model": nn.Linear(3, 2), **wrong})


def test_features_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 2, 1, 1\) .* DKT needs \[examples, features\]; add a Flatten"):
        DKT(nn.Conv2d(1, 2, 3), nn.MSELoss()).adapt(torch.randn(4, 1, 3, 3), torch.randn(4, 1))
