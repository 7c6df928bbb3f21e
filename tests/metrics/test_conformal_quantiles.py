"""Quantiles of scores on validation tasks, against a naive loop, simulated coverage, and single adapted tasks."""

from __future__ import annotations

import math

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import ABML, MAML, MLP, ProtoNet, SinusoidDataModule
from lightning_meta.metrics.conformal_quantiles import (
    ConformalQuantiles,
    ConformalScores,
    hierarchical_quantiles,
    tasks_needed,
)
from lightning_meta.metrics.conformal_scores import counted
from tests.registry import BY_NAME

INF = math.inf


def quantiles_of(scores: torch.Tensor, counts: torch.Tensor | None = None) -> ConformalQuantiles:
    metric = ConformalScores("error")
    metric.update(scores, torch.ones_like(scores, dtype=torch.bool) if counts is None else counts)
    return metric.compute()


def test_one_query_a_task_has_the_ranks_of_split_conformal_prediction():
    found = quantiles_of(torch.tensor([[0.4], [0.1], [0.3], [0.2]]))
    # Of five exchangeable scores, the last is below the k-th smallest of the others with probability k / 5.
    for level, rank in {0.01: 1, 0.2: 1, 0.201: 2, 0.4: 2, 0.5: 3, 0.6: 3, 0.75: 4, 0.8: 4, 0.801: INF}.items():
        assert found.quantile(level) == pytest.approx(rank / 10, rel=1e-6)
    assert found.tasks == 4
    assert found.root_mean_square == pytest.approx(math.sqrt(0.3 / 4), rel=1e-6)


def test_every_task_weighs_the_same_whatever_its_number_of_queries():
    generator = torch.Generator().manual_seed(0)
    counts = torch.rand(30, 6, generator=generator) < 0.6
    counts[:, 0] = True
    scores = torch.rand(30, 6, generator=generator)
    found = quantiles_of(scores, counts)

    def share(s):
        return sum(float((own[real] <= s).double().mean()) for own, real in zip(scores, counts, strict=True)) / 31

    for level in (0.1, 0.333, 0.5, 0.9, 0.967):
        threshold = found.quantile(level)
        assert share(threshold) >= level - 1e-9 > share(threshold - 1e-6) - 2e-9
    assert found.quantile(0.968) == INF
    squares = [float(own[real].double().square().mean()) for own, real in zip(scores, counts, strict=True)]
    assert found.root_mean_square == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-5)


def test_batches_and_tasks_without_counted_queries_do_not_matter():
    scores = torch.rand(7, 3, generator=torch.Generator().manual_seed(1))
    metric = ConformalScores("error")
    for part in (scores[:2], scores[2:]):
        metric.update(part, torch.ones_like(part, dtype=torch.bool))
    metric.update(torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert metric.compute() == quantiles_of(scores)


@pytest.mark.parametrize(("tasks", "queries"), [(12, 1), (40, 5)])
def test_a_random_query_of_a_new_task_is_covered_often_enough(tasks, queries):
    generator = torch.Generator().manual_seed(0)
    covered, repetitions = 0, 2_000
    sizes, level = torch.full((tasks * queries,), queries), torch.tensor([0.8], dtype=torch.float64)
    for repetition in range(repetitions):
        difficulty = torch.randn(tasks + 1, 1, generator=generator).exp()
        scores = difficulty * torch.rand(tasks + 1, queries, generator=generator)
        quantile = float(hierarchical_quantiles(scores[:-1].flatten(), sizes, level))
        if repetition < 20:  # the metric finds this one among those of a thousand levels
            assert quantile == quantiles_of(scores[:-1]).quantile(0.8)
        covered += float(scores[-1, 0]) <= quantile
    assert covered >= 0.8 * repetitions - 3 * math.sqrt(repetitions * 0.16)


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.5, 1), (0.95, 19), (0.999, 999), (0.9995, None)])
def test_the_tasks_that_a_coverage_needs(coverage, needed):
    assert tasks_needed(coverage) == needed
    if needed is not None:
        assert quantiles_of(torch.rand(needed, 2)).quantile(coverage) < INF
        assert needed == 1 or quantiles_of(torch.rand(needed - 1, 2)).quantile(coverage) == INF


def test_padding_and_ignored_labels_do_not_count():
    mask, labels = torch.tensor([[True, True, False]]), torch.tensor([[2, -100, 1]])
    assert counted(nn.CrossEntropyLoss(), labels, mask).tolist() == [[True, False, False]]
    assert counted(nn.CrossEntropyLoss(ignore_index=2), labels, mask).tolist() == [[False, False, False]]
    assert counted(nn.MSELoss(), torch.zeros(1, 3, 1), None).all()


