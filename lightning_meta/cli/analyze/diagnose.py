"""``lightning-meta analyze diagnose``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import polars as pl
import torch

from lightning_meta.analysis.diagnosis.data_curves import Curve, compare_gains, gains, shot_curve, task_curve
from lightning_meta.analysis.diagnosis.diagnose import Diagnosis, diagnose
from lightning_meta.analysis.diagnosis.scores import Scores
from lightning_meta.analysis.fresh_model import fresh_learner
from lightning_meta.analysis.intervals import Interval, mean_interval
from lightning_meta.analysis.tasks import take
from lightning_meta.arguments import check_count
from lightning_meta.cli.analyze.diagnose_picture import draw_curves, draw_diagnosis
from lightning_meta.cli.analyze.report import Report
from lightning_meta.data import TaskDataModule
from lightning_meta.data.distinct_tasks import DistinctTasks
from lightning_meta.learners.task_learner import TaskLearner

_BIAS = (
    "Intervals are over tasks: of these classes, where tasks share classes, and of this training, not of others. If "
    "validation tasks chose the learner's hyper-parameters, its results on them are a little too good."
)
_RENUMBERED = (
    "Each task numbers its classes anew, so that the joint model is at chance by construction; fine-tuned on a task's "
    "support set it is not."
)


def diagnose_report(
    learner: TaskLearner,
    data: TaskDataModule,
    num_tasks: int = 100,
    tuning_tasks: int = 20,
    joint_epochs: int = 1,
    scratch_steps: int = 100,
    shots: list[int] | None = None,
    train_sizes: list[int] | None = None,
    train_steps: int = 1000,
    seed: int = 0,
) -> Report:
    """Whether meta-learning pays on these tasks, beside honest baselines, and what is missing.

    Args:
        learner: The learner.
        data: Its tasks; the analysis takes validation and training tasks.
        num_tasks: Validation tasks of the results, and training tasks of memorization test and gaps.
        tuning_tasks: Further validation tasks, on which the baselines' rates, steps and penalties are chosen.
        joint_epochs: Epochs in which to train the model on the examples of all training tasks without adaptation; 0
            leaves it out.
        scratch_steps: The most steps on one task, from new random values and from the joint model; 0 leaves these out.
        shots: Numbers of support examples (per class) for which to show the learner's results, without training.
        train_sizes: Numbers of distinct training tasks, with each of which the learner is trained anew.
        train_steps: Outer steps of each of these trainings.
        seed: The seed of new random values, permutations and bootstrap.
    """
    tasks, train = data.episodes("val"), data.episodes("train")
    for count in shots or ():  # errors come before what takes long
        tasks.with_shots(count)
    check_count("train_steps", train_steps)
    for size in train_sizes or ():
        check_count("train_sizes", size)
        if (most := len(train.distinct_indices(size))) < size:
            raise ValueError(f"train_sizes has {size}, but there are {most} distinct training tasks: take no more")
    if train_sizes:
        with torch.random.fork_rng():
            fresh_learner(learner, "leave out train_sizes")
    distinct = {size: DistinctTasks(train, size, data.redraw_examples) for size in train_sizes or ()}
    found = diagnose(learner, data, num_tasks, tuning_tasks, joint_epochs, scratch_steps, seed, _say)
    by_shots = {} if shots is None else shot_curve(learner, tasks, shots, num_tasks)
    by_tasks: Curve = {}
    if train_sizes is not None:
        _say(f"training the learner anew for {train_steps} outer steps with each of {train_sizes} distinct tasks")
        reported = take(tasks, num_tasks, learner.device)
        by_tasks = task_curve(
            learner,
            distinct.__getitem__,
            train_sizes,
            train_steps,
            data.tasks_per_batch,
            reported,
            seed,
        )
    curves = {"training tasks": by_tasks, "shots": by_shots}
    advice = [*found.verdict.advice, *_curve_advice(by_tasks, by_shots, getattr(data, "shots", None))]
    short = [name for name, each in found.references.items() if each.at_most_steps]
    if short:
        advice.append(
            f"The most steps were the best for {' and '.join(short)}: check with --scratch_steps {10 * scratch_steps}."
        )
    advice += [_RENUMBERED] if found.renumbers_classes and "joint" in found.references else []
    pictures = {"diagnosis": lambda: draw_diagnosis(found)}
    if by_tasks or by_shots:
        pictures["curves"] = lambda: draw_curves(curves, found.own.accuracy is not None)
    table = pl.DataFrame([*_rows(found), *_curve_rows(curves)], infer_schema_length=None)
    if not any(table["chosen"].drop_nulls()):
        table = table.drop("chosen")
    if found.own.accuracy is None:
        table = table.drop("loss").rename({"score": "loss"})
    else:
        table = table.rename({"score": "error rate"})
    return Report(table, (*advice, _BIAS), _values(found, curves), pictures)


def _say(text: str) -> None:
    print(f"diagnose: {text}", file=sys.stderr, flush=True)


def _rows(found: Diagnosis) -> list[dict[str, Any]]:
    shown = _shown_steps(found.eval_steps)
    rows = [_row("inner steps", str(step), found.steps.at(step)) for step in shown]
    if found.eval_steps:
        gain = mean_interval(found.steps.score[0] - found.own.score)
        rows.append(_difference("inner steps", f"gain of {found.eval_steps}", gain))
    for name, reference in found.references.items():
        rows.append(_row("baseline", name, reference.scores, reference.chosen))
    for place, test in (("seen", found.seen), ("new", found.new)):
        names = {"own": "own", "permuted": "labels permuted", "other": "another task's", "constant": "constant"}
        rows += [_row(f"support, {place}", label, getattr(test, name)) for name, label in names.items()]
        rows.append(_difference(f"support, {place}", "index", test.ratio))
    gaps = {name: gap for name, gap in found.gaps._asdict().items() if gap is not None}
    return rows + [_difference("gap", name, gap) for name, gap in gaps.items()]


def _curve_rows(curves: dict[str, Curve]) -> list[dict[str, Any]]:
    sizes = ((name, size, scores) for name, curve in curves.items() for size, scores in curve.items())
    return [_row(name, str(size), scores) for name, size, scores in sizes]


def _row(part: str, what: str, scores: Scores, chosen: str = "") -> dict[str, Any]:
    row = _difference(part, what, mean_interval(scores.score))
    return row | {"loss": float(scores.loss.mean()), "chosen": chosen}


def _difference(part: str, what: str, value: Interval) -> dict[str, Any]:
    return {"part": part, "what": what, "score": value.mean, "low": value.low, "high": value.high, "loss": None}


def _shown_steps(most: int) -> Sequence[int]:
    """The numbers of steps in the table: few of many."""
    return sorted({0, 1, most // 2, most, 2 * most} if most > 3 else set(range(2 * most + 1)))


def _curve_advice(by_tasks: Curve, by_shots: Curve, shots: int | None) -> list[str]:
    sentences = []
    for curve, unit in ((by_tasks, "training tasks"), (by_shots, "shots")):
        for (less, more), gain in gains(curve).items():
            verb = "lower" if gain.is_positive else "raise" if gain.is_negative else None
            if verb is None:
                said = f"Cannot tell whether {more} in place of {less} {unit} lower the score (gain {gain})."
            else:
                said = f"{more} in place of {less} {unit} {verb} the score (gain {gain})."
            sentences.append(said)
    both = compare_gains(by_tasks, by_shots, shots) if shots is not None else ""
    return [*sentences, both] if both else sentences


def _values(found: Diagnosis, curves: dict[str, Curve]) -> dict[str, Any]:
    return {
        "verdict": found.verdict.kind,
        "missing": found.verdict.missing,
        "unit_of_scores": "loss" if found.own.accuracy is None else "error rate",
        "steps": _lists(found.steps),
        "baselines": {name: _lists(each.scores) for name, each in found.references.items()},
        "curves": {name: {size: _lists(each) for size, each in curve.items()} for name, curve in curves.items()},
    }


def _lists(scores: Scores) -> dict[str, Any]:
    return {name: None if own is None else own.tolist() for name, own in scores._asdict().items()}
