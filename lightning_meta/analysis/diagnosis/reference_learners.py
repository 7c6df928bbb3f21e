"""What a meta-learner must beat, on the same tasks: learners without meta-learning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.algorithms.baselines import MeanTarget, PooledModel, RidgeRegression
from lightning_meta.analysis.diagnosis.scores import Scores, has_classes, output_scores, scores_by_step, scores_of
from lightning_meta.analysis.fresh_model import fresh_model
from lightning_meta.analysis.penalties import PENALTIES
from lightning_meta.analysis.short_training import train_for
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode
from lightning_meta.learners import SupportClassLearner
from lightning_meta.learners.task_learner import TaskLearner

RATES = (0.001, 0.005, 0.025)
"""The rates of Adam from which tuning tasks choose for training on each task alone."""

_CURE = "set joint_epochs=0 and scratch_steps=0"


class Reference(NamedTuple):
    """A baseline's results.

    Attributes:
        scores: On the reported tasks, ``[tasks]``.
        chosen: The hyper-parameters that the tuning tasks chose, as text.
        at_most_steps: Whether the tuning tasks chose the most steps, so that more might be better.
    """

    scores: Scores
    chosen: str = ""
    at_most_steps: bool = False


def reference_results(
    learner: TaskLearner,
    reported: Episode,
    tuning: Episode,
    features: nn.Module,
    scratch_steps: int,
    train: Callable[[TaskLearner], None] | None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Reference]:
    """Return the results of baselines by name: "constant", "prototype" or "ridge", "joint", "joint fine-tuned", ...

    A model with any number of outputs, that of a `SupportClassLearner`, is no classifier by itself: for it the
    baselines of the model are left out.

    Args:
        learner: The learner, whose loss, model and optimizer the baselines take.
        reported: The tasks of the results.
        tuning: Other tasks, on which rates, steps and penalties are chosen.
        features: Turns inputs into vectors.
        scratch_steps: The most steps of Adam on one task, from new random values or from the joint model; 0: leave
            these baselines out.
        train: Trains a learner on the training tasks in place; None: leave the joint model out.
        say: Is told what takes long before it starts.

    Raises:
        ValueError: If a layer of the model cannot be given new random values.
    """
    found = {"constant": Reference(constant_scores(learner, reported))}
    if has_classes(learner, reported):
        if not torch.is_floating_point(reported.query_y):
            found["prototype"] = Reference(scores_of(ProtoNet(features), reported))
    else:
        found["ridge"] = _ridge(learner, reported, tuning, features)
    if isinstance(learner, SupportClassLearner):
        return found
    if train is not None:
        model = fresh_model(learner.model, _CURE)
        joint = PooledModel(
            model, learner.loss_fn, learner.optimizer_factory, batch_statistics=learner.batch_statistics
        )
        joint.to(learner.device)
        with torch.enable_grad():
            train(joint)
        joint.eval()
        found["joint"] = Reference(scores_of(joint, reported))
        if scratch_steps:
            say(
                f"fine-tuning the joint model on each task, up to {scratch_steps} steps with each of {len(RATES)} rates"
            )
            found["joint fine-tuned"] = trained_on_each_task(joint.model, learner, reported, tuning, scratch_steps)
    if scratch_steps:
        say(f"training from scratch on each task, up to {scratch_steps} steps with each of {len(RATES)} rates")
        model = fresh_model(learner.model, _CURE)
        found["from scratch"] = trained_on_each_task(model, learner, reported, tuning, scratch_steps)
    return found


def check_fresh(learner: TaskLearner) -> None:
    """Raise a ValueError if a baseline needs a new model, and a layer of the learner's cannot be given new values."""
    if not isinstance(learner, SupportClassLearner):
        with torch.random.fork_rng():
            fresh_model(learner.model, _CURE)


def constant_scores(learner: TaskLearner, batch: Episode) -> Scores:
    """Return the results of the support's mean target, in classification of equal scores for all classes, ``[tasks]``.

    The accuracy of equal scores is 1 / ways, where all classes have as many queries.
    """
    if not has_classes(learner, batch):
        return scores_of(MeanTarget(learner.loss_fn).to(learner.device), batch)
    query = batch.query_y.shape[1]
    shape = learner.output_shape(batch.support)
    outputs = torch.zeros(batch.num_tasks, 1, query, *shape, device=learner.device)
    if not torch.is_floating_point(batch.query_y):
        outputs = outputs.log_softmax(3)
    return output_scores(learner, outputs, batch).at(0)


def trained_on_each_task(
    model: nn.Module, learner: TaskLearner, reported: Episode, tuning: Episode, most_steps: int
) -> Reference:
    """Train a model on each task's support set by Adam; rate and number of steps are the best on the tuning tasks."""
    record = _numbers_of_steps(most_steps)
    best: tuple[float, float, int] | None = None
    for rate in RATES:
        means = scores_by_step(_adapted_by_adam(model, learner, rate), tuning, record).score.mean(1)
        score, index = float(means.min()), int(means.argmin())
        if best is None or score < best[0]:
            best = score, rate, record[index]
    assert best is not None
    _, rate, steps = best
    scores = scores_of(_adapted_by_adam(model, learner, rate), reported, steps)
    return Reference(scores, f"rate {rate:g}, {steps} steps", steps == most_steps)


def _adapted_by_adam(model: nn.Module, learner: TaskLearner, rate: float) -> TaskLearner:
    adapted = MAML(
        copy.deepcopy(model),
        learner.loss_fn,
        inner_lr=rate,
        inner_optimizer="adam",
        batch_statistics=learner.batch_statistics,
    )
    return adapted.to(learner.device).eval()


def _numbers_of_steps(most: int) -> tuple[int, ...]:
    """Return 1, 3, 10, 30, ... below the largest number, and it."""
    return (*(steps for power in range(7) for steps in (10**power, 3 * 10**power) if steps < most), most)


def _ridge(learner: TaskLearner, reported: Episode, tuning: Episode, features: nn.Module) -> Reference:
    def made(penalty: float) -> TaskLearner:
        return RidgeRegression(features, learner.loss_fn, penalty=penalty).to(learner.device)

    penalty = min(PENALTIES, key=lambda each: float(scores_of(made(each), tuning).score.mean()))
    return Reference(scores_of(made(penalty), reported), f"penalty {penalty:g}")


def joint_training(
    tasks: EpisodeDataset, steps: int, tasks_per_batch: int, say: Callable[[str], None]
) -> Callable[[TaskLearner], None]:
    """Return a function that trains a learner for a number of outer steps, and says so before."""

    def train(learner: TaskLearner) -> None:
        say(f"training one model on the examples of all training tasks for {steps} outer steps")
        train_for(learner, tasks, steps, tasks_per_batch)

    return train
