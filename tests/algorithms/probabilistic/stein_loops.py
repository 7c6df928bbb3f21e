"""Bayesian MAML's meta-gradient by a plain loop of autograd."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import Episode
from tests.reference import NaiveRule, without_running_statistics


def naive_direction(x, slopes):
    """``[particles, size]``, by two loops."""
    count = len(x)
    if count == 1:
        return slopes
    pairs = [float((x[i] - x[j]).detach().square().sum()) for i in range(count) for j in range(i)]
    h = float(torch.tensor(pairs).quantile(0.5)) / math.log(count)
    rows = []
    for i in range(count):
        row = 0
        for j in range(count):
            k = torch.exp(-(x[i] - x[j]).square().sum() / h)
            row = row + k * slopes[j] - 2 / h * (x[j] - x[i]) * k
        rows.append(row / count)
    return torch.stack(rows)


def models():
    batch_norm = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    layer_norm = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2))
    return {
        "plain": nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
        "batch": batch_norm,
        "layer": layer_norm,
    }


def reference_gradient(learner, batch, leader_flows=False, rule="sgd"):
    """The meta-loss's gradient by autograd through plain loops over tasks and particles."""
    model = without_running_statistics(learner.model)
    names = list(learner.adapted_names)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in learner.named_parameters()}
    shared = {n.removeprefix("model."): p for n, p in parameters.items() if n.startswith("model.")}
    regression = isinstance(learner.loss_fn, nn.MSELoss)

    def particles():
        def one(m, name):
            return (
                parameters[f"model.{name}"]
                if m == 0
                else parameters[f"other_particles.{name.replace('.', '/')}"][m - 1]
            )

        return torch.stack([torch.cat([one(m, n).flatten() for n in names]) for m in range(learner.num_particles)])

    def unflatten(flat):
        sizes = [shared[n].numel() for n in names]
        return {n: part.view_as(shared[n]) for n, part in zip(names, flat.split(sizes), strict=True)}

    def log_likelihood(flat, x, y):
        output = functional_call(model, {**shared, **unflatten(flat)}, (x,))
        if regression:
            return torch.distributions.Normal(output, parameters["noise.log_std"].exp()).log_prob(y).sum(1)
        return torch.distributions.Categorical(logits=output).log_prob(y)

    def step(x, inputs, targets, descend):
        logs = [
            log_likelihood(particle, inputs, targets).sum() - 0.5 * learner.prior_precision * particle.square().sum()
            for particle in x
        ]
        slopes = torch.autograd.grad(torch.stack(logs).sum(), x, create_graph=True)[0]
        rate = learner.inner_lr
        if learner.normalize_steps:
            rate = rate * (2 * parameters["noise.log_std"]).exp() / len(inputs)
        return descend([x], [-naive_direction(x, slopes)], rate)[0]

    losses = []
    for i in range(batch.num_tasks):
        task = batch.select(i)
        x, descend = particles(), NaiveRule(rule)
        for _ in range(learner.inner_steps):
            x = step(x, task.support_x, task.support_y, descend)
        if learner.meta_loss == "nll":
            logs = torch.stack([log_likelihood(particle, task.query_x, task.query_y) for particle in x])
            losses.append(-(logs.exp().mean(0).log()).mean())
        else:
            leader = x if leader_flows else x.detach().requires_grad_()
            for _ in range(learner.leader_steps):
                leader = step(
                    leader,
                    torch.cat([task.support_x, task.query_x]),
                    torch.cat([task.support_y, task.query_y]),
                    descend,
                )
            losses.append((x - (leader if leader_flows else leader.detach())).square().sum())
    loss = torch.stack(losses).mean()
    names = [n for n in parameters if not (learner.meta_loss == "chaser" and n.startswith("noise."))]
    gradients = torch.autograd.grad(loss, [parameters[n] for n in names], allow_unused=True)
    return loss.detach(), {
        n: torch.zeros_like(parameters[n]) if g is None else g for n, g in zip(names, gradients, strict=True)
    }


def found_gradient(learner, batch):
    learner.zero_grad()
    loss = learner.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in learner.named_parameters()}


def classes():
    return Episode(torch.randn(2, 6, 3), torch.randint(2, (2, 6)), torch.randn(2, 7, 3), torch.randint(2, (2, 7)))


def numbers():
    return Episode(*(torch.randn(2, n, d) for n, d in [(6, 3), (6, 2), (7, 3), (7, 2)]))
