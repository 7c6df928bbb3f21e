"""Query losses of each task after numbers of inner steps and with other inner rates, also where tasks diverge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_meta.analysis.held_out import evaluation_mode
from lightning_meta.episodes import Episode, MetaParameters, TaskResult
from lightning_meta.inner import InnerRates
from lightning_meta.learners import GradientLearner
from lightning_meta.learners.evaluation import query_size
from lightning_meta.learners.randomness import reproducible_draws
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import likelihood_of
from lightning_meta.likelihoods.predictive import mean_output


def losses_by_step(
    learner: TaskLearner, batch: Episode, steps: Sequence[int], rate: float | None = None, seed: int = 0
) -> Tensor:
    """Return each task's query loss after numbers of inner steps, ``[tasks, steps]``, in double precision.

    A task that diverges has an infinite loss, and leaves the others as they are. Layers such as dropout work as in
    evaluation. The learner does not change.

    Args:
        learner: The learner.
        batch: The tasks.
        steps: Numbers of inner steps in ascending order; 0 is the initialization.
        rate: Another inner rate; for a learner whose rates are learned, a factor on them; None: the learner's own.
        seed: The seed of random draws: two calls with the same tasks draw the same numbers.
    """
    learned = learned_rate_names(learner)
    factor = 1.0 if rate is None else rate
    queries = query_size(batch)

    def task_losses(meta: MetaParameters, task: Episode) -> TaskResult:
        meta = {name: p * factor if name in learned else p for name, p in meta.items()}
        losses = []
        for step, (state, _) in enumerate(learner.adaptation(meta, task.support, steps[-1])):
            if step in steps:
                samples = learner.evaluation_samples(meta, state, task.support, task.query_x)
                output = mean_output(likelihood_of(learner.loss_fn), samples)
                losses.append(learner.loss(output, task.query_y, task.query_mask))
        empty = losses[-1].new_zeros(())
        found = {"losses": torch.stack(losses)}
        return TaskResult(empty, empty.expand(1, queries), empty.new_zeros(0), diagnostics=found)

    own = None if learned else rate
    with evaluation_mode(learner), with_rate(learner, own), reproducible_draws(seed, 0, 0, learner.device):
        losses = learner.map_tasks(task_losses, batch).diagnostics["losses"].double()
    return torch.where(losses.isfinite(), losses, math.inf)


def check_has_rate(learner: TaskLearner, of_any_solver: bool = False) -> GradientLearner:
    """Return the learner; raise a ValueError unless it takes inner steps, and of a rate unless ``of_any_solver``."""
    if not isinstance(learner, GradientLearner):
        raise ValueError(
            f"{type(learner).__name__} has no inner learning rate: take a learner with an inner loop of gradient "
            "steps, such as MAML, ANIL or Reptile"
        )
    if getattr(learner, "inner_solver", None) == "hessian_free" and not of_any_solver:
        raise ValueError(
            'inner_solver="hessian_free" takes no inner learning rate, its steps start at the whole Newton step: there '
            'is none to search for, except with inner_solver="gradient_descent"'
        )
    return learner


def learned_rate_names(learner: TaskLearner) -> frozenset[str]:
    """Return the names of the learner's parameters that are inner rates; none if its rates are not learned."""
    modules = [(prefix, module) for prefix, module in learner.named_modules() if isinstance(module, InnerRates)]
    return frozenset(f"{prefix}.{name}" for prefix, module in modules for name, _ in module.named_parameters())


@contextmanager
def with_rate(learner: TaskLearner, rate: float | None) -> Iterator[None]:
    """Set the inner rate inside the block."""
    holders: list[Any] = [learner, *(module for module in learner.modules() if isinstance(module, InnerRates))]
    before = [getattr(holder, "inner_lr", None) for holder in holders]
    try:
        if rate is not None:
            for holder in holders:
                holder.inner_lr = rate
        yield
    finally:
        if rate is not None:
            for holder, own in zip(holders, before, strict=True):
                holder.inner_lr = own
