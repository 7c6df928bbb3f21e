"""Gradient-amortized variational inference against the conjugate Gaussian posterior and torch's distributions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Gamma, Normal, kl_divergence

from lightning_meta import ABML, Episode
from lightning_meta.algorithms.probabilistic import abml
from lightning_meta.algorithms.probabilistic.abml import _log_hyper_prior
from lightning_meta.inner.variational import (
    DiagonalGaussian,
    call_with_random_parameters,
    gaussian_kl,
    linear_layers,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def two_point_rule(monkeypatch):
    """Makes normal draws +1 and −1 in turn, which gives the expectation of every quadratic exactly."""
    signs = itertools.cycle([1.0, -1.0])
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, next(signs)))


class Constant(nn.Module):
    """y ~ N(φ, σ²), whatever the input."""

    def __init__(self, start):
        super().__init__()
        self.phi = nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return self.phi.expand(x.shape[0], 1)


@pytest.mark.usefixtures("two_point_rule")
@pytest.mark.parametrize("kind", ["weights", "local reparameterization"])
def test_inner_steps_reach_the_conjugate_posterior_and_the_evidence(kind):
    mu, log_s, sigma, n = 0.4, -0.3, 0.7, 6
    y = 1.5 + sigma * torch.randn(n, 1)
    model = Constant(mu) if kind == "weights" else nn.Linear(1, 1, bias=False)
    if kind != "weights":
        nn.init.constant_(model.weight, mu)
    learner = ABML(
        model,
        nn.MSELoss(),
        num_samples=2,
        kl_weight=1.0,
        initial_log_std=log_s,
        observation_std=sigma,
        inner_lr=0.02,
        inner_steps=2000,
        task_chunk_size=1,
    )
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    batch = Episode(torch.ones(1, n, 1), y[None], torch.ones(1, n, 1), y[None])
    for step, _ in zip(learner.inner_loop(meta, batch.select(0).support, 2000), range(2001), strict=True):
        last = step
    name = "phi" if kind == "weights" else "weight"
    prior_variance = math.exp(2 * log_s)
    variance = 1 / (n / sigma**2 + 1 / prior_variance)
    mean = variance * (float(y.sum()) / sigma**2 + mu / prior_variance)
    assert float(last.state.mean[name]) == pytest.approx(mean, abs=1e-6)
    assert math.exp(2 * float(last.state.log_std[name])) == pytest.approx(variance, abs=1e-6)
    covariance = sigma**2 * torch.eye(n) + prior_variance * torch.ones(n, n)
    evidence = torch.distributions.MultivariateNormal(torch.full((n,), mu), covariance).log_prob(y[:, 0])
    assert float(last.support_loss) == pytest.approx(-float(evidence), abs=1e-6)


def random_gaussian():
    shapes = {"a": (3, 2), "b": (4,)}
    return DiagonalGaussian(
        {n: torch.randn(s) for n, s in shapes.items()}, {n: 0.5 * torch.randn(s) for n, s in shapes.items()}
    )


def test_the_divergence_is_torchs():
    q, p = random_gaussian(), random_gaussian()
    expected = sum(
        kl_divergence(Normal(q.mean[n], q.log_std[n].exp()), Normal(p.mean[n], p.log_std[n].exp())).sum()
        for n in q.mean
    )
    torch.testing.assert_close(gaussian_kl(q, p), expected)
    torch.testing.assert_close(gaussian_kl(q, q), torch.tensor(0.0))


@pytest.mark.parametrize(("shape", "rate"), [(1.0, 0.01), (2.5, 0.3)])
def test_the_hyper_prior_is_torchs(shape, rate, monkeypatch):
    monkeypatch.setattr(abml, "_GAMMA_SHAPE", shape)
    monkeypatch.setattr(abml, "_GAMMA_RATE", rate)
    p = random_gaussian()
    expected = sum(
        Normal(0.0, 1.0).log_prob(p.mean[n]).sum() + Gamma(shape, rate).log_prob((-2 * p.log_std[n]).exp()).sum()
        for n in p.mean
    )
    torch.testing.assert_close(_log_hyper_prior(p), expected)


@pytest.mark.parametrize("local", [True, False])
def test_random_linear_layers_have_the_exact_moments(local):
    model = nn.Linear(4, 3)
    distribution = DiagonalGaussian(
        {n: torch.randn_like(p) for n, p in model.named_parameters()},
        {n: 0.3 * torch.randn_like(p) - 1 for n, p in model.named_parameters()},
    )
    x = torch.randn(2, 4)

    def call(parameters, x):
        return torch.func.functional_call(model, dict(parameters), (x,))

    names = linear_layers(model) if local else frozenset()
    draws = torch.stack([call_with_random_parameters(call, distribution, names, x) for _ in range(20_000)])
    mean = x @ distribution.mean["weight"].T + distribution.mean["bias"]
    variance = x**2 @ (2 * distribution.log_std["weight"]).exp().T + (2 * distribution.log_std["bias"]).exp()
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(draws.var(0), variance, rtol=0.05, atol=0)
    between_examples = torch.corrcoef(draws[:, :, 0].T)[0, 1]
    assert (abs(float(between_examples)) < 0.05) == local  # shared weights correlate the examples


def test_tokens_share_a_draw_of_the_weights():
    """A mean over 64 equal tokens is as uncertain as one token, unless each had its own noise."""
    model = nn.Linear(4, 1)
    nn.init.constant_(model.bias, 10.0)
    distribution = DiagonalGaussian(
        {n: p.detach() for n, p in model.named_parameters()},
        {n: torch.zeros_like(p) for n, p in model.named_parameters()},
    )
    x = torch.ones(1, 64, 4)

    def call(parameters, x):
        return torch.func.functional_call(model, dict(parameters), (x,)).mean(1)

    draws = torch.stack([call_with_random_parameters(call, distribution, linear_layers(model), x) for _ in range(4000)])
    assert float(draws.var()) == pytest.approx(5.0, rel=0.1)
    assert float(draws.mean()) == pytest.approx(float(model(torch.ones(1, 4)).detach()), abs=0.15)


def test_layers_that_share_a_weight_share_its_draw():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.first(x) - self.second(x)

    model = Tied()
    mean = {n: p.detach() for n, p in model.named_parameters()}
    log_std = {n: torch.full_like(p, 0.0 if p.ndim > 1 else -30.0) for n, p in mean.items()}

    def call(parameters, x):
        return torch.func.functional_call(model, dict(parameters), (x,))

    x = torch.randn(4, 3)
    found = call_with_random_parameters(call, DiagonalGaussian(mean, log_std), linear_layers(model), x)
    torch.testing.assert_close(found, (mean["first.bias"] - mean["second.bias"]).expand(4, 2))


@pytest.mark.parametrize("part", ["bias only", "weight by hand"])
def test_no_random_parameter_is_left_out(part):
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return x @ self.layer.weight.T if part == "weight by hand" else self.layer(x)

    model = ByHand()
    if part == "bias only":
        model.layer.weight.requires_grad_(False)
    learner = ABML(model, nn.MSELoss(), initial_log_std=0.0, eval_num_samples=500).eval()
    prediction = learner.adapt(torch.randn(4, 3), torch.randn(4, 2)).predict(torch.randn(5, 3))
    assert (prediction.epistemic > 0.1).all()


class Twice(nn.Module):
    """0 for every draw of the weights, as long as each draw is one function."""

    def __init__(self, way):
        super().__init__()
        self.layer, self.way = nn.Linear(3, 2), way

    def forward(self, x):
        weight, bias = self.layer.weight, self.layer.bias
        again = {
            "the layer": lambda: self.layer(x),
            "linear": lambda: nn.functional.linear(x, weight, bias),
            "a product": lambda: x @ weight.T + bias,
            "a stack": lambda: x @ torch.cat([weight, bias[:, None]], dim=1)[:, :3].T + bias,
            "the layer on more dimensions": lambda: self.layer(x[None])[0],
            "by halves": lambda: nn.functional.linear(x[:, :2], weight[:, :2], bias) + x[:, 2:] @ weight[:, 2:].T,
            "another's bias": lambda: nn.functional.linear(x, weight) + nn.functional.linear(x, 0 * weight, bias),
        }[self.way]
        return self.layer(x) - again()


@pytest.mark.parametrize(
    "way",
    ["the layer", "linear", "a product", "a stack", "the layer on more dimensions", "by halves", "another's bias"],
)
def test_a_draw_is_one_function(way):
    learner = ABML(Twice(way), nn.MSELoss(), initial_log_std=0.0, inner_lr=1e-3, observation_std=1.0).eval()
    prediction = learner.adapt(torch.randn(4, 3), torch.randn(4, 2)).predict(torch.randn(5, 3))
    torch.testing.assert_close(prediction.epistemic, torch.zeros(5, 2))
    torch.testing.assert_close(prediction.mean, torch.zeros(5, 2))


def test_looking_at_a_weight_leaves_its_layer_reparameterized():
    """Examples are drawn apart, so that their outputs are not correlated."""

    model = nn.Linear(3, 1)
    distribution = DiagonalGaussian(
        {n: p.detach() for n, p in model.named_parameters()},
        {n: torch.zeros_like(p) for n, p in model.named_parameters()},
    )

    def call(parameters, x):
        return torch.func.functional_call(model, dict(parameters), (x.to(parameters["weight"].dtype),))

    x = torch.ones(2, 3)
    draws = [call_with_random_parameters(call, distribution, linear_layers(model), x) for _ in range(2000)]
    assert abs(float(torch.corrcoef(torch.stack(draws)[:, :, 0].T)[0, 1])) < 0.1


def test_a_weight_may_be_used_by_keyword():
    model = nn.Linear(3, 2)
    mean = {n: p.detach() for n, p in model.named_parameters()}

    def call(parameters, x):
        output = nn.functional.linear(input=x, weight=parameters["weight"], bias=parameters["bias"])
        return output.sum(dim=1, keepdim=True)

    x, draws = torch.randn(4, 3), {}
    for log_std in (-30.0, 0.0):
        distribution = DiagonalGaussian(mean, {n: torch.full_like(p, log_std) for n, p in mean.items()})
        draws[log_std] = [call_with_random_parameters(call, distribution, linear_layers(model), x) for _ in range(3)]
    torch.testing.assert_close(draws[-30.0][0], model(x).detach().sum(1, keepdim=True))
    assert (torch.stack(draws[0.0]).var(0) > 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_all_inputs_are_zero_the_gradient_is_finite(dtype):
    """Without a bias the output is then certain: the root of its variance has no slope."""
    learner = ABML(nn.Linear(3, 2, bias=False).to(dtype), nn.MSELoss(), inner_steps=2, initial_log_std=-1.0)
    sets = [torch.zeros(2, 4, 3, dtype=dtype), torch.randn(2, 4, 2, dtype=dtype)]
    learner.training_step(Episode(*sets, *sets), 0).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


def test_a_layers_weight_may_be_called_with_another_bias():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return nn.functional.linear(x, self.layer.weight, torch.full((2,), 5.0)).mean(1)

    learner = ABML(Shifted(), nn.MSELoss(), initial_log_std=-30.0).eval()
    x = torch.randn(4, 6, 3)
    outputs = learner.adapt(x, torch.randn(4, 2), steps=1).samples(x).outputs
    assert outputs.shape == (10, 4, 2)
    assert torch.isfinite(outputs).all()


def test_a_layer_that_uses_its_weight_otherwise_is_not_reparameterized():
    class Transposed(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.T)

    assert linear_layers(nn.Sequential(nn.Linear(2, 2), Transposed(2, 2, bias=False))) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), nn.MSELoss()], ids=["classes", "regression"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_the_meta_gradient_is_that_of_finite_differences(norm, loss_fn):
    model = nn.Sequential(nn.Linear(3, 5), norm(5), nn.Tanh(), nn.Linear(5, 2))
    options = {"inner_lr": 0.05, "inner_steps": 2, "num_samples": 2, "kl_weight": 0.1, "initial_log_std": -2.0}
    learner = ABML(model, loss_fn, normalize_steps=True, compile=False, **options)  # recording takes seconds
    batch = Episode(torch.randn(2, 6, 3), torch.randint(2, (2, 6)), torch.randn(2, 7, 3), torch.randint(2, (2, 7)))
    if isinstance(loss_fn, nn.MSELoss):
        batch = batch._replace(support_y=torch.randn(2, 6, 2), query_y=torch.randn(2, 7, 2))

    def loss():
        torch.manual_seed(5)
        return learner.training_step(batch, 0)

    learner.zero_grad()
    loss().backward()
    for name, parameter in learner.named_parameters():
        direction = torch.randn_like(parameter)
        slope = float((parameter.grad * direction).sum())
        values = []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter += shift * direction
            values.append(float(loss().detach()))
        with torch.no_grad():
            parameter += 1e-5 * direction
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be an integer of at least 1"),
        ({"eval_num_samples": 0}, "eval_num_samples=0 must be an integer of at least 1"),
        ({"kl_weight": 0.0}, "kl_weight=0.0 must be a positive number"),
        ({"num_tasks": 0}, "num_tasks=0 must be an integer of at least 1"),
        ({"loss_fn": nn.HuberLoss()}, "is no negative log-likelihood"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ABML(nn.Linear(3, 2), **wrong)
