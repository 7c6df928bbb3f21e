"""The five loops under Lightning's defaults, logging, checkpoints, inference."""

from __future__ import annotations

import copy
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import ANIL, MAML, Episode, MetaSGD
from lightning_meta.data import EpisodicDataModule, SinusoidDataModule
from lightning_meta.models import MLP, Conv4


def trainer(tmp_path, **kwargs):
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    return L.Trainer(**settings | kwargs)


def sinusoids(**kwargs):
    return SinusoidDataModule(**{"tasks_per_batch": 5, "train_tasks": 20, "val_tasks": 12, "test_tasks": 12} | kwargs)


def sinusoid_learner(**kwargs):
    return MAML(MLP(hidden=(8,)), nn.MSELoss(), inner_lr=0.02, **kwargs)


@pytest.fixture
def blobs():
    centers = 1.5 * torch.randn(12, 6)
    labels = torch.arange(12).repeat_interleave(20)
    return TensorDataset(centers[labels] + torch.randn(240, 6), labels)


def test_fit_validate_test_predict_under_defaults(tmp_path):
    learner, data = sinusoid_learner(eval_inner_steps=3, log_step_metrics=True), sinusoids()
    runner = trainer(tmp_path)
    before = copy.deepcopy(learner.state_dict())
    runner.fit(learner, data)
    assert any(not torch.equal(before[n], p) for n, p in learner.state_dict().items())
    assert {"train/loss", "train/mse"} <= runner.callback_metrics.keys()
    expected = {"loss", "mse", "mse_pre", "mse_ci95", "mse_pre_ci95", "loss_ci95"}
    expected |= {f"mse_step_{k}" for k in range(4)} | {f"mse_step_{k}_ci95" for k in range(4)}
    for stage, run in [("val", runner.validate), ("test", runner.test)]:
        (logged,) = run(learner, data, verbose=False)
        assert {f"{stage}/{name}" for name in expected} == logged.keys()
        assert logged[f"{stage}/mse_step_0"] == logged[f"{stage}/mse_pre"]
        assert logged[f"{stage}/mse_step_3"] == logged[f"{stage}/mse"] == pytest.approx(logged[f"{stage}/loss"])
    outputs = torch.cat(runner.predict(learner, data))
    assert outputs.shape == (12, 10, 1)


def test_metrics_are_per_task_means_with_intervals(tmp_path, blobs):
    data = EpisodicDataModule(blobs, blobs, ways=3, shots=2, query_shots=4, tasks_per_batch=5, val_tasks=13)
    learner = MAML(nn.Linear(6, 3), inner_lr=0.1, inner_steps=2)
    (logged,) = trainer(tmp_path).validate(learner, data, verbose=False)
    accuracies, before = [], []
    for batch in data.val_dataloader():
        for i in range(batch.num_tasks):
            task = batch.select(i)
            adapted = learner.adapt(task.support_x, task.support_y)
            accuracies.append((adapted(task.query_x).argmax(1) == task.query_y).float().mean())
            before.append((learner.model(task.query_x).argmax(1) == task.query_y).float().mean())
    values = torch.stack(accuracies)
    assert logged["val/acc"] == pytest.approx(float(values.mean()), abs=1e-6)
    assert logged["val/acc_ci95"] == pytest.approx(1.96 * float(values.std()) / math.sqrt(13), abs=1e-6)
    assert logged["val/acc_pre"] == pytest.approx(float(torch.stack(before).mean()), abs=1e-6)


def test_training_uses_fresh_tasks_each_epoch_and_validation_the_same(tmp_path):
    seen = {"train": [], "val": []}

    class Spy(MAML):
        def training_step(self, batch, batch_idx):
            seen["train"].append(batch.support_x.flatten(1)[:, 0].clone())
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen["val"].append(batch.support_x.flatten(1)[:, 0].clone())
            super().validation_step(batch, batch_idx)

    trainer(tmp_path, num_sanity_val_steps=0).fit(Spy(MLP(hidden=(8,)), nn.MSELoss()), sinusoids())
    tasks = torch.cat(seen["train"])
    assert len(tasks) == 40
    assert len(tasks.unique()) == 40
    first, second = torch.cat(seen["val"]).split(12)
    assert torch.equal(first, second)
    assert not set(first.tolist()) & set(tasks.tolist())


