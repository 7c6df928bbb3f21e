"""Probabilistic MAML against the closed form of linear regression, and against a plain loop with the same noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from lightning_meta import MAML, PLATIPUS, Episode, collate_episodes
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


def noise(like):
    return torch.linspace(-1.5, 2, like.numel()).cos().view(like.shape)


@pytest.fixture
def same_noise(monkeypatch):
    """Every draw of a tensor of one shape is the same."""
    monkeypatch.setattr(torch, "randn_like", noise)


def all_slopes(learner, batch):
    """The meta-loss and the gradient of everything that is trained."""
    learner.zero_grad()
    loss = learner.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in learner.named_parameters()}


def scattered(learner):
    """Give all that is meta-learned besides the model values of its own."""
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name.startswith(("prior_", "posterior_")):
                parameter += 0.05 * torch.randn(parameter.shape)
    return learner


def linear_task(size=3, support=5, query=7):
    return Episode(torch.randn(support, size), torch.randn(support, 1), torch.randn(query, size), torch.randn(query, 1))


def closed_form(learner, task, steps, rate, weight, sigma):
    """Loss and gradients of one task with a linear model, whose losses are quadratic."""
    values = {name.partition(".")[0]: p.detach()[0] for name, p in learner.named_parameters()}
    mu, p_log, q_log = values["model"], values["prior_log_std"], values["posterior_log_std"]
    p_rate, q_rate = values["prior_rates"], values["posterior_rates"]
    n, queries = len(task.support_x), len(task.query_x)
    a, c = task.support_x.T @ task.support_x / n, task.query_x.T @ task.query_x / queries
    to_a, to_c = task.support_x.T @ task.support_y[:, 0] / n, task.query_x.T @ task.query_y[:, 0] / queries
    p_slope, q_slope = a @ mu - to_a, c @ mu - to_c
    p_mean, q_mean = mu - p_rate * p_slope, mu - q_rate * q_slope
    p_std, q_std = p_log.exp(), q_log.exp()
    drawn = noise(mu[None])[0]
    contraction = torch.linalg.matrix_power(torch.eye(len(mu)) - rate * a, steps)
    center = torch.linalg.solve(a, to_a)
    adapted = center + contraction @ (q_mean + q_std * drawn - center)
    residual = task.query_y[:, 0] - task.query_x @ adapted
    divergence = kl_divergence(Normal(q_mean, q_std), Normal(p_mean, p_std)).sum()
    loss = -Normal(0.0, sigma).log_prob(residual).mean() + weight / queries * divergence
    through = contraction @ (c @ adapted - to_c) / sigma**2
    k, pull = weight / queries, (q_mean - p_mean) / p_std**2
    by_q, by_p = through + k * pull, -k * pull
    slopes = {
        "model": by_q - c @ (q_rate * by_q) + by_p - a @ (p_rate * by_p),
        "posterior_rates": -q_slope * by_q,
        "prior_rates": -p_slope * by_p,
        "posterior_log_std": q_std * drawn * through + k * (q_std**2 / p_std**2 - 1),
        "prior_log_std": k * (1 - (q_std**2 + (q_mean - p_mean) ** 2) / p_std**2),
    }
    return loss, slopes


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_the_meta_gradient_of_linear_regression_is_the_closed_form(steps, weight):
    options = {"inner_lr": 0.2, "inner_steps": steps, "kl_weight": weight, "initial_log_std": -1.0}
    learner = scattered(
        PLATIPUS(
            nn.Linear(3, 1, bias=False), nn.MSELoss(), prior_lr=0.3, posterior_lr=0.4, observation_std=0.7, **options
        )
    )
    tasks = [linear_task() for _ in range(3)]
    loss, found = all_slopes(learner, collate_episodes(tasks))
    each = [closed_form(learner, task, steps, 0.2, weight, 0.7) for task in tasks]
    torch.testing.assert_close(loss, sum(value for value, _ in each) / 3)
    expected = {name: sum(slopes[name] for _, slopes in each) / 3 for name in each[0][1]}
    assert_same({name.partition(".")[0]: slope[0] for name, slope in found.items()}, expected)


def network(norm=None):
    middle = [] if norm is None else [norm(5)]
    return nn.Sequential(nn.Linear(3, 5), *middle, nn.Tanh(), nn.Linear(5, 2))


def of_classes(support=6, query=7):
    return Episode(torch.randn(support, 3), torch.arange(support) % 2, torch.randn(query, 3), torch.arange(query) % 2)


class Naive:
    """Algorithms 1 and 2 for classes, written out for one task, with ``autograd`` in place of ``torch.func``."""

    def __init__(self, learner):
        self.model, self.random = learner.model, learner.adapted_names
        self.values = {name: p.detach().clone().requires_grad_() for name, p in learner.named_parameters()}

    def value(self, prefix, name):
        return self.values[f"{prefix}.{name.replace('.', '/')}"]

    def loss(self, drawn, x, y):
        shared = {n.removeprefix("model."): p for n, p in self.values.items() if n.startswith("model.")}
        return nn.functional.cross_entropy(functional_call(self.model, {**shared, **drawn}, (x,)), y)

    def conditioned(self, part, x, y):
        means = {name: self.values[f"model.{name}"] for name in self.random}
        slopes = torch.autograd.grad(self.loss(means, x, y), list(means.values()), create_graph=True)
        return {
            name: Normal(
                means[name] - self.value(f"{part}_rates.learned_rates", name) * slope,
                self.value(f"{part}_log_std", name).exp(),
            )
            for name, slope in zip(means, slopes, strict=True)
        }

    def adapted(self, distributions, x, y, rate, steps):
        drawn = {name: each.mean + each.stddev * noise(each.mean) for name, each in distributions.items()}
        for _ in range(steps):
            slopes = torch.autograd.grad(self.loss(drawn, x, y), list(drawn.values()), create_graph=True)
            drawn = {name: drawn[name] - rate * slope for name, slope in zip(drawn, slopes, strict=True)}
        return drawn

    def meta_loss(self, task, rate, steps, weight):
        prior = self.conditioned("prior", task.support_x, task.support_y)
        posterior = self.conditioned("posterior", task.query_x, task.query_y)
        drawn = self.adapted(posterior, task.support_x, task.support_y, rate, steps)
        divergence = sum(kl_divergence(posterior[name], prior[name]).sum() for name in self.random)
        return self.loss(drawn, task.query_x, task.query_y) + weight / len(task.query_y) * divergence, divergence


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("adapt", ["all", "head"])
def test_training_and_tests_are_the_algorithms_of_the_paper(adapt, chunk):
    options = {"inner_lr": 0.3, "inner_steps": 2, "kl_weight": 0.2, "initial_log_std": -1.5}
    model = network(nn.LayerNorm)
    learner = scattered(
        PLATIPUS(model, adapt=adapt, task_chunk_size=chunk, num_samples=2, eval_num_samples=3, **options)
    )
    tasks = [of_classes(query=queries) for queries in (7, 4, 7)]
    naive = Naive(learner)
    losses = [naive.meta_loss(task, 0.3, 2, 0.2) for task in tasks]
    expected = sum(loss for loss, _ in losses) / 3
    slopes = torch.autograd.grad(expected, list(naive.values.values()))
    loss, found = all_slopes(learner, collate_episodes(tasks))
    torch.testing.assert_close(loss, expected.detach())
    assert_same(found, dict(zip(naive.values, slopes, strict=True)))
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    torch.testing.assert_close(learner.task_loss(meta, tasks[0])[1].diagnostics["kl"], losses[0][1].detach())

    one = tasks[0]
    prior = naive.conditioned("prior", one.support_x, one.support_y)
    drawn = naive.adapted(prior, one.support_x, one.support_y, 0.3, 2)
    shared = dict(model.named_parameters())
    output = functional_call(model, {**shared, **drawn}, (one.query_x,)).detach()
    samples = learner.eval().adapt(one.support_x, one.support_y).samples(one.query_x)
    torch.testing.assert_close(samples.outputs, output.expand(3, *output.shape))


def test_without_spread_and_shift_it_is_maml():
    options = {"inner_lr": 0.3, "inner_steps": 2}
    learner = PLATIPUS(network(), initial_log_std=-40.0, kl_weight=1e-300, **options)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if "_rates." in name:
                parameter.zero_()
    batch = collate_episodes([of_classes() for _ in range(3)])
    maml = MAML(learner.model, **options)
    expected = meta_gradient(maml, batch)
    loss, slopes = meta_gradient(learner, batch)
    torch.testing.assert_close(loss, expected[0])
    assert_same(slopes, expected[1])


def test_before_adaptation_nothing_has_seen_the_support_set():
    learner = scattered(PLATIPUS(network(), eval_num_samples=3, initial_log_std=-1.0, inner_lr=0.5))
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    states = []
    for support in (of_classes().support, of_classes().support):
        torch.manual_seed(3)
        states.append([step.state for step in learner.inner_loop(meta, support, 1)])
    (before, after), (other_before, other_after) = states
    for one, other in zip(before, other_before, strict=True):
        assert_same(one, other)
    assert all(
        not torch.allclose(one[name], other[name])
        for one, other in zip(after, other_after, strict=True)
        for name in one
    )
    spread = torch.stack([state["2.weight"] for state in before]) - meta["model.2.weight"]
    assert float(spread.std()) == pytest.approx(0.37, rel=0.5)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_the_meta_gradient_is_that_of_finite_differences(norm):
    learner = PLATIPUS(network(norm), nn.MSELoss(), inner_lr=0.05, inner_steps=2, kl_weight=0.1, initial_log_std=-2.0)
    batch = Episode(torch.randn(2, 6, 3), torch.randn(2, 6, 2), torch.randn(2, 7, 3), torch.randn(2, 7, 2))

    def loss():
        torch.manual_seed(5)
        return learner.training_step(batch, 0)

    learner.zero_grad()
    loss().backward()
    direction = {name: torch.randn_like(p) for name, p in learner.named_parameters()}
    slope = float(sum((p.grad * direction[name]).sum() for name, p in learner.named_parameters()))
    values = []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            for name, parameter in learner.named_parameters():
                parameter += shift * direction[name]
        values.append(float(loss().detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be an integer of at least 1"),
        ({"eval_num_samples": 0}, "eval_num_samples=0 must be an integer of at least 1"),
        ({"kl_weight": 0.0}, "kl_weight=0.0 must be a positive number"),
        ({"prior_lr": -1.0}, "prior_lr=-1.0 must be a positive number"),
        ({"posterior_lr": 0.0}, "posterior_lr=0.0 must be a positive number"),
        ({"loss_fn": nn.HuberLoss()}, "is no negative log-likelihood"),
        ({"adapt": ["nothing"]}, "matches no trainable parameter"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PLATIPUS(nn.Linear(3, 2), **wrong)
