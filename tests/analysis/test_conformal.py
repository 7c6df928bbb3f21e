"""Conformal prediction on new tasks: its threshold by a naive loop, its coverage by simulation and on real learners."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, BayesianMAML, ProtoNet, SinusoidDataModule
from lightning_meta.analysis.conformal import ConformalPredictor, threshold_of
from tests.registry import BY_NAME


def test_the_threshold_is_the_smallest_score_that_reaches_the_coverage():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(size, generator=generator) for size in (3, 1, 7, 4, 2, 5, 5, 2, 6, 3, 4)]

    def share(s):
        return sum(float((own <= s).double().mean()) for own in scores) / (len(scores) + 1)

    threshold = threshold_of(scores, 0.8)
    below = max(float(value) for own in scores for value in own if value < threshold)
    assert share(threshold) >= 0.8 > share(below)
    assert threshold_of(scores, 0.95) == math.inf


@pytest.mark.parametrize(("rank", "tasks"), [(4, 4), (16, 19), (80, 99), (18, 19), (9, 9), (3, 4)])
def test_one_query_each_has_the_rank_of_split_conformal_prediction(rank, tasks):
    """The rank is ``⌈(n + 1) c⌉``, also where the coverage c is not exact in single precision."""
    scores = [torch.tensor([float(i)]) for i in range(1, tasks + 1)]
    assert threshold_of(scores, rank / (tasks + 1)) == rank


@pytest.mark.parametrize(("tasks", "queries"), [(20, 1), (20, 8), (99, 5)])
def test_a_random_query_of_a_new_task_is_covered_as_promised(tasks, queries):
    """Tasks differ in difficulty; queries within a task are alike."""
    generator = torch.Generator().manual_seed(tasks + queries)
    covered, repetitions = 0, 2_000
    for _ in range(repetitions):
        difficulty = torch.randn(tasks + 1, 1, generator=generator).exp()
        scores = difficulty * torch.randn(tasks + 1, queries, generator=generator).abs()
        covered += bool(scores[-1, 0] <= threshold_of(list(scores[:-1]), 0.9))
    deviation = math.sqrt(repetitions * 0.09)
    assert covered >= 0.9 * repetitions - 3 * deviation
    if queries == 1:  # then the coverage is at most 1 / (n + 1) more
        assert covered <= (0.9 + 1 / (tasks + 1)) * repetitions + 3 * deviation


def test_intervals_of_a_regression_cover_new_tasks():
    torch.manual_seed(0)
    learner = MAML(MLP(), nn.MSELoss()).eval()
    data = SinusoidDataModule(val_tasks=150, test_tasks=300, eval_query_shots=10)
    conformal = ConformalPredictor(learner).calibrate(data.val_dataloader(), 0.8)
    coverage = conformal.coverage_of(data.test_dataloader())
    assert coverage.shape == (300,)
    assert float(coverage.mean()) >= 0.8 - 3 * float(coverage.std()) / math.sqrt(150)
    task = data.episodes("test")[0]
    low, high = conformal.adapt(task.support_x, task.support_y).intervals(task.query_x)
    inside = ((low <= task.query_y) & (task.query_y <= high)).double().mean()
    assert float(inside) == pytest.approx(float(coverage[0]))
    torch.testing.assert_close(high - low, torch.full_like(low, 2 * conformal.threshold))


def test_standardized_intervals_follow_the_predicted_deviation():
    entry = BY_NAME["BayesianMAML"]
    learner = BayesianMAML(MLP(1, 1, hidden=[6]), nn.MSELoss(), num_particles=3).eval()
    conformal = ConformalPredictor(learner, score="standardized").calibrate(entry.batch(30), 0.9)
    task = entry.task()
    adapted = conformal.adapt(task.support_x, task.support_y)
    low, high = adapted.intervals(task.query_x)
    expected = 2 * conformal.threshold * adapted.task.predict(task.query_x).total.sqrt()
    torch.testing.assert_close(high - low, expected)


def test_sets_hold_the_classes_whose_scores_are_within_the_threshold():
    torch.manual_seed(0)
    entry = BY_NAME["ProtoNet"]
    learner = ProtoNet(nn.Linear(1, 4)).eval()
    calibration, new = entry.batch(60), entry.batch(200)
    conformal = ConformalPredictor(learner).calibrate(calibration, 0.9)
    covered = []
    for index in range(new.num_tasks):
        task = new.select(index)
        sets = conformal.adapt(task.support_x, task.support_y).sets(task.query_x)
        assert sets.dtype == torch.bool
        covered.append(sets.gather(1, task.query_y[:, None]).double().mean())
    torch.testing.assert_close(torch.stack(covered), conformal.coverage_of(new))
    assert float(torch.stack(covered).mean()) >= 0.9 - 0.06


def test_padding_does_not_count():
    entry = BY_NAME["MAML"]
    torch.manual_seed(0)
    learner = entry.learner().eval()
    tasks = [entry.task(support=3 + i % 2, query=2 + i % 3) for i in range(12)]
    from lightning_meta import collate_episodes

    together = ConformalPredictor(learner).calibrate(collate_episodes(tasks), 0.8)
    alone = ConformalPredictor(learner).calibrate([collate_episodes([task]) for task in tasks], 0.8)
    assert together.threshold == pytest.approx(alone.threshold, rel=1e-5)


def test_bad_input_is_told():
    entry = BY_NAME["MAML"]
    conformal = ConformalPredictor(entry.learner())
    with pytest.raises(ValueError, match=r"episodes has 8 tasks, too few for coverage=0.9: give it at least 9"):
        conformal.calibrate(entry.batch(8), 0.9)
    with pytest.raises(ValueError, match="coverage=1.5"):
        conformal.calibrate(entry.batch(8), 1.5)
    with pytest.raises(RuntimeError, match="call calibrate"):
        conformal.adapt(torch.ones(2, 1), torch.ones(2, 1))
    conformal.calibrate(entry.batch(9), 0.9)
    with pytest.raises(ValueError, match="call intervals"):
        conformal.adapt(torch.ones(2, 1), torch.ones(2, 1)).sets(torch.ones(2, 1))
    with pytest.raises(ValueError, match="needs a learner with a noise model"):
        ConformalPredictor(entry.learner(), score="standardized").calibrate(entry.batch(9), 0.9)
    with pytest.raises(ValueError, match="binary cross-entropy"):
        ConformalPredictor(MAML(nn.Linear(1, 1), nn.BCEWithLogitsLoss()))
    with pytest.raises(ValueError, match="call sets"):
        ConformalPredictor(ProtoNet(nn.Linear(1, 4))).calibrate(BY_NAME["ProtoNet"].batch(9), 0.5).adapt(
            torch.ones(3, 1), torch.arange(3)
        ).intervals(torch.ones(2, 1))


def test_calibration_tasks_that_diverge_have_infinite_scores():
    torch.manual_seed(0)
    learner = MAML(nn.Linear(1, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=2)
    batch = BY_NAME["MAML"].batch(12)
    calm = ConformalPredictor(learner).calibrate(batch, 0.75)  # the 10th of 12 tasks, roughly
    batch.support_y[:2] = 3e38
    with_diverged = ConformalPredictor(learner).calibrate(batch, 0.75)
    assert calm.threshold < with_diverged.threshold < math.inf
    assert ConformalPredictor(learner).calibrate(batch, 0.9).threshold == math.inf


def test_a_data_set_of_tasks_is_the_batch_of_its_tasks():
    tasks = SinusoidDataModule(val_tasks=20).episodes("val").disjoint()
    learner = MAML(MLP(hidden=[4]), nn.MSELoss())
    expected = ConformalPredictor(learner).calibrate(tasks.make(np.arange(20)), coverage=0.8)
    assert ConformalPredictor(learner).calibrate(tasks, coverage=0.8).threshold == pytest.approx(expected.threshold)
    with pytest.raises(ValueError, match="2 tasks, too few"):
        ConformalPredictor(learner).calibrate(SinusoidDataModule(val_tasks=2).episodes("val"), coverage=0.8)
