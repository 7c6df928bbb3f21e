"""Bayesian MAML against plain loops of autograd."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import BayesianMAML, Episode, collate_episodes
from tests.algorithms.probabilistic.stein_loops import classes, found_gradient, models, numbers, reference_gradient
from tests.reference import RULES, assert_same

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("task_chunk_size", [None, 1])
@pytest.mark.parametrize("adapt", ["all", "head"])
@pytest.mark.parametrize("kind", ["plain", "batch", "layer"])
@pytest.mark.parametrize("meta_loss", ["nll", "chaser"])
def test_the_meta_gradient_is_that_of_a_plain_loop(meta_loss, kind, adapt, task_chunk_size):
    batch = classes()
    learner = BayesianMAML(
        models()[kind],
        num_particles=3,
        inner_lr=0.1,
        inner_steps=2,
        leader_steps=2,
        prior_precision=0.3,
        meta_loss=meta_loss,
        adapt=adapt,
        task_chunk_size=task_chunk_size,
    )
    loss, expected = reference_gradient(learner, batch)
    found_loss, found = found_gradient(learner, batch)
    torch.testing.assert_close(found_loss, loss, rtol=1e-9, atol=1e-9)
    assert_same(found, expected, 1e-9)


@pytest.mark.parametrize("meta_loss", ["nll", "chaser"])
def test_regression_with_learned_noise(meta_loss):
    batch = numbers()
    learner = BayesianMAML(
        models()["plain"], nn.MSELoss(), num_particles=2, inner_lr=0.05, inner_steps=2, meta_loss=meta_loss
    )
    loss, expected = reference_gradient(learner, batch)
    found_loss, found = found_gradient(learner, batch)
    noise = found.pop("noise.log_std")
    if meta_loss == "nll":
        torch.testing.assert_close(noise, expected.pop("noise.log_std"), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found_loss, loss, rtol=1e-9, atol=1e-9)
    else:  # the noise learns from the likelihood with the particles held fixed
        held = 0
        for i in range(2):
            task = batch.select(i)
            adapted = learner.adapt(task.support_x, task.support_y)
            outputs = adapted.samples(task.query_x).outputs
            log_std = learner.noise.log_std.detach().clone().requires_grad_()
            logs = torch.distributions.Normal(outputs, log_std.exp()).log_prob(task.query_y).sum(2)
            nll = -(logs.exp().mean(0).log()).mean()
            held = held + torch.autograd.grad(nll, log_std)[0] / 2
        torch.testing.assert_close(noise, held, rtol=1e-9, atol=1e-9)
    assert_same(found, expected, 1e-9)


def test_the_chasers_report_tells_both_losses():
    learner, batch = BayesianMAML(models()["plain"], num_particles=3, inner_lr=0.2, leader_steps=2), classes()
    chased = reference_gradient(learner, batch)[0]
    results = [learner.task_gradient(dict(learner.named_parameters()), batch.select(i))[1] for i in range(2)]
    told = torch.stack([result.diagnostics["chaser_loss"] for result in results]).mean()
    torch.testing.assert_close(told.detach(), chased)
    adapted = learner.adapt(batch.support_x[0], batch.support_y[0])
    logs = torch.distributions.Categorical(logits=adapted.samples(batch.query_x[0]).outputs).log_prob(batch.query_y[0])
    torch.testing.assert_close(results[0].diagnostics["nll"].detach(), -logs.exp().mean(0).log().mean())


def test_no_gradient_flows_through_the_leader():
    batch = classes()
    learner = BayesianMAML(models()["plain"], num_particles=3, inner_lr=0.2, leader_steps=2)
    found = found_gradient(learner, batch)[1]
    assert_same(found, reference_gradient(learner, batch)[1], 1e-9)
    flowing = reference_gradient(learner, batch, leader_flows=True)[1]
    assert max(float((found[n] - flowing[n]).abs().max()) for n in found) > 1e-3


@pytest.mark.parametrize("observation_std", [None, 0.5])
def test_the_chaser_calls_the_model_once_on_the_queries(observation_std):
    """For what it reports; the likelihood's gradient in the particles is no part of its loss."""
    sizes = []

    class Noting(nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    learner = BayesianMAML(Noting(3, 2), nn.MSELoss(), num_particles=2, observation_std=observation_std, compile=False)
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    learner.task_gradient(meta, numbers().select(0))
    assert sizes.count(7) == 1  # 6 examples in the support set, 13 for the leader


def test_one_particle_is_gradient_ascent_on_the_log_posterior():
    batch, model = classes(), models()["plain"]
    learner = BayesianMAML(copy.deepcopy(model), num_particles=1, inner_lr=0.05, prior_precision=0.5)
    task = batch.select(0)
    adapted = learner.adapt(task.support_x, task.support_y)
    objective = -nn.CrossEntropyLoss(reduction="sum")(model(task.support_x), task.support_y)
    objective = objective - 0.25 * sum(p.square().sum() for p in model.parameters())
    slopes = torch.autograd.grad(objective, list(model.parameters()))
    for (name, p), slope in zip(model.named_parameters(), slopes, strict=True):
        torch.testing.assert_close(adapted.state[name][0], p.detach() + 0.05 * slope)


def test_normalized_steps_do_not_depend_on_noise_and_set_size():
    """One particle on a Gaussian likelihood without a prior: MAML's step on half the mean squared error."""
    task, model = numbers().select(0), models()["plain"]
    for observation_std in (0.1, 3.0):
        learner = BayesianMAML(
            copy.deepcopy(model),
            nn.MSELoss(),
            num_particles=1,
            observation_std=observation_std,
            prior_precision=0.0,
            normalize_steps=True,
            inner_lr=0.1,
        )
        adapted = learner.adapt(task.support_x, task.support_y)
        loss = 0.5 * (model(task.support_x) - task.support_y).square().sum() / len(task.support_x)
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        for (name, p), slope in zip(model.named_parameters(), slopes, strict=True):
            torch.testing.assert_close(adapted.state[name][0], p.detach() - 0.1 * slope)


def test_a_learned_prior_precision_has_the_right_gradient():
    batch = classes()
    learner = BayesianMAML(
        models()["plain"],
        num_particles=2,
        inner_lr=0.1,
        meta_loss="nll",
        prior_precision=0.5,
        learned_prior_precision=True,
    )
    found = found_gradient(learner, batch)[1]["log_prior_precision"]

    def loss(shift):
        with torch.no_grad():
            learner.log_prior_precision += shift
        value = float(learner.training_step(batch, 0).detach())
        with torch.no_grad():
            learner.log_prior_precision -= shift
        return value

    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert float(found) == pytest.approx(numeric, rel=1e-5)


def test_the_reported_density_has_the_learned_priors_normalizer():
    """The log-density before the first step, with the prior as torch's normal distribution but for (2π)^(-d/2)."""
    task = classes().select(0)
    learner = BayesianMAML(
        models()["plain"], num_particles=2, meta_loss="nll", prior_precision=0.5, learned_prior_precision=True
    )
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    expected = []
    for particle in range(2):
        values = {
            n: meta[f"model.{n}"] if particle == 0 else meta[f"other_particles.{n.replace('.', '/')}"][0]
            for n in learner.adapted_names
        }
        logits = functional_call(learner.model, values, (task.support_x,))
        density = torch.distributions.Categorical(logits=logits).log_prob(task.support_y).sum()
        for value in values.values():
            prior = torch.distributions.Normal(0.0, 0.5**-0.5)
            density = density + (prior.log_prob(value) + 0.5 * math.log(2 * math.pi)).sum()
        expected.append(-density)
    result = learner.task_gradient(meta, task)[1]
    torch.testing.assert_close(result.support_losses[0], torch.stack(expected).mean())


def test_particles_spread_to_the_posterior_of_a_linear_model():
    """Many Stein steps on a one-parameter Gaussian posterior: mean and, roughly, standard deviation."""
    x, y = torch.ones(20, 1), 2 + torch.randn(20, 1)
    learner = BayesianMAML(
        nn.Linear(1, 1, bias=False),
        nn.MSELoss(),
        num_particles=20,
        observation_std=1.0,
        prior_precision=1.0,
        inner_lr=0.05,
    )
    particles = learner.adapt(x, y, steps=3000).state["weight"].flatten()
    assert float(particles.mean()) == pytest.approx(float(y.sum() / 21), abs=1e-3)
    assert float(particles.std(correction=0)) == pytest.approx(21**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_particles": 0}, "num_particles=0 must be an integer of at least 1"),
        ({"leader_steps": 0}, "leader_steps=0 must be an integer of at least 1"),
        ({"meta_loss": "elbo"}, "meta_loss='elbo' is not one of"),
        ({"prior_precision": -1.0}, "prior_precision=-1.0 must be 0 or a positive number"),
        ({"learned_prior_precision": True}, "needs meta_loss='nll'"),
        ({"learned_prior_precision": True, "meta_loss": "nll", "prior_precision": 0.0}, "and prior_precision > 0"),
        ({"observation_std": 0.1}, "observation_std=0.1 but the likelihood is categorical"),
        ({"loss_fn": nn.L1Loss()}, r"is no negative log-likelihood.*nn.CrossEntropyLoss\(\)"),
        ({"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}, "is no negative log-likelihood"),
        ({"loss_fn": nn.CrossEntropyLoss(weight=torch.ones(2))}, "is no negative log-likelihood"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BayesianMAML(models()["plain"], **wrong)


def test_a_learned_prior_precision_starts_where_it_is_told():
    learner = BayesianMAML(models()["plain"], meta_loss="nll", prior_precision=1.0, learned_prior_precision=True)
    assert float(learner.log_prior_precision.detach()) == 0
    learner = BayesianMAML(models()["plain"], meta_loss="nll", prior_precision=0.3, learned_prior_precision=True)
    assert float(learner.log_prior_precision.detach().exp()) == pytest.approx(0.3)


def test_particles_that_would_start_alike_are_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return x @ self.weight

    for count in (2, 3):
        with pytest.raises(ValueError, match="particle_noise"):
            BayesianMAML(Bare(), num_particles=count)
    constant = nn.LayerNorm(3)  # initialized anew it is the same each time, though not what it is now
    nn.init.normal_(constant.weight)
    with pytest.raises(ValueError, match="particle_noise"):
        BayesianMAML(constant, nn.MSELoss(), num_particles=3)
    BayesianMAML(constant, nn.MSELoss(), num_particles=2)
    with pytest.raises(ValueError, match="particle_noise=0.0 must be a positive number"):
        BayesianMAML(Bare(), particle_noise=0.0)
    learner = BayesianMAML(Bare(), particle_noise=0.1)
    assert learner.other_particles["weight"].shape == (4, 3, 2)
    assert float((learner.other_particles["weight"] - learner.model.weight).detach().std()) == pytest.approx(
        0.1, rel=0.5
    )


def test_noise_that_sets_the_rate_of_normalized_steps_has_the_right_gradient():
    learner = BayesianMAML(
        models()["plain"],
        nn.MSELoss(),
        num_particles=3,
        inner_lr=0.3,
        inner_steps=3,
        meta_loss="nll",
        normalize_steps=True,
    )
    batch = numbers()
    assert_same(found_gradient(learner, batch)[1], reference_gradient(learner, batch)[1], 1e-9)


@pytest.mark.parametrize("noise", [{"observation_std": 0.5}, {}], ids=["fixed", "none"])
def test_normalized_steps_without_learned_noise(noise):
    """With one particle and no prior, steps of rate α σ² / n on the sum are MAML's on the mean."""
    loss_fn, batch = (nn.MSELoss(), numbers()) if noise else (nn.CrossEntropyLoss(), classes())
    model = models()["plain"]
    options = {"num_particles": 1, "prior_precision": 0.0, "meta_loss": "nll", "inner_lr": 0.1, "inner_steps": 2}
    learner = BayesianMAML(copy.deepcopy(model), loss_fn, normalize_steps=True, **options, **noise)

    def half_squared_error(output, target):
        return 0.5 * (output - target).square().sum(1).mean()

    inner = half_squared_error if noise else loss_fn
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    losses = []
    for i in range(batch.num_tasks):
        task, fast = batch.select(i), parameters
        for _ in range(2):
            loss = inner(functional_call(model, fast, (task.support_x,)), task.support_y)
            slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: p - 0.1 * slope for (n, p), slope in zip(fast.items(), slopes, strict=True)}
        output = functional_call(model, fast, (task.query_x,))
        if noise:
            losses.append(-torch.distributions.Normal(output, 0.5).log_prob(task.query_y).sum(1).mean())
        else:
            losses.append(loss_fn(output, task.query_y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    found = found_gradient(learner, batch)[1]
    assert_same(found, {f"model.{n}": slope for n, slope in zip(parameters, expected, strict=True)}, 1e-9)


@pytest.mark.parametrize("meta_loss", ["nll", "chaser"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("task_chunk_size", [None, 1])
def test_the_gradient_through_steps_of_any_rule_is_that_of_autograd(rule, meta_loss, task_chunk_size):
    learner = BayesianMAML(
        models()["plain"],
        nn.MSELoss(),
        num_particles=3,
        inner_lr=0.02,
        inner_steps=3,
        leader_steps=2,
        meta_loss=meta_loss,
        inner_optimizer=RULES[rule],
        normalize_steps=rule == "adam",
        task_chunk_size=task_chunk_size,
    )
    batch = numbers()
    found, expected = found_gradient(learner, batch)[1], reference_gradient(learner, batch, rule=rule)[1]
    assert_same({name: found[name] for name in expected}, expected, 1e-8)


@pytest.mark.parametrize("meta_loss", ["nll", "chaser"])
def test_models_that_cannot_be_vectorized_train_one_task_at_a_time(meta_loss):
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 and self.weight.sum() > -1e9 else -super().forward(x)

    learner, batch = BayesianMAML(Branching(3, 2), meta_loss=meta_loss, task_chunk_size=1), classes()
    learner.training_step(batch, 0).backward()
    assert torch.isfinite(learner.evaluate(batch).loss).all()


def test_what_a_likelihood_cannot_leave_out_is_refused():
    with pytest.raises(ValueError, match="model has dropout"):
        BayesianMAML(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)))
    BayesianMAML(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0)))
    with pytest.raises(ValueError, match="is no negative log-likelihood"):
        BayesianMAML(models()["plain"], nn.CrossEntropyLoss(ignore_index=0))
    batch = classes()
    ignored = batch._replace(query_y=batch.query_y.index_fill(1, torch.tensor([0]), -100))
    with pytest.raises(ValueError, match="query_y holds the label -100"):
        BayesianMAML(models()["plain"]).training_step(ignored, 0)


@pytest.mark.parametrize("normalize_steps", [False, True])
def test_ragged_tasks_train_as_each_alone(normalize_steps):
    tasks = [Episode(*(torch.randn(n, d) for n, d in [(s, 3), (s, 2), (q, 3), (q, 2)])) for s, q in [(2, 5), (4, 3)]]
    for meta_loss in ("chaser", "nll"):
        learner = BayesianMAML(
            models()["plain"],
            nn.MSELoss(),
            num_particles=3,
            inner_lr=0.05,
            meta_loss=meta_loss,
            normalize_steps=normalize_steps,
        )
        alone = [found_gradient(learner, collate_episodes([task]))[1] for task in tasks]
        together = found_gradient(learner, collate_episodes(tasks))[1]
        assert_same(together, {name: (alone[0][name] + alone[1][name]) / 2 for name in together}, 1e-9)
