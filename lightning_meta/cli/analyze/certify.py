"""``lightning-meta analyze certify``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_meta.algorithms import ProtoNet
from lightning_meta.algorithms.baselines import MeanTarget
from lightning_meta.analysis.bounds import BoundMethod
from lightning_meta.analysis.certificate import Certificate, certify
from lightning_meta.analysis.held_out import held_out_losses
from lightning_meta.arguments import check_choice, check_count, check_rate
from lightning_meta.cli.analyze.report import Report
from lightning_meta.data import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import likelihood_of, takes_class_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TaskChoice = Literal["drawn", "disjoint"]

_FOR_A_SUGGESTION = 200
_TESTED = (
    "This holds only if the test tasks were used neither in training nor to choose the checkpoint or a "
    "hyper-parameter, which cannot be checked here. Validation tasks that chose something cannot certify it."
)


def certify_report(
    learner: TaskLearner,
    data: TaskDataModule,
    tasks: TaskChoice = "drawn",
    num_tasks: int | None = None,
    largest_loss: float | None = None,
    clip: bool = False,
    delta: float = 0.05,
    settings: int = 1,
    quantile: float = 0.9,
    seed: int = 0,
) -> Report:
    """Upper bounds on the expected loss on a new task, which hold with a stated probability.

    Args:
        learner: The trained learner.
        data: Its tasks; the bounds are from test tasks.
        tasks: "drawn": test tasks as the data module draws them, for new tasks of the same classes; "disjoint": test
            tasks that share no classes, for new classes.
        num_tasks: How many, the first ones; default: all.
        largest_loss: The largest loss that there can be; needed unless the loss is the error of a classifier.
        clip: Bound the mean of the minimum of loss and largest_loss.
        delta: The probability that a bound is wrong.
        settings: How many settings are compared on these tasks, to choose one of them.
        quantile: The quantile of the loss on new tasks that is also bounded.
        seed: The seed of random draws.
    """
    check_choice("tasks", tasks, TaskChoice)
    data.setup("test")
    chosen = data.episodes("test")
    chosen = chosen.disjoint() if tasks == "disjoint" else chosen
    count = len(chosen) if num_tasks is None else num_tasks
    check_count("num_tasks", count)
    if largest_loss is not None:
        check_rate("largest_loss", largest_loss)
    certify(np.zeros(count), delta=delta, settings=settings, quantile=quantile)  # errors come before what takes long
    found = held_out_losses(learner, chosen, count, data.tasks_per_batch, seed)
    if found.kind == "error":
        largest_loss = 1.0
    elif largest_loss is None:
        raise ValueError(_needs_largest(learner, data, seed))
    method = method_for(chosen, found.kind, count)
    losses = {type(learner).__name__: found.adapted}
    if found.unadapted is not None:
        losses["no adaptation"] = found.unadapted
    baseline = _baseline(learner, data)
    if baseline is not None:
        name, other = baseline
        losses[name] = held_out_losses(other.to(learner.device), chosen, count, data.tasks_per_batch, seed).adapted
    certificates = {
        name: certify(own.numpy(), largest_loss, delta, settings, clip or index > 0, method, quantile)
        for index, (name, own) in enumerate(losses.items())
    }
    own = certificates[type(learner).__name__]
    values = {name: asdict(each) for name, each in certificates.items()}
    return Report(
        _table(certificates, found.kind, clip),
        _advice(certificates, found.kind, tasks, takes_class_labels(learner.loss_fn), clip),
        {"certificates": values, "losses": {name: each.tolist() for name, each in losses.items()}},
        {"losses": lambda: _draw(found.adapted, own, found.kind)},
    )


def method_for(tasks: EpisodeDataset, kind: str, count: int) -> BoundMethod:
    """Return the method, which must not depend on the losses: where tasks have one query each, errors are 0 or 1."""
    single = kind == "error" and all(tree_leaves(tasks[i].query_y)[0].shape[0] == 1 for i in range(count))
    return "clopper_pearson" if single else "betting"


def _needs_largest(learner: TaskLearner, data: TaskDataModule, seed: int) -> str:
    tasks = data.episodes("val")
    count = min(len(tasks), _FOR_A_SUGGESTION)
    losses = held_out_losses(learner, tasks, count, data.tasks_per_batch, seed).adapted
    return (
        f"largest_loss=None, but the loss has no upper limit of its own: give --largest_loss and --clip true, such as "
        f"{float(losses.quantile(0.99)):.3g}, the 99 % quantile of the losses on {count} validation tasks. Never "
        "choose it from test tasks"
    )


def _baseline(learner: TaskLearner, data: TaskDataModule) -> tuple[str, TaskLearner] | None:
    if takes_class_labels(learner.loss_fn):
        return "nearest prototype", ProtoNet(data.raw_features())
    if likelihood_of(learner.loss_fn) == "bernoulli":
        return None
    return "mean of the support", MeanTarget(learner.loss_fn)


def _table(certificates: dict[str, Certificate], kind: str, clip: bool) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for position, (name, own) in enumerate(certificates.items()):
        level = f"{1 - own.delta:.4g}"

        def add(what: str, value: float | None, holds: str, name: str = name) -> None:
            rows.append({"learner": name, "quantity": what, kind: value, "holds with probability": holds})

        add(f"mean of {own.tasks} tasks", own.mean, "")
        # A baseline may exceed what the learner cannot.
        add(f"bound on the expected {_bounded(own, kind, clip or position > 0)} ({own.method})", own.bound, level)
        if position:
            continue
        for other, value in own.others.items():
            add(f"for comparison: {other}", value, "not a choice")
        add("for comparison: normal approximation", own.approximate, f"about {level}, with many tasks")
        if own.quantile_bound is not None:
            add(f"bound on the {100 * own.quantile:g} % quantile", own.quantile_bound, level)
    return pl.DataFrame(rows, schema_overrides={kind: pl.Float64})


def _advice(
    certificates: dict[str, Certificate], kind: str, tasks: TaskChoice, has_classes: bool, clip: bool
) -> tuple[str, ...]:
    (name, own), *others = certificates.items()
    what = _bounded(own, kind, clip)
    sentences = [
        f"With probability {1 - own.delta:.4g} over the draw of these {own.tasks} tasks, the expected {what} of {name} "
        f"on {_of_which(tasks, has_classes)} is at most {own.bound:.4g}."
    ]
    if has_classes and tasks == "drawn":
        sentences.append("It is no bound for new classes: --tasks disjoint gives one.")
    count = len(certificates) + (own.quantile_bound is not None)
    joint = max(0.0, 1 - count * own.delta)
    sentences.append(
        f"Each of the {count} bounds holds with probability {1 - own.delta:.4g} by itself, and all of them together "
        f"with {joint:.4g} at least. The method was fixed before the losses were seen; the others are for comparison, "
        "as the lowest of several bounds fails more often than any one of them."
    )
    if own.settings > 1:
        sentences.append(
            f"The bounds are at {own.delta:g} / {own.settings}, so that they hold for whichever of the {own.settings} "
            "settings is chosen by these tasks."
        )
    if others:
        best, lowest = min(others, key=lambda item: item[1].bound)
        if own.bound < lowest.mean:
            sentences.append(f"The bound is below the mean of {best}, {lowest.mean:.4g}.")
        else:
            sentences.append(f"The bound is not below the mean of {best}, {lowest.mean:.4g}.")
    if own.quantile_bound is None:
        sentences.append(f"{own.tasks} tasks are too few to bound the {100 * own.quantile:g} % quantile.")
    if own.diverged:
        sentences.append(f"{own.diverged} tasks diverged and count as a loss of {own.largest:g}.")
    return (*sentences, _TESTED)


def _bounded(own: Certificate, kind: str, clip: bool) -> str:
    return f"minimum of {kind} and {own.largest:g}" if clip and kind == "loss" else kind


def _of_which(tasks: TaskChoice, has_classes: bool) -> str:
    if tasks == "disjoint":
        return f"new tasks of new {'classes' if has_classes else 'groups, if there are groups'}, drawn as these were,"
    if has_classes:
        return "new tasks of these same test classes"
    return "new tasks drawn as these were (if the test split has a fixed set of groups, of these groups)"


def _draw(losses: Tensor, own: Certificate, kind: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.hist(losses.clamp(max=own.largest).numpy(), bins=30, color="0.75")
    axis.axvline(own.mean, color="C0", label=f"mean {own.mean:.3g}")
    axis.axvline(own.bound, color="C1", label=f"bound on the expected {kind} {own.bound:.3g}")
    if own.quantile_bound is not None and own.quantile_bound <= own.largest:
        label = f"bound on the {100 * own.quantile:g} % quantile {own.quantile_bound:.3g}"
        axis.axvline(own.quantile_bound, color="C2", linestyle="--", label=label)
    axis.set(xlabel=f"{kind} of a task", ylabel="tasks")
    figure.legend(loc="outside upper center")
    return figure
