"""Errors on validation tasks, and intervals from them."""

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import ABML, MAML, MLP, SinusoidDataModule
from lightning_meta.metrics.residuals import AbsoluteErrors, Residuals


def residuals_of(errors: torch.Tensor) -> Residuals:
    metric = AbsoluteErrors()
    metric.update(errors[None, :, None], torch.zeros(1, len(errors), 1), None)
    return metric.compute()


def test_quantiles_are_those_of_the_empirical_distribution():
    errors = torch.tensor([0.4, -0.1, 0.3, 0.2], dtype=torch.float64)
    found = residuals_of(errors)
    for level in (0.01, 0.25, 0.251, 0.5, 0.75, 0.9, 1.0):
        expected = np.quantile([0.1, 0.2, 0.3, 0.4], level, method="inverted_cdf")
        assert found.quantile(level) == pytest.approx(expected, rel=1e-6)
    assert found.root_mean_square == pytest.approx(np.sqrt(0.3 / 4), rel=1e-6)


def test_an_interval_holds_at_least_its_share_of_the_errors():
    errors = torch.randn(377, generator=torch.Generator().manual_seed(0))
    found = residuals_of(errors)
    for level in np.linspace(0.003, 0.999, 97):
        assert (errors.abs() <= found.quantile(level) + 1e-7).float().mean() >= level


def test_padding_does_not_count():
    metric = AbsoluteErrors()
    outputs, mask = torch.tensor([[[1.0], [9.0]], [[3.0], [2.0]]]), torch.tensor([[True, False], [True, True]])
    metric.update(outputs, torch.zeros_like(outputs), mask)
    assert metric.compute().quantile(1.0) == 3.0


@pytest.mark.parametrize(
    "fields", [{}, {"quantiles": [1.0], "root_mean_square": 1.0}, {"quantiles": ["x"], "root_mean_square": 1.0}]
)
def test_changed_fields_of_a_checkpoint_are_refused(fields):
    with pytest.raises(ValueError, match="the checkpoint's residuals"):
        Residuals.checked(fields)


def validated(learner, tmp_path) -> tuple[object, L.Trainer]:
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
    data = SinusoidDataModule(shots=4, train_tasks=25, val_tasks=7, tasks_per_batch=3, eval_query_shots=5)
    trainer.fit(learner, data)
    return learner, trainer


def test_validation_keeps_the_errors_of_all_its_tasks_and_the_checkpoint_too(tmp_path):
    learner, trainer = validated(MAML(MLP(), nn.MSELoss()), tmp_path)
    batch = SinusoidDataModule(shots=4, eval_query_shots=5).episodes("val").make(np.arange(7))
    errors = (learner.evaluate(batch).outputs[:, -1] - batch.query_y).abs().flatten()
    found = learner.validation_residuals
    assert found.quantile(1.0) == pytest.approx(float(errors.max()), rel=1e-4)
    assert found.root_mean_square == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-4)
    loaded = MAML.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert loaded.validation_residuals == found


def test_learners_with_a_noise_model_keep_none(tmp_path):
    assert validated(ABML(MLP(), nn.MSELoss()), tmp_path)[0].validation_residuals is None


def test_metrics_of_each_task(tmp_path):
    learner, trainer = validated(MAML(MLP(), nn.MSELoss()), tmp_path)
    data = SinusoidDataModule(shots=4, test_tasks=7, tasks_per_batch=3)
    trainer.test(learner, data, verbose=False)
    episodes = data.episodes("test")
    found = learner.per_task()
    for i in range(7):
        task = learner.adapt(episodes[i].support_x, episodes[i].support_y)
        own = nn.functional.mse_loss(task(episodes[i].query_x), episodes[i].query_y)
        torch.testing.assert_close(found["mse"][i], own, rtol=1e-4, atol=1e-5)
