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


def test_quantiles_have_the_ranks_of_split_conformal_prediction():
    errors = torch.tensor([0.4, -0.1, 0.3, 0.2])
    found = residuals_of(errors)
    # Of five exchangeable errors, the last is below the k-th smallest of the others with probability k / 5.
    for level, rank in {0.01: 1, 0.2: 1, 0.201: 2, 0.4: 2, 0.5: 3, 0.6: 3, 0.75: 4, 0.8: 4, 0.9: 4, 1.0: 4}.items():
        assert found.quantile(level) == pytest.approx(rank / 10, rel=1e-6)
    assert found.root_mean_square == pytest.approx(np.sqrt(0.3 / 4), rel=1e-6)


def test_a_further_error_is_covered_often_enough():
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(4000):
        errors = torch.rand(13, generator=generator)
        covered.append(float(errors[12]) <= residuals_of(errors[:12]).quantile(0.8))
    assert np.mean(covered) + 2 * 0.4 / 4000**0.5 > 0.8
    assert np.mean(covered) < 11 / 13 + 2 * 0.4 / 4000**0.5


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
    "fields",
    [
        {},
        {"quantiles": [1.0], "root_mean_square": 1.0},
        {"quantiles": ["x"], "root_mean_square": 1.0},
        {"quantiles": [-5.0] * 1001, "root_mean_square": 1.0},
        {"quantiles": [float("nan")] * 1001, "root_mean_square": 1.0},
        {"quantiles": [1.0] * 1000 + [0.5], "root_mean_square": 1.0},
        {"quantiles": [1.0] * 1001, "root_mean_square": 10**400},
        {"quantiles": [1.0] * 1001, "root_mean_square": -1.0},
    ],
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
