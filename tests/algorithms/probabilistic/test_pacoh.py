"""PACOH against particle-by-particle Gaussian densities and double loops, and a hyper-posterior in closed form."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from lightning_meta import PACOH, Episode, collate_episodes
from lightning_meta.inner.names import key_of
from lightning_meta.likelihoods.predictive import mixture_log_likelihood

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT, WEIGHT_STD, BIAS_STD = 0.05, 0.7, 2.0


def learner_of(mean=True, **options):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    mean_model = nn.Linear(3, 1) if mean else None
    return PACOH(
        model,
        mean_model=mean_model,
        hyper_prior_weight=WEIGHT,
        weight_prior_std=WEIGHT_STD,
        bias_prior_std=BIAS_STD,
        **options,
    )


def task_of(support=6, query=5):
    return Episode(torch.randn(support, 3), torch.randn(support, 1), torch.randn(query, 3), torch.randn(query, 1))


def particles_of(learner):
    """Each particle as a learner with one particle, whose parameters are plain."""
    own = {n: p for n, p in learner.named_parameters() if not n.startswith("other_particles")}
    learners = []
    for index in range(learner.num_particles):
        one = copy.deepcopy(learner)
        for name, parameter in own.items():
            value = parameter if index == 0 else learner.other_particles[key_of(name)][index - 1]
            one.get_parameter(name).data.copy_(value.detach())
        learners.append(one)
    return learners, list(own)


def kernel_of(learner, x):
    features = learner.model(x)
    if hasattr(learner.kernel, "log_length"):
        squared = (features[:, None] - features[None]).square().sum(-1)
        return torch.exp(learner.kernel.log_variance) * torch.exp(-squared / (2 * learner.kernel.log_length.exp() ** 2))
    return torch.exp(learner.kernel.log_variance) * features @ features.T


def mean_of(learner, x):
    return learner.mean.expand(len(x)) if learner.mean_model is None else learner.mean_model(x)[:, 0]


def noise_of(learner):
    return torch.exp(2 * learner.noise.log_std)


def log_evidence(learner, task):
    """The density of all targets as one draw of a Gaussian, per example."""
    x, y = torch.cat([task.support_x, task.query_x]), torch.cat([task.support_y, task.query_y])[:, 0]
    k = kernel_of(learner, x)
    jitter = 1e-5 * k.diagonal().mean()
    return MultivariateNormal(mean_of(learner, x), k + (noise_of(learner) + jitter) * torch.eye(len(y))).log_prob(
        y
    ) / len(y)


def log_hyper_prior(learner, names):
    total = 0.0
    for name in names:
        value = learner.get_parameter(name)
        std = 1.0 if name.startswith(("kernel", "noise")) else WEIGHT_STD if value.ndim > 1 else BIAS_STD
        total = total + Normal(torch.zeros_like(value), std).log_prob(value).sum()
    return total


def log_hyper_posterior(learner, names, tasks):
    """``ln Q*`` up to a constant, by w = 1/λ + 1/(n m): ``λ / (n m + λ) Σ ln Z = mean_i (ln Z_i / m) / w``."""
    return sum(log_evidence(learner, task) for task in tasks) / len(tasks) / WEIGHT + log_hyper_prior(learner, names)


@pytest.mark.parametrize("options", [{}, {"kernel": "linear"}, {"mean": False}, {"num_particles": 1}], ids=str)
def test_meta_gradient_is_steins_direction(options):
    learner = learner_of(**{"num_particles": 3, **options})
    tasks = [task_of(), task_of(4, 3)]
    learner.training_step(collate_episodes(tasks), 0).backward()

    each, names = particles_of(learner)
    points, slopes = [], []
    for one in each:
        parameters = [one.get_parameter(name) for name in names]
        density = log_hyper_posterior(one, names, tasks)
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(density, parameters)]))
        points.append(torch.cat([p.detach().flatten() for p in parameters]))
    count = len(points)
    squared = torch.tensor([[(a - b).square().sum() for b in points] for a in points])
    pairs = [squared[i, j] for i in range(count) for j in range(i)]
    h = torch.stack(pairs).quantile(0.5) / math.log(count) if pairs else torch.tensor(1.0)
    for i in range(count):
        direction = torch.zeros_like(points[0])
        for j in range(count):
            k = torch.exp(-squared[i, j] / h)
            direction += (k * slopes[j] + k * 2 / h * (points[i] - points[j])) / count
        got = [
            learner.get_parameter(name).grad if i == 0 else learner.other_particles[key_of(name)].grad[i - 1]
            for name in names
        ]
        torch.testing.assert_close(torch.cat([g.flatten() for g in got]), -WEIGHT * direction)


def test_slopes_are_those_of_finite_differences():
    learner = learner_of(num_particles=1)
    task = task_of()
    learner.training_step(collate_episodes([task]), 0).backward()
    (one,), names = particles_of(learner)
    for name in names:
        parameter = one.get_parameter(name)
        at = (0,) * parameter.ndim
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[at] += step
                values.append(-WEIGHT * log_hyper_posterior(one, names, [task]))
                parameter[at] -= step
        torch.testing.assert_close(
            learner.get_parameter(name).grad[at], (values[0] - values[1]) / 2e-5, atol=1e-8, rtol=1e-6
        )


@pytest.mark.parametrize("options", [{}, {"kernel": "linear"}, {"mean": False}], ids=str)
def test_predictions_are_the_particles_posteriors(options):
    learner = learner_of(num_particles=3, **options)
    task = task_of()
    samples = learner.adapt(task.support_x, task.support_y).samples(task.query_x)
    size, y = len(task.support_y), task.support_y[:, 0]
    densities = []
    for index, one in enumerate(particles_of(learner)[0]):
        x = torch.cat([task.support_x, task.query_x])
        k, mean = kernel_of(one, x), mean_of(one, x)
        jitter = 1e-5 * k.diagonal()[:size].mean()
        weights = k[size:, :size] @ torch.linalg.inv(k[:size, :size] + (noise_of(one) + jitter) * torch.eye(size))
        expected = mean[size:] + weights @ (y - mean[:size])
        variance = (k[size:, size:] - weights @ k[:size, size:]).diagonal()
        torch.testing.assert_close(samples.outputs[index, :, 0], expected)
        torch.testing.assert_close(samples.spread[index, :, 0], variance)
        torch.testing.assert_close(samples.noise[index, :, 0], noise_of(one).expand(len(expected)))
        densities.append(Normal(expected, (variance + noise_of(one)).sqrt()).log_prob(task.query_y[:, 0]).exp())
    mixture = mixture_log_likelihood("gaussian", samples, task.query_y)
    torch.testing.assert_close(mixture, torch.stack(densities).mean(0).log())


def test_particles_find_a_gaussian_hyper_posterior():
    """With kernel and noise held fixed, a constant mean has a Gaussian hyper-posterior."""
    weight, noise = 0.02, 0.5
    learner = PACOH(
        nn.Identity(),
        num_particles=12,
        hyper_prior_weight=weight,
        bias_prior_std=2.0,
        observation_std=noise,
        compile=False,
    )
    with torch.no_grad():  # a kernel that is next to none
        for name, value in (("log_variance", -30.0), ("log_length", 0.0)):
            learner.kernel.get_parameter(name).fill_(value)
            learner.other_particles[f"kernel/{name}"].fill_(value)
        learner.other_particles["mean"].copy_(torch.linspace(-0.5, 0.5, 11))
    tasks = [Episode(torch.zeros(3, 1), torch.randn(3, 1), torch.zeros(2, 1), torch.randn(2, 1)) for _ in range(4)]
    values = torch.cat([torch.cat([task.support_y, task.query_y]) for task in tasks])
    precision = 1 / weight / noise**2 + 1 / 2.0**2
    expected = values.mean() / weight / noise**2 / precision
    particles = [learner.mean, learner.other_particles["mean"]]
    optimizer = torch.optim.SGD(particles, lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        learner.training_step(collate_episodes(tasks), 0).backward()
        optimizer.step()
    found = torch.cat([particles[0].detach()[None], particles[1].detach()])
    torch.testing.assert_close(found.mean(), expected, atol=1e-4, rtol=0)
    assert 0.9 < found.std() * precision**0.5 < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_fn": nn.CrossEntropyLoss()}, "needs real targets"),
        ({"kernel": "spectral_mixture"}, "kernel='spectral_mixture'"),
        ({"hyper_prior_weight": 0.0}, "hyper_prior_weight=0.0"),
        ({"num_particles": 0}, "num_particles=0"),
        ({"mean_model": nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))}, "mean_model has batch normalization"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PACOH(nn.Linear(3, 2), **options)


def test_a_mean_of_another_size_is_refused():
    learner = PACOH(nn.Linear(3, 2), mean_model=nn.Linear(3, 2), num_particles=2)
    with pytest.raises(ValueError, match="mean_model gives 2 numbers for an example, and a target has 1"):
        learner.adapt(torch.randn(4, 3), torch.randn(4, 1))