def test_training_learns_what_it_should(tmp_path, blobs):
    data = EpisodicDataModule(blobs, blobs, ways=3, shots=1, query_shots=5, train_tasks=640, val_tasks=100)
    learner = MAML(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), inner_lr=0.1, inner_steps=3)
    runner = trainer(tmp_path, max_epochs=4)
    (untrained,) = runner.validate(learner, data, verbose=False)
    runner.fit(learner, data)
    trained = runner.callback_metrics
    assert trained["val/acc"] > untrained["val/acc"] + 0.05
    assert trained["val/acc"] > trained["val/acc_pre"] + 0.3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_adapt_leaves_the_learner_as_it_is(mode):
    learner = MAML(Conv4(3, filters=8), inner_lr=0.4)
    before = copy.deepcopy(learner.state_dict())
    with mode():
        x, y = torch.randn(6, 1, 28, 28), torch.arange(3).repeat(2)
        task = learner.adapt(x, y, steps=30)
        logits = task(x)
        prediction = task.predict(x)
    assert (logits.argmax(1) == y).all()
    assert all(torch.equal(before[n], p) for n, p in learner.state_dict().items())
    torch.testing.assert_close(prediction.mean, logits.softmax(1))
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(prediction.total, entropy)
    assert prediction.epistemic is None


def test_an_adapted_task_does_not_follow_the_learner():
    learner, x, y = ANIL(MLP(), nn.MSELoss()), torch.randn(6, 1), torch.randn(6, 1)
    task = learner.adapt(x, y)
    before = task(x)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(1)
    assert torch.equal(task(x), before)


def test_binary_prediction_has_entropy():
    learner = MAML(nn.Linear(1, 1), nn.BCEWithLogitsLoss())
    task = learner.adapt(torch.randn(6, 1), torch.ones(6, 1))
    x = torch.randn(4, 1)
    expected = torch.distributions.Bernoulli(logits=task(x))
    torch.testing.assert_close(task.predict(x).mean, expected.probs)
    torch.testing.assert_close(task.predict(x).total, expected.entropy())


def test_cross_entropy_of_any_form_predicts_probabilities():
    learner = MAML(nn.Linear(2, 3), lambda output, target: nn.functional.cross_entropy(output, target))
    prediction = learner.adapt(torch.randn(6, 2), torch.arange(3).repeat(2)).predict(torch.randn(4, 2))
    torch.testing.assert_close(prediction.mean.sum(1), torch.ones(4))
    assert prediction.total.shape == (4,)


def test_adapt_may_ignore_padding():
    learner, x, y = sinusoid_learner(), torch.randn(6, 1), torch.randn(6, 1)
    mask = torch.tensor([True, True, False, True, False, True])
    with_mask = learner.adapt(x, y, support_mask=mask)(x)
    torch.testing.assert_close(with_mask, learner.adapt(x[mask], y[mask])(x))


def test_regression_point_prediction_claims_no_uncertainty():
    prediction = sinusoid_learner().adapt(torch.randn(5, 1), torch.randn(5, 1)).predict(torch.randn(4, 1))
    assert prediction.mean.shape == (4, 1)
    assert prediction.total is prediction.aleatoric is prediction.epistemic is None


def learned_state(learner):
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def test_resume_continues_as_if_uninterrupted(tmp_path):
    def learner():
        torch.manual_seed(1)
        return MAML(MLP(hidden=(8,)), nn.MSELoss(), inner_lr=0.02, learned_rates="tensor", first_order_epochs=1)

    whole = learner()
    trainer(tmp_path, max_epochs=3).fit(whole, sinusoids())
    first = learner()
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    trainer(tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[checkpoint]).fit(first, sinusoids())
    resumed = learner()
    again = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[again]).fit(
        resumed, sinusoids(), ckpt_path=checkpoint.last_model_path
    )
    expected = learned_state(whole)
    assert all(torch.equal(expected[n], p) for n, p in resumed.state_dict().items())
    assert any(not torch.equal(expected[n], p) for n, p in first.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: MAML(MLP(hidden=(8, 4)), nn.MSELoss(), inner_lr=0.03, inner_steps=2, learned_rates="tensor_step"),
        lambda: MAML(nn.Linear(1, 1), nn.L1Loss(), adapt=["*bias"], inner_optimizer="momentum"),
        lambda: ANIL(MLP(), nn.HuberLoss(delta=0.5)),
        lambda: MetaSGD(MLP(), nn.MSELoss()),
    ],
)
def test_checkpoints_load_without_arguments(tmp_path, make):
    learner = make()
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(learner, sinusoids())
    runner.save_checkpoint(tmp_path / "learner.ckpt")
    torch.load(tmp_path / "learner.ckpt", weights_only=True)
    loaded = type(learner).load_from_checkpoint(tmp_path / "learner.ckpt")
    assert repr(loaded.model) == repr(learner.model)
    assert repr(loaded.loss_fn) == repr(learner.loss_fn)
    x, y = torch.randn(5, 1), torch.randn(5, 1)
    torch.testing.assert_close(loaded.eval().adapt(x, y)(x), learner.eval().adapt(x, y)(x))


class OwnNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        return self.layers(x)


def cubed(output, target):
    return (output - target).abs().pow(3).mean()


def test_checkpoints_of_unknown_modules_load_with_them(tmp_path):
    learner = MAML(OwnNet(5), cubed, inner_lr=0.03)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(learner, sinusoids())
    runner.save_checkpoint(tmp_path / "learner.ckpt")
    torch.load(tmp_path / "learner.ckpt", weights_only=True)
    loaded = MAML.load_from_checkpoint(tmp_path / "learner.ckpt", model=OwnNet(5), loss_fn=cubed)
    assert loaded.inner_lr == 0.03
    x, y = torch.randn(5, 1), torch.randn(5, 1)
    torch.testing.assert_close(loaded.adapt(x, y)(x), learner.adapt(x, y)(x))
    with pytest.raises(ValueError, match="was trained with loss_fn=cubed"):
        MAML.load_from_checkpoint(tmp_path / "learner.ckpt", model=OwnNet(5))
    with pytest.raises(ValueError, match="was trained with model=OwnNet, .*: pass model=..."):
        MAML.load_from_checkpoint(tmp_path / "learner.ckpt", loss_fn=cubed)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "32-true"])
def test_trains_in_every_precision(tmp_path, precision):
    images = TensorDataset(torch.rand(60, 1, 28, 28), torch.arange(6).repeat(10))
    data = EpisodicDataModule(images, ways=3, query_shots=2, tasks_per_batch=2, train_tasks=4)
    if precision == "64-true":
        images.tensors = (images.tensors[0].double(), images.tensors[1])
    for model in [Conv4(3, filters=8), Conv4(3, filters=8, downsampling="max_pool")]:
        learner = MAML(model, inner_lr=0.1, inner_steps=2)
        runner = trainer(tmp_path, max_epochs=1, precision=precision)
        runner.fit(learner, data)
        assert torch.isfinite(runner.callback_metrics["train/loss"])
        assert all(torch.isfinite(p).all() for p in learner.parameters())


def test_a_users_normalization_in_mixed_precision_works_or_says_how(tmp_path):
    images = TensorDataset(torch.rand(60, 1, 8, 8), torch.arange(6).repeat(10))
    data = EpisodicDataModule(images, ways=3, query_shots=2, tasks_per_batch=2, train_tasks=4)

    def learner(**kwargs):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 3))
        return MAML(model, inner_lr=0.1, **kwargs)

    settings = {"max_epochs": 1, "precision": "bf16-mixed"}
    with pytest.raises(RuntimeError, match="normalizes in mixed precision.*, set task_chunk_size=1"):
        trainer(tmp_path, **settings).fit(learner(task_chunk_size=2), data)
    runner = trainer(tmp_path, **settings)
    runner.fit(learner(task_chunk_size=1), data)
    assert torch.isfinite(runner.callback_metrics["train/loss"])


def test_subclass_may_change_the_task_loss():
    class Decayed(MAML):
        def task_loss(self, meta, task):
            loss, result = super().task_loss(meta, task)
            return loss + 0.1 * sum(p.square().sum() for p in meta.values()), result

    torch.manual_seed(0)
    plain, decayed = MAML(nn.Linear(2, 1), nn.MSELoss()), Decayed(nn.Linear(2, 1), nn.MSELoss())
    decayed.load_state_dict(plain.state_dict())
    batch = Episode(torch.randn(3, 4, 2), torch.randn(3, 4, 1), torch.randn(3, 4, 2), torch.randn(3, 4, 1))
    for learner in (plain, decayed):
        learner.training_step(batch, 0).backward()
    weight = plain.model.weight
    torch.testing.assert_close(decayed.model.weight.grad, weight.grad + 0.2 * weight.detach())
