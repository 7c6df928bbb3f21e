"""Training loops, as users of learn2learn write them and as ours run, on the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta import Episode

STEPS = 20
TASKS = 4

Optimizer = Callable[[Any], torch.optim.Optimizer]


def regression_batches(inputs: int = 3, outputs: int = 2) -> Iterator[Episode]:
    for _ in range(STEPS):
        support_x, query_x = torch.randn(TASKS, 5, inputs), torch.randn(TASKS, 7, inputs)
        weight = torch.randn(TASKS, inputs, outputs)
        yield Episode(support_x, (support_x @ weight).sin(), query_x, (query_x @ weight).sin())


def image_batches() -> Iterator[Episode]:
    for _ in range(STEPS):
        support_x, query_x = torch.randn(TASKS, 6, 1, 8, 8), torch.randn(TASKS, 9, 1, 8, 8)
        yield Episode(support_x, torch.arange(6).expand(TASKS, 6) % 3, query_x, torch.arange(9).expand(TASKS, 9) % 3)


def train_theirs(
    wrapper: Any,
    batches: list[Episode],
    loss_fn: nn.Module,
    inner_steps: int,
    optimizer: Optimizer,
    features: nn.Module | None = None,
) -> None:
    """Clone, adapt, add up the tasks' query losses, take the mean, step."""
    parameters = list(wrapper.parameters()) + ([] if features is None else list(features.parameters()))
    outer = optimizer(parameters)
    before = features or nn.Identity()
    for batch in batches:
        outer.zero_grad()
        total = torch.zeros(())
        for task in (batch.select(i) for i in range(batch.num_tasks)):
            clone = wrapper.clone()
            for _ in range(inner_steps):
                clone.adapt(loss_fn(clone(before(task.support_x)), task.support_y))
            total = total + loss_fn(clone(before(task.query_x)), task.query_y)
        (total / batch.num_tasks).backward()
        outer.step()


def train_ours(learner: Any, batches: list[Episode], optimizer: Optimizer) -> None:
    outer = optimizer(learner.parameters())
    for batch in batches:
        outer.zero_grad()
        learner.training_step(batch, 0).backward()
        outer.step()


def largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Over all parameters, which both modules have in the same order."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    return max((float((a - b).detach().abs().max()) for a, b in pairs), default=0.0)