GOOD = {"score": "error", "tasks": 3, "quantiles": [1.0] * 1000 + [INF], "root_mean_square": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"quantiles": [1.0]},
        {"quantiles": ["x"]},
        {"quantiles": [-5.0] * 1000 + [INF]},
        {"quantiles": [math.nan] * 1001},
        {"quantiles": [1.0] * 999 + [0.5, INF]},
        {"quantiles": [1.0] * 1001},
        {"root_mean_square": 10**400},
        {"root_mean_square": -1.0},
        {"root_mean_square": None},
        {"score": "probability"},
        {"score": "other"},
        {"score": ["error"]},
        {"tasks": 0},
        {"tasks": "3"},
    ],
)
def test_changed_fields_of_a_checkpoint_are_refused(change):
    assert ConformalQuantiles.checked(GOOD).quantile(0.5) == 1
    with pytest.raises(ValueError, match="the checkpoint's scores"):
        ConformalQuantiles.checked({**GOOD, **change})
    with pytest.raises(ValueError, match="the checkpoint's scores"):
        ConformalQuantiles.checked({name: value for name, value in GOOD.items() if name not in change})


def validated(learner, data, tmp_path) -> L.Trainer:
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
    trainer.fit(learner, data)
    return trainer


def small(**options) -> SinusoidDataModule:
    return SinusoidDataModule(shots=4, train_tasks=25, val_tasks=7, tasks_per_batch=3, eval_query_shots=5, **options)


def test_validation_keeps_the_errors_of_its_tasks_and_the_checkpoint_too(tmp_path):
    learner = MAML(MLP(), nn.MSELoss())
    trainer = validated(learner, small(), tmp_path)
    batch = small().episodes("val").make(np.arange(7))
    found = learner.validation_scores
    errors = (learner.evaluate(batch).outputs[:, -1] - batch.query_y).abs()[..., 0]
    expected = quantiles_of(errors)
    assert (found.score, found.tasks) == ("error", 7)
    assert found.quantiles == pytest.approx(expected.quantiles, rel=1e-3)
    path = trainer.checkpoint_callback.best_model_path
    assert MAML.load_from_checkpoint(path).validation_scores == found


def test_learners_with_a_noise_model_keep_standardized_errors(tmp_path):
    torch.manual_seed(0)
    learner = ABML(MLP(), nn.MSELoss(), initial_log_std=-15.0, kl_weight=1e-15, normalize_steps=True)
    validated(learner, small(), tmp_path)
    tasks, scores = small().episodes("val"), []
    for index in range(7):
        prediction = learner.adapt(tasks[index].support_x, tasks[index].support_y).predict(tasks[index].query_x)
        scores.append(((tasks[index].query_y - prediction.mean).abs() / prediction.total.sqrt())[:, 0])
    found = learner.validation_scores
    assert (found.score, found.root_mean_square) == ("standardized", None)
    assert found.quantile(0.8) == pytest.approx(quantiles_of(torch.stack(scores)).quantile(0.8), rel=0.02)


def test_classifiers_keep_what_the_class_lacks_to_probability_one(tmp_path):
    torch.manual_seed(0)
    learner = ProtoNet(nn.Linear(1, 4))
    data = BY_NAME["ProtoNet"].data(train_tasks=8, val_tasks=6, tasks_per_batch=4)
    validated(learner, data, tmp_path)
    tasks, scores = data.episodes("val"), []
    for index in range(6):
        probabilities = learner.adapt(tasks[index].support_x, tasks[index].support_y)(tasks[index].query_x).softmax(1)
        scores.append(1 - probabilities.gather(1, tasks[index].query_y[:, None])[:, 0])
    found = learner.validation_scores
    assert (found.score, found.tasks) == ("probability", 6)
    assert found.quantiles == pytest.approx(quantiles_of(torch.stack(scores)).quantiles, rel=1e-3, abs=1e-6)


def test_pooled_errors_of_earlier_versions_are_not_used(tmp_path):
    path = validated(MAML(MLP(), nn.MSELoss()), small(), tmp_path).checkpoint_callback.best_model_path
    checkpoint = torch.load(path)
    del checkpoint["meta_learner_scores"]
    checkpoint["meta_learner_residuals"] = {"quantiles": [1.0] * 1001, "root_mean_square": 1.0}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match="pooled the errors of all validation queries"):
        assert MAML.load_from_checkpoint(tmp_path / "old.ckpt").validation_scores is None


def test_metrics_of_each_task(tmp_path):
    learner = MAML(MLP(), nn.MSELoss())
    trainer = validated(learner, small(), tmp_path)
    data = SinusoidDataModule(shots=4, test_tasks=7, tasks_per_batch=3)
    trainer.test(learner, data, verbose=False)
    episodes = data.episodes("test")
    found = learner.per_task()
    for i in range(7):
        task = learner.adapt(episodes[i].support_x, episodes[i].support_y)
        own = nn.functional.mse_loss(task(episodes[i].query_x), episodes[i].query_y)
        torch.testing.assert_close(found["mse"][i], own, rtol=1e-4, atol=1e-5)
