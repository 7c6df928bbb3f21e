"""The whole objectives of the learners that draw, with the draws fixed, against the formulas of their docstrings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Gamma, Normal, kl_divergence

from lightning_meta import ABML, AmortizedMAML, Episode
from tests.reference import RULES, NaiveRule

pytestmark = pytest.mark.usefixtures("float64")

DRAWS = (0.6, -1.1)
ALPHA, WEIGHT, TASKS, QUERIES = 0.1, 0.3, 2, 7


@pytest.fixture
def fix_noise(monkeypatch):
    """Makes every normal number of the first, second, ... of some draws what `DRAWS` says, over and over."""

    def fix(calls_per_draw):
        calls = [value for value in DRAWS for _ in range(calls_per_draw)]
        count = 0

        def fixed(like):
            nonlocal count
            count += 1
            return torch.full_like(like, calls[(count - 1) % len(calls)])

        monkeypatch.setattr(torch, "randn_like", fixed)
        monkeypatch.setattr(torch, "randn", lambda *size, **_: spread_out(*size))

    return fix


def spread_out(*size):
    return torch.linspace(-1.5, 1.0, math.prod(size)).reshape(size)


def episodes(kind):
    x, query = torch.randn(TASKS, 5, 2), torch.randn(TASKS, QUERIES, 2)
    if kind == "classes":
        return Episode(x, torch.randint(3, (TASKS, 5)), query, torch.randint(3, (TASKS, QUERIES)))
    return Episode(x, torch.randn(TASKS, 5, 3), query, torch.randn(TASKS, QUERIES, 3))


def log_likelihood(output, y, parameters):
    """``[..., examples]``"""
    if "noise.log_std" in parameters:
        return Normal(output, parameters["noise.log_std"].exp()).log_prob(y).sum(-1)
    return Categorical(logits=output).log_prob(y)


def rate(parameters, examples, normalized):
    if not normalized:
        return ALPHA
    return (
        ALPHA / examples * (2 * parameters["noise.log_std"]).exp()
        if "noise.log_std" in parameters
        else ALPHA / examples
    )


def divergence(q, p):
    """Of dictionaries of pairs of mean and logarithm of the standard deviation."""
    return sum(kl_divergence(Normal(q[n][0], q[n][1].exp()), Normal(p[n][0], p[n][1].exp())).sum() for n in q)


def descended(objective, values, rate, descend):
    values = [value.clone() for value in values]  # whatever they depend on, the step is along their own gradient
    slopes = torch.autograd.grad(objective(*values), values, create_graph=True)
    return descend(values, slopes, rate)


def scattered(learner):
    """Away from zeros, ones and equal values, which could hide a mistake."""
    with torch.no_grad():
        for p in learner.parameters():
            p += 0.2 * torch.randn_like(p)
    return learner


def assert_objective(learner, objective, batch):
    """Loss and gradient of a training step are the mean over tasks of an objective's; which returns its parts too."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in learner.named_parameters()}
    expected, parts = zip(*[objective(parameters, batch.select(i)) for i in range(TASKS)], strict=True)
    expected = torch.stack(expected).mean()
    loss = learner.training_step(batch, 0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-8, atol=1e-8)
    slopes = torch.autograd.grad(expected, list(parameters.values()), materialize_grads=True)
    for (name, p), slope in zip(learner.named_parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    result = learner.task_loss({name: p.detach() for name, p in learner.named_parameters()}, batch.select(0))[1]
    reported = {**result.diagnostics, "losses": result.support_losses}
    for name, value in parts[0].items():
        torch.testing.assert_close(reported[name].detach(), value.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("kind", ["numbers", "classes"])
@pytest.mark.parametrize("rule", ["sgd", "adam", "chain"])
def test_the_objective_of_abml(kind, normalized, rule, fix_noise):
    learner = ABML(
        nn.Linear(2, 3),
        nn.MSELoss() if kind == "numbers" else nn.CrossEntropyLoss(),
        num_samples=2,
        eval_num_samples=3,
        kl_weight=WEIGHT,
        initial_log_std=-1.0,
        num_tasks=20,
        normalize_steps=normalized,
        inner_lr=ALPHA,
        inner_steps=2,
        inner_optimizer=RULES[rule],
        task_chunk_size=1,
        compile=False,
    )
    names = ("weight", "bias")

    def outputs(q, x):
        mean = x @ q["weight"][0].T + q["bias"][0]
        variance = x**2 @ (2 * q["weight"][1]).exp().T + (2 * q["bias"][1]).exp()
        return torch.stack([mean + draw * variance.sqrt() for draw in DRAWS])

    def objective(parameters, task):
        def expected(q, x, y):
            return log_likelihood(outputs(q, x), y, parameters).sum(1).mean()

        p = {n: (parameters[f"model.{n}"], parameters[f"log_std.{n}"]) for n in names}
        q, losses, descend = p, [], NaiveRule(rule)
        for _ in range(2):

            def bound(*values):
                q = dict(zip(names, (values[:2], values[2:]), strict=True))
                return WEIGHT * divergence(q, p) - expected(q, task.support_x, task.support_y)

            losses.append(bound(*q["weight"], *q["bias"]))
            values = descended(bound, [*q["weight"], *q["bias"]], rate(parameters, 5, normalized), descend)
            q = dict(zip(names, (values[:2], values[2:]), strict=True))
        hyper_prior = sum(
            Normal(0.0, 1.0).log_prob(mean).sum() + Gamma(1.0, 0.01).log_prob((-2 * log_std).exp()).sum()
            for mean, log_std in p.values()
        )
        both = expected(q, task.support_x, task.support_y) + expected(q, task.query_x, task.query_y)
        logs = log_likelihood(outputs(q, task.query_x), task.query_y, parameters)
        parts = {"kl": divergence(q, p), "nll": -logs.exp().mean(0).log().mean(), "losses": torch.stack(losses)}
        return WEIGHT * parts["kl"] - both - hyper_prior / 20, parts

    learner, batch = scattered(learner), episodes(kind)
    fix_noise(1)
    assert_objective(learner, objective, batch)


class MeanThenLinear(nn.Linear):
    def forward(self, elements):
        return super().forward(elements.mean(0))


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("kind", ["numbers", "classes"])
@pytest.mark.parametrize("rule", ["sgd", "adam", "chain"])
def test_the_objective_of_amortized_maml(kind, inner_steps, rule, fix_noise):
    names, sizes = ("0.weight", "0.bias"), (8, 4)
    learner = AmortizedMAML(
        nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)),
        nn.MSELoss() if kind == "numbers" else nn.CrossEntropyLoss(),
        encoder=MeanThenLinear(7, 24),
        num_samples=2,
        eval_num_samples=3,
        head_samples=4,
        kl_weight=WEIGHT,
        initial_log_std=-1.0,
        ridge_penalty=0.5,
        inner_lr=ALPHA,
        inner_steps=inner_steps,
        inner_optimizer=RULES[rule],
        task_chunk_size=1,
        compile=False,
    )

    def features(body, x):
        return torch.cat([torch.tanh(x @ body[0].T + body[1]), torch.ones(len(x), 1)], dim=1)

    def objective(parameters, task):
        penalty = parameters["log_penalty"].exp()
        own_head = torch.cat([parameters["model.2.weight"].T, parameters["model.2.bias"][None]])
        y = nn.functional.one_hot(task.support_y, 3).double() if kind == "classes" else task.support_y
        p = {n: (parameters[f"model.{n}"], parameters[f"log_std.{n.replace('.', '/')}"]) for n in names}
        seen = torch.cat([features([p[n][0] for n in names], task.support_x)[:, :4], y], dim=1).mean(0)
        offsets, ratios = (seen @ parameters["encoder.weight"].T + parameters["encoder.bias"]).chunk(2)
        q = {
            n: (p[n][0] + offset.view_as(p[n][0]), p[n][1] + ratio.view_as(p[n][0]))
            for n, offset, ratio in zip(names, offsets.split(sizes), ratios.split(sizes), strict=True)
        }

        def scores(output):
            return output if kind == "numbers" else parameters["log_scale"].exp() * output + parameters["shift"]

        def inverse(h):
            return torch.linalg.inv(h.T @ h + penalty * torch.eye(5))

        densities, losses = [], torch.zeros(inner_steps)
        for draw in DRAWS:
            body = [q[n][0] + draw * q[n][1].exp() for n in names]
            h = features(body, task.support_x)
            head = inverse(h) @ (h.T @ y + penalty * own_head)
            descend = NaiveRule(rule)
            losses[0] += (h @ head - y).square().mean().detach() / 2
            for step in range(1, inner_steps):

                def support_loss(*values):
                    output = scores(features(values[:2], task.support_x) @ values[2])
                    return -log_likelihood(output, task.support_y, parameters).sum()

                losses[step] += support_loss(*body, head).detach() / 2
                *body, head = descended(support_loss, [*body, head], rate(parameters, 5, normalized=True), descend)
            h, query = features(body, task.support_x), features(body, task.query_x)
            output, variance = query @ head, ((query @ inverse(h)) * query).sum(1, keepdim=True)
            if kind == "numbers":
                deviation = parameters["noise.log_std"].exp() * (1 + variance).sqrt()
                densities.append(Normal(output, deviation).log_prob(task.query_y).sum(1).exp())
            else:
                spread = spread_out(4, QUERIES, 3) * variance.sqrt() * parameters["log_head_std"].exp()
                densities += list(log_likelihood(scores(output + spread), task.query_y, parameters).exp())
        nll = -torch.stack(densities).mean(0).log().mean()
        parts = {"nll": nll, "kl": divergence(q, p), "ridge_penalty": penalty, "losses": losses}
        return nll + WEIGHT / QUERIES * parts["kl"], parts

    learner, batch = scattered(learner), episodes(kind)
    fix_noise(len(names))
    assert_objective(learner, objective, batch)


@pytest.mark.parametrize("cls", [ABML, AmortizedMAML])
def test_evaluation_takes_its_own_number_of_draws(cls):
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    learner = cls(model, nn.MSELoss(), num_samples=2, eval_num_samples=5).eval()
    batch = episodes("numbers")
    task = learner.adapt(batch.support_x[0], batch.support_y[0])
    assert task.samples(batch.query_x[0]).outputs.shape == (5, QUERIES, 3)
    assert learner.evaluate(batch).samples["outputs"].shape == (TASKS, 5, QUERIES, 3)
