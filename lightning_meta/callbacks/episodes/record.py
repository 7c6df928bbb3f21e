"""What an evaluation records for the dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.callbacks.episodes.inner_gradients import with_recorder
from lightning_meta.callbacks.posterior_bands import Band, band_of_task
from lightning_meta.episodes import Episode
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import likelihood_of
from lightning_meta.likelihoods.predictive import Likelihood, Prediction
from lightning_meta.metrics.task_metrics import mean_and_interval

_MOST_STEPS = 10  # numbers of inner steps that are shown, besides 0


class Curve(NamedTuple):
    """A mean over tasks by inner step.

    Attributes:
        steps: The numbers of inner steps.
        mean: The means.
        ci95: The half-widths of their 95 % intervals; NaN for a single task.
        tasks: Which tasks, as "the 4 shown tasks".
    """

    steps: list[int]
    mean: list[float]
    ci95: list[float]
    tasks: str


class ShownEpisode(NamedTuple):
    """One task with its predictions.

    Attributes:
        number: The task's index in its split.
        task: Its sets without padding, on the CPU; real numbers are float32.
        prediction: The prediction of its queries, on the CPU.
        band: The prediction between them, of tasks with one real input and one real target.
        likelihood: The distribution of the targets, if the loss names one.
    """

    number: int
    task: Episode
    prediction: Prediction
    band: Band | None
    likelihood: Likelihood | None


class Record(NamedTuple):
    """What is shown of an evaluation's first tasks.

    Attributes:
        metric: The name of the metric, "acc", "mse", or "loss" for targets that have neither.
        curve: The metric by inner step; None for learners without inner steps.
        support_loss: The support loss before each inner step.
        gradient_norm: The norm of the gradient that each inner step takes.
        episodes: The shown tasks.
    """

    metric: str
    curve: Curve | None
    support_loss: Curve | None
    gradient_norm: Curve | None
    episodes: list[ShownEpisode]


def record_of(
    learner: TaskLearner,
    batches: Sequence[Episode],
    per_task: Mapping[str, Tensor],
    num_episodes: int,
    processes: int = 1,
) -> Record:
    """Adapt to the first tasks of an evaluation again, and keep what happens at each inner step.

    Args:
        learner: The learner.
        batches: The first batches of this process, with ``num_episodes`` tasks if it has so many.
        per_task: The metrics of all tasks by name, ``[tasks]``.
        num_episodes: How many tasks to show.
        processes: How many processes share the tasks.
    """
    shown = f"the {min(num_episodes, sum(batch.num_tasks for batch in batches))} shown tasks"
    metric = next((name for name in ("acc", "mse") if name in per_task), "loss")
    steps = shown_steps(learner.eval_inner_steps)
    results = []
    for position, batch in enumerate(batches):
        with learner.draws_of(position):  # as the evaluation that logged
            results.append(learner.evaluate(batch, record=steps))
    losses = torch.cat([result.support_losses for result in results])  # [tasks, steps]
    curve = None
    if learner.eval_inner_steps and metric != "loss":
        by_step = _metric_by_step(learner, batches, results, per_task, metric, steps, processes)
        curve = _curve(steps, by_step, f"all {len(by_step)} tasks" if learner.log_step_metrics else shown)
    episodes, norms = [], []
    for number in range(min(num_episodes, sum(batch.num_tasks for batch in batches))):
        task = _task(batches, number)
        recorded, recorder = with_recorder(learner)
        adapted = recorded.adapt(task.support_x, task.support_y)
        norms.append(recorder.norms() if recorder else {})  # before predictions, which may take steps too
        prediction = Prediction(*map_leaves(_shown, tuple(adapted.predict(task.query_x))))
        is_curve = _is_a_curve(task) and prediction.mean.shape == task.query_y.shape
        band = band_of_task(adapted, task) if is_curve else None
        likelihood = likelihood_of(learner.loss_fn)
        episodes.append(ShownEpisode(number * processes, map_leaves(_shown, task), prediction, band, likelihood))
    before = [step for step in shown_steps(losses.shape[1] - 1) if step < losses.shape[1]] if losses.numel() else []
    taken = sorted(set.intersection(*map(set, norms)) & set(shown_steps(max(map(max, norms))))) if all(norms) else []
    # Of float32, whatever the trainer makes torch's default.
    norms_by_step = torch.tensor([[own[step] for step in taken] for own in norms], dtype=torch.float32)
    return Record(
        metric,
        curve,
        _curve(before, losses[:, before].float(), shown) if before else None,
        _curve(taken, norms_by_step, shown) if taken else None,
        episodes,
    )


def shown_steps(steps: int) -> tuple[int, ...]:
    """Return at most eleven numbers of inner steps from 0 to ``steps``, evenly spread."""
    count = min(steps, _MOST_STEPS)
    return tuple(round(step * steps / count) for step in range(count + 1)) if count else (0,)


def _metric_by_step(
    learner: TaskLearner,
    batches: Sequence[Episode],
    results: Sequence[Any],
    per_task: Mapping[str, Tensor],
    metric: str,
    steps: tuple[int, ...],
    processes: int,
) -> Tensor:
    """Return the metric ``[tasks, steps]``: of all tasks if the learner logs it by step, otherwise of these."""
    if learner.log_step_metrics:
        return torch.stack([per_task[f"{metric}_step_{step}"] for step in steps], dim=1)
    metrics = [
        [
            learner.task_metrics(result.outputs[:, index], batch.query_y, batch.query_mask)[metric].float().cpu()
            for batch, result in zip(batches, results, strict=True)
        ]
        for index in range(len(steps))
    ]
    by_step = torch.stack([torch.cat(own) for own in metrics], dim=1)
    # What was logged: a learner that draws random numbers draws others where it is asked at more steps.
    for column, name in ((0, f"{metric}_pre"), (-1, metric)):
        by_step[:, column] = per_task[name].float().cpu()[::processes][: len(by_step)]
    return by_step


def _shown(leaf: Tensor) -> Tensor:
    """Return a tensor as pictures and tables take it: on the CPU, real numbers as float32."""
    return leaf.float().cpu() if leaf.is_floating_point() else leaf.cpu()


def _is_a_curve(task: Episode) -> bool:
    """Whether a task has one real input and one real target."""
    x, y = task.query_x, task.query_y
    return all(isinstance(own, Tensor) and own.is_floating_point() and own.shape[1:] == (1,) for own in (x, y))


def _curve(steps: Sequence[int], values: Tensor, tasks: str) -> Curve:
    """Return the mean over tasks of values ``[tasks, steps]``."""
    # Not by a metric, which would wait for other processes.
    mean, ci95 = zip(*(map(float, mean_and_interval(own)) for own in values.T), strict=True)
    return Curve(list(steps), list(mean), list(ci95), tasks)


def _task(batches: Sequence[Episode], number: int) -> Episode:
    """Return one task without padding."""
    for batch in batches:
        if number < batch.num_tasks:
            break
        number -= batch.num_tasks
    task = batch.select(number)
    support, query = (task.support_x, task.support_y), (task.query_x, task.query_y)
    if task.support_mask is not None:
        support = map_leaves(lambda leaf: leaf[task.support_mask], support)
    if task.query_mask is not None:
        query = map_leaves(lambda leaf: leaf[task.query_mask], query)
    return Episode(*support, *query)
