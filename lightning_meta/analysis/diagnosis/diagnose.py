"""A learner beside baselines, its memorization, and its gaps, on the same held-out tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lightning_meta.analysis.diagnosis.generalization_gaps import Gaps, generalization_gaps
from lightning_meta.analysis.diagnosis.memorization import Memorization, memorization
from lightning_meta.analysis.diagnosis.reference_learners import (
    Reference,
    check_fresh,
    constant_scores,
    joint_training,
    reference_results,
)
from lightning_meta.analysis.diagnosis.scores import Scores, evaluating, scores_by_step
from lightning_meta.analysis.diagnosis.verdict import Evidence, Verdict, verdict
from lightning_meta.analysis.intervals import Interval, mean_interval
from lightning_meta.analysis.tasks import moved_to, take
from lightning_meta.arguments import check_count
from lightning_meta.data import TaskDataModule
from lightning_meta.data.distinct_tasks import FIRST_RESERVED_DRAW
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.data.episodic import NWayDataModule
from lightning_meta.episodes import Episode
from lightning_meta.learners.task_learner import TaskLearner


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. Scores are error rates in classification and losses in regression.

    Attributes:
        steps: The learner's results on new tasks after 0, 1, ... inner steps, up to twice those of evaluation,
            ``[steps, tasks]``; one row for learners without inner steps.
        eval_steps: The inner steps of evaluation, the row of ``steps`` that the comparisons take.
        references: The baselines' results on the same tasks, by name.
        seen: The memorization test on training tasks, with new examples where these can be drawn.
        new: The memorization test on new tasks.
        gaps: The generalization gaps.
        renumbers_classes: Whether each task numbers its classes anew, so that a joint model is at chance.
        verdict: What follows.
    """

    steps: Scores
    eval_steps: int
    references: Mapping[str, Reference]
    seen: Memorization
    new: Memorization
    gaps: Gaps
    renumbers_classes: bool
    verdict: Verdict

    @property
    def own(self) -> Scores:
        """The learner's results on new tasks after adaptation, ``[tasks]``."""
        return self.steps.at(self.eval_steps)


def diagnose(
    learner: TaskLearner,
    data: TaskDataModule,
    num_tasks: int = 100,
    tuning_tasks: int = 20,
    joint_epochs: int = 1,
    scratch_steps: int = 100,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Say whether meta-learning pays on a learner's tasks, and what is missing.

    All results are on the same validation tasks, which must not have chosen the learner's hyper-parameters if the
    figures are to be without bias. Intervals are over tasks of the validation classes, not over trainings.

    Args:
        learner: A trained learner; it is not changed.
        data: Its tasks.
        num_tasks: Validation tasks of the results, and training tasks of memorization test and gaps.
        tuning_tasks: Further validation tasks, on which the baselines' rates, steps and penalties are chosen.
        joint_epochs: Epochs in which to train a copy of the model on the examples of all training tasks, without
            adaptation, with the learner's optimizer; 0 leaves it out.
        scratch_steps: The most steps of Adam on one task, from new random values and from the joint model; 0 leaves
            these out.
        seed: The seed of new random values, permutations and bootstrap.
        say: Is told what takes long before it starts.

    Raises:
        ValueError: If there are too few tasks, or a layer of the model cannot be given new random values.
    """
    check_count("num_tasks", num_tasks, least=2)
    check_count("tuning_tasks", tuning_tasks)
    check_count("joint_epochs", joint_epochs, least=0)
    check_count("scratch_steps", scratch_steps, least=0)
    if joint_epochs or scratch_steps:
        check_fresh(learner)
    tasks, device = data.episodes("val"), learner.device
    reported, tuning = take(tasks, num_tasks, device), take(tasks, tuning_tasks, device, num_tasks)
    training = data.training_tasks()
    trained, redrawn = _training_tasks(training, num_tasks, device)
    train = None
    if joint_epochs:
        outer_steps = joint_epochs * -(-len(training) // data.tasks_per_batch)
        train = joint_training(training, outer_steps, data.tasks_per_batch, say)
    with evaluating(learner), torch.random.fork_rng():
        torch.manual_seed(seed)
        most = learner.eval_inner_steps
        steps = scores_by_step(learner, reported, range(2 * most + 1))
        own = steps.at(most)
        references = reference_results(learner, reported, tuning, data.raw_features(), scratch_steps, train, say)
        seen_tasks = trained if redrawn is None else redrawn
        seen = memorization(learner, seen_tasks, constant_scores(learner, seen_tasks), seed)
        new = memorization(learner, reported, references["constant"].scores, seed)
        gaps = generalization_gaps(learner, trained, redrawn, reported, own)
    evidence = Evidence(
        score=float(own.score.mean()),
        adaptation=_gain(steps, 0, most),
        advantages={name: mean_interval(each.scores.score - own.score) for name, each in references.items()},
        index=seen.ratio,
        gaps=gaps,
        more_steps=_gain(steps, most, 2 * most),
    )
    renumbers = isinstance(data, NWayDataModule)
    return Diagnosis(steps, most, references, seen, new, gaps, renumbers, verdict(evidence))


def _gain(steps: Scores, before: int, after: int) -> Interval | None:
    if before == after:
        return None
    return mean_interval(steps.score[before] - steps.score[after])


def _training_tasks(training: EpisodeDataset, num_tasks: int, device: torch.device) -> tuple[Episode, Episode | None]:
    """Return the first training tasks, and the same with other examples, or None where these cannot be drawn."""
    indices = training.distinct_indices(min(num_tasks, len(training)))
    trained = moved_to(device, training.make(indices))
    try:
        redrawn = training.redrawn(indices, np.full(len(indices), FIRST_RESERVED_DRAW))
    except TypeError:
        return trained, None
    return trained, moved_to(device, redrawn)
