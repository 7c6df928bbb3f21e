from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn

from lightning_meta.metrics import MeanOverTasks, TaskMetrics, per_task_metrics


def test_mean_and_interval_over_tasks():
    values = [0.2, 0.9, 0.4, 0.4, 1.0]
    metric = MeanOverTasks()
    metric.update(torch.tensor(values[:2]))
    metric.update(torch.tensor(values[2:]))
    mean, interval = metric.compute()
    assert float(mean) == pytest.approx(statistics.mean(values))
    assert float(interval) == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(5))


def test_interval_survives_a_large_mean():
    values = 1e4 + torch.randn(1000)
    metric = MeanOverTasks()
    metric.update(values)
    expected = 1.96 * float(values.double().std()) / math.sqrt(1000)
    assert float(metric.compute()[1]) == pytest.approx(expected, rel=1e-4)


def test_interval_of_two_tasks():
    metric = MeanOverTasks()
    metric.update(torch.tensor([0.25, 0.75], requires_grad=True))
    assert not metric.values[0].requires_grad  # or every task's graph would be kept for an epoch
    assert float(metric.compute()[1]) == pytest.approx(1.96 * statistics.stdev([0.25, 0.75]) / math.sqrt(2))


def test_the_metric_follows_from_the_targets():
    scores, real = torch.randn(2, 4, 3), torch.randn(2, 4)
    cases = [
        (nn.CrossEntropyLoss(), scores, torch.randint(3, (2, 4)), {"acc"}),
        (nn.CrossEntropyLoss(), scores, torch.rand(2, 4, 3), {"mse"}),
        (nn.MSELoss(), real, torch.randint(3, (2, 4)), {"mse"}),
        (nn.MSELoss(), scores, torch.randn(2, 4), set()),
        (nn.MSELoss(), real, torch.randn(2, 4), {"mse"}),
        (nn.BCEWithLogitsLoss(), real, torch.rand(2, 4), {"acc"}),
        (nn.MSELoss(), real, {"targets": real}, set()),
    ]
    for loss_fn, outputs, targets, expected in cases:
        found = per_task_metrics(loss_fn, outputs, targets, None)
        assert found.keys() == expected
        assert all(value.shape == (2,) for value in found.values())


def test_dense_labels_count_each_part_of_the_examples_that_count():
    outputs, targets = torch.randn(3, 5, 4, 2), torch.randint(4, (3, 5, 2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    found = per_task_metrics(nn.CrossEntropyLoss(), outputs, targets, mask)["acc"]
    expected = [(outputs[i][mask[i]].argmax(1) == targets[i][mask[i]]).float().mean() for i in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_interval_of_one_task_is_not_a_number():
    metric = MeanOverTasks()
    metric.update(torch.tensor([0.5]))
    mean, interval = metric.compute()
    assert float(mean) == 0.5
    assert math.isnan(float(interval))


def test_task_metrics_forget_on_reset():
    metrics = TaskMetrics()
    metrics.update({"acc": torch.tensor([1.0, 0.0])})
    metrics.reset()
    metrics.update({"acc": torch.tensor([1.0, 1.0])})
    assert metrics.compute() == {"acc": 1, "acc_ci95": 0}


def test_accuracy_per_task_leaves_padding_out():
    outputs = torch.randn(4, 6, 3)
    targets = torch.randint(3, (4, 6))
    mask = torch.rand(4, 6) > 0.4
    mask[:, 0] = True
    found = per_task_metrics(nn.CrossEntropyLoss(), outputs, targets, mask)["acc"]
    expected = [(outputs[i][mask[i]].argmax(1) == targets[i][mask[i]]).float().mean() for i in range(4)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_accuracy_leaves_ignored_labels_out():
    outputs = torch.randn(2, 4, 3)
    targets = torch.tensor([[0, -100, 2, 1], [1, 1, -1, -100]])
    found = per_task_metrics(nn.CrossEntropyLoss(), outputs, targets, None)["acc"]
    expected = [(outputs[i][keep].argmax(1) == targets[i][keep]).float().mean() for i, keep in enumerate(targets >= 0)]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_binary_accuracy_compares_scores_with_zero(shape, masked):
    outputs, targets = torch.randn(shape), torch.randint(2, shape).double()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    found = per_task_metrics(nn.BCEWithLogitsLoss(), outputs, targets, mask if masked else None)["acc"]
    for task in range(3):
        own = mask[task] if masked else torch.ones(5, dtype=torch.bool)
        scores, labels = outputs[task][own].flatten().tolist(), targets[task][own].flatten().tolist()
        right = [(score > 0) == (label == 1) for score, label in zip(scores, labels, strict=True)]
        assert float(found[task]) == pytest.approx(sum(right) / len(right))


def test_squared_error_per_task_leaves_padding_out():
    outputs, targets = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    found = per_task_metrics(nn.MSELoss(), outputs, targets, mask)["mse"]
    expected = [(outputs[i][mask[i]] - targets[i][mask[i]]).square().mean() for i in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(
        per_task_metrics(nn.MSELoss(), outputs, targets, None)["mse"], (outputs - targets).square().mean((1, 2))
    )
