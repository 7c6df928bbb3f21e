"""An independent reference: MAML by a plain Python loop of ``torch.autograd.grad``, one task after another."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import Episode
from lightning_meta.inner import SGD, Adam, Chain, ClipNorm, Momentum, WeightDecay


def without_running_statistics(model: nn.Module) -> nn.Module:
    """A copy whose batch normalization uses the batch's statistics, as torch itself offers it."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def loop_loss(model, loss_fn, parameters, task, lr, steps, first_order=False, adapted=None):
    """One task's query loss after plain SGD steps, differentiable in ``parameters``."""
    names = list(parameters) if adapted is None else adapted
    fast = dict(parameters)
    for _ in range(steps):
        loss = loss_fn(functional_call(model, fast, (task.support_x,)), task.support_y)
        gradients = torch.autograd.grad(loss, [fast[n] for n in names], create_graph=not first_order)
        fast = {**fast, **{n: fast[n] - lr * g for n, g in zip(names, gradients, strict=True)}}
    return loss_fn(functional_call(model, fast, (task.query_x,)), task.query_y)


def loop_meta_gradient(model, loss_fn, batch: Episode, lr, steps, first_order=False, adapted=None):
    """The mean meta-loss and meta-gradient over a batch's tasks."""
    model = without_running_statistics(model)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    losses = [
        loop_loss(model, loss_fn, parameters, batch.select(i), lr, steps, first_order, adapted)
        for i in range(batch.num_tasks)
    ]
    loss = torch.stack(losses).mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss.detach(), {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), gradients, strict=True)
    }


RULES = {
    "sgd": SGD(),
    "momentum": Momentum(0.8),
    "adam": Adam(0.7, 0.9, eps=1e-3),
    "chain": Chain([ClipNorm(0.3), WeightDecay(0.1)], Momentum(0.8)),
}


class NaiveRule:
    """One of `RULES`, written out for a list of tensors; it keeps its state, so that each inner loop needs its own."""

    def __init__(self, name: str) -> None:
        self.name, self.steps, self.first, self.second = name, 0, [0.0] * 99, [0.0] * 99

    def __call__(self, values, slopes, rate):
        self.steps += 1
        if self.name == "chain":
            norm = sum(slope.square().sum() for slope in slopes).sqrt()
            slopes = [slope * 0.3 / norm for slope in slopes] if float(norm.detach()) > 0.3 else slopes
            slopes = [slope + 0.1 * value for value, slope in zip(values, slopes, strict=True)]
        if self.name in ("momentum", "chain"):
            self.first = slopes = [0.8 * first + slope for first, slope in zip(self.first, slopes, strict=False)]
        if self.name == "adam":
            self.first = [0.7 * first + 0.3 * slope for first, slope in zip(self.first, slopes, strict=False)]
            self.second = [0.9 * second + 0.1 * slope**2 for second, slope in zip(self.second, slopes, strict=False)]
            unbiased = [
                (f / (1 - 0.7**self.steps), s / (1 - 0.9**self.steps))
                for f, s in zip(self.first, self.second, strict=True)
            ]
            slopes = [first / (second + 1e-6).sqrt() for first, second in unbiased]
        return [value - rate * slope for value, slope in zip(values, slopes, strict=True)]


def meta_gradient(learner, batch: Episode):
    """The learner's own meta-loss and meta-gradient, as an optimizer would see them."""
    learner.zero_grad()
    loss = learner.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
