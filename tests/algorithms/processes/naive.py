"""Neural processes by plain loops over examples, from their papers' equations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import Episode

TASK_SIZES = [(4, 6), (7, 3), (5, 5)]


def regression_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))


def class_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))


def tasks() -> list[Episode]:
    """Regressions of unequal sizes."""
    return [Episode(torch.randn(s, 2), torch.randn(s, 1), torch.randn(q, 2), torch.randn(q, 1)) for s, q in TASK_SIZES]


def class_task() -> Episode:
    return Episode(torch.randn(6, 2), torch.arange(6) % 3, torch.randn(4, 2), torch.arange(4) % 3)


def pair(model, x, y):
    """One example as the networks see it."""
    return torch.cat([model[:2](x[None])[0], y])


def gaussian_nll(model, decoded, x, y, min_std):
    """Minus the log-density of one target, for the decoder's two outputs at one input."""
    mean, width = model(x[None])[0, 0] + decoded[0], decoded[1]
    return -torch.distributions.Normal(mean, min_std + (1 - min_std) * F.softplus(width)).log_prob(y[0])


def examples(task):
    """The examples of the support set, then those of the query set."""
    return [*zip(task.support_x, task.support_y, strict=True), *zip(task.query_x, task.query_y, strict=True)]


def all_gradients(learner, batch):
    """The loss, and the gradients of all that is trained, as an optimizer would see them."""
    learner.zero_grad()
    loss = learner.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in learner.named_parameters()}
