"""Conformal prediction on new tasks: sets and intervals whose coverage holds in finite samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lightning_meta.arguments import check_choice, check_coverage
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode
from lightning_meta.learners.adapted_task import AdaptedTask
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import likelihood_of, takes_class_labels
from lightning_meta.likelihoods.predictive import Samples
from lightning_meta.metrics.conformal_quantiles import hierarchical_quantiles
from lightning_meta.metrics.conformal_scores import Score, class_scores, counted, scale_of, scores_by_task

Tasks = Episode | Iterable[Episode] | EpisodeDataset
_AT_ONCE = 16


class ConformalPredictor:
    """Gives any learner prediction intervals or sets that contain a new task's target with a stated probability.

    The queries of one task are exchangeable with each other, not with those of other tasks, so errors cannot be pooled
    as in split conformal prediction. Here the distribution of scores is the mean of the tasks' own distributions:
    the threshold is the smallest score at which ``Σ_i F_i(s) / (n + 1)`` reaches the coverage, with the distribution
    ``F_i`` of the m_i scores of task i (Dunn, Wasserman and Ramdas, 2023; Lee, Barber and Willett, 2023,
    "hierarchical conformal prediction"). A random query of a new task is then covered with at least this probability,
    for any n, if calibration tasks and the new task are drawn independently from one distribution, have not been used
    in training, and the learner treats a task's queries alike. The guarantee is a mean over tasks and over calibration
    sets: single tasks have more or less, which `coverage_of` shows.

    Scores: for regressions the absolute error ``|y − mean|``, with ``score="standardized"`` divided by the predictive
    standard deviation; for classification ``1 − p(y)``. The scores of a calibration task that diverges are infinite.

    Args:
        learner: A trained learner.
        score: The score of regressions.

    Raises:
        ValueError: If the learner's loss is binary cross-entropy.

    Example:
        >>> from torch import nn
        >>> from lightning_meta import MAML, MLP, SinusoidDataModule
        >>> data = SinusoidDataModule(val_tasks=40)
        >>> conformal = ConformalPredictor(MAML(MLP(), nn.MSELoss())).calibrate(data.val_dataloader(), coverage=0.9)
        >>> new = data.episodes("test")[0]
        >>> low, high = conformal.adapt(new.support_x, new.support_y).intervals(new.query_x)
        >>> bool((low < high).all())
        True
    """

    def __init__(self, learner: TaskLearner, score: Score = "error") -> None:
        check_choice("score", score, Score)
        self.learner = learner
        self.score = score
        self.threshold: float | None = None
        self._classifies = takes_class_labels(learner.loss_fn)
        if likelihood_of(learner.loss_fn) == "bernoulli":
            raise ValueError("ConformalPredictor takes classes by number or real targets, not binary cross-entropy")

    @torch.no_grad()
    def calibrate(self, episodes: Tasks, coverage: float = 0.9) -> Self:
        """Choose the threshold from calibration tasks; return the predictor.

        Args:
            episodes: A batch of tasks ``[tasks, ...]``, several, or a data set of tasks.
            coverage: The probability that a query's target is to be contained.

        Raises:
            ValueError: If there are fewer than ``coverage / (1 − coverage)`` tasks, too few for any finite threshold.
        """
        check_coverage(coverage)
        scores = self.scores(episodes)
        least = math.ceil(coverage / (1 - coverage) - 1e-9)
        if len(scores) < least:
            raise ValueError(
                f"episodes has {len(scores)} tasks, too few for coverage={coverage}: give it at least {least}"
            )
        self.threshold = threshold_of(scores, coverage)
        return self

    def adapt(self, support_x: Any, support_y: Any, steps: int | None = None) -> ConformalTask:
        """Adapt to one task, as `TaskLearner.adapt`.

        Raises:
            RuntimeError: If `calibrate` was not called.
        """
        threshold = self._threshold()
        return ConformalTask(self.learner.adapt(support_x, support_y, steps), self.score, threshold, self._classifies)

    @torch.no_grad()
    def coverage_of(self, episodes: Tasks) -> Tensor:
        """Return the share of each task's queries whose targets are contained, ``[tasks]``.

        Raises:
            RuntimeError: If `calibrate` was not called.
        """
        threshold = self._threshold()
        return torch.stack([(own <= threshold).double().mean() for own in self.scores(episodes)])

    @torch.no_grad()
    def scores(self, episodes: Tasks) -> list[Tensor]:
        """Return the scores of each task's queries, ``[queries]`` each."""
        if isinstance(episodes, EpisodeDataset):
            count = len(episodes)
            episodes = [episodes.make(np.arange(i, min(i + _AT_ONCE, count))) for i in range(0, count, _AT_ONCE)]
        batches = [episodes] if isinstance(episodes, Episode) else episodes
        return [scores for batch in batches for scores in self._batch_scores(batch)]

    def _threshold(self) -> float:
        if self.threshold is None:
            raise RuntimeError("the predictor has no threshold: call calibrate(episodes) first")
        return self.threshold

    def _batch_scores(self, batch: Episode) -> Iterable[Tensor]:
        learner, y = self.learner, batch.query_y
        result = learner.evaluate(batch, diverged="keep")
        scores = scores_by_task(learner.loss_fn, Samples(**result.samples), y, self.score, learner.draws_together)
        scores = scores.double().masked_fill(result.loss.isinf()[:, None], math.inf).cpu()
        counts = counted(learner.loss_fn, y, batch.query_mask).cpu()
        return (own[real] for own, real in zip(scores, counts, strict=True) if real.any())


class ConformalTask:
    """What `ConformalPredictor.adapt` returns; call it as the adapted model.

    Attributes:
        task: The adapted model.
        threshold: The score up to which targets are contained.
    """

    def __init__(self, task: AdaptedTask, score: Score, threshold: float, classifies: bool) -> None:
        self.task = task
        self.threshold = threshold
        self._score = score
        self._classifies = classifies

    def __call__(self, x: Any) -> Tensor:
        """Return logits or regression outputs ``[query, ...]``."""
        return self.task(x)

    def intervals(self, x: Any) -> tuple[Tensor, Tensor]:
        """Return the lower and upper ends of the intervals, ``[query, ...]`` each.

        Raises:
            ValueError: If the learner is a classifier.
        """
        if self._classifies:
            raise ValueError("intervals are for regressions: call sets for classes")
        prediction = self.task.predict(x)
        reach = self.threshold * scale_of(prediction, self._score)
        return prediction.mean - reach, prediction.mean + reach

    def sets(self, x: Any) -> Tensor:
        """Return which classes are in the prediction sets, ``[query, classes]``, True or False; a set may be empty.

        Raises:
            ValueError: If the learner is a regression.
        """
        if not self._classifies:
            raise ValueError("sets are for classes: call intervals for regressions")
        return class_scores(self.task.predict(x).mean).double() <= self.threshold


def threshold_of(scores: list[Tensor], coverage: float) -> float:
    """Return the smallest score s with ``Σ_i F_i(s) / (n + 1) ≥ coverage``; infinite if there is none.

    Args:
        scores: The scores of each of n tasks, ``[queries]``.
        coverage: Between 0 and 1.

    Example:
        >>> threshold_of([torch.tensor([float(i)]) for i in range(1, 20)], 0.9)  # the 18th of 19
        18.0
    """
    sizes = torch.cat([torch.full((len(own),), len(own)) for own in scores])
    return float(hierarchical_quantiles(torch.cat(scores), sizes, torch.tensor([coverage], dtype=torch.double))[0])
