"""What holds for every algorithm, whatever its mathematics."""

from __future__ import annotations

import copy
import pickle

import lightning as L
import pytest
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_meta import collate_episodes
from tests.reference import assert_same
from tests.registry import LEARNERS, every

INNER = {"inner_lr": 0.05, "inner_steps": 2}
TASK_SIZES = [(4, 6), (7, 3), (5, 5)]


def gradient(learner, batch):
    """Loss and meta-gradient of everything that is trained."""
    learner.zero_grad()
    torch.manual_seed(1)
    loss = learner.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in learner.named_parameters()}


def outputs(learner, task):
    torch.manual_seed(2)
    return learner.adapt(task.support_x, task.support_y)(task.query_x)


@every()
def test_the_registry_knows_which_learners_draw(entry):
    assert entry.draws == entry.cls.is_stochastic


def test_the_registry_has_every_public_algorithm():
    import lightning_meta.algorithms

    public = {getattr(lightning_meta.algorithms, name) for name in lightning_meta.algorithms.__all__}
    assert {entry.cls for entry in LEARNERS} == public


@pytest.mark.usefixtures("float64")
@every()
def test_gradients_are_finite_and_the_same_however_tasks_are_mapped(entry):
    learner = entry.learner(compile=False, **INNER, **entry.certain)
    batch, found = entry.batch(5), []
    for chunk in (None, 2, 1):
        other = entry.learner(compile=False, task_chunk_size=chunk, **INNER, **entry.certain)
        other.load_state_dict(learner.state_dict())
        found.append(gradient(other, batch))
    for loss, slopes in found:
        assert all(torch.isfinite(slope).all() for slope in slopes.values())
        torch.testing.assert_close(loss, found[0][0], rtol=1e-6, atol=1e-6)
        assert_same(slopes, found[0][1], 1e-5 if entry.draws else 1e-9)
    assert any(slope.any() for slope in found[0][1].values())


@pytest.mark.usefixtures("float64")
@every()
def test_ragged_tasks_train_and_evaluate_as_each_alone(entry):
    learner = entry.learner(compile=False, **INNER, **entry.certain)
    tasks = [entry.task(*sizes) for sizes in TASK_SIZES]
    loss, together = gradient(learner, collate_episodes(tasks))
    alone = [gradient(learner, collate_episodes([task])) for task in tasks]
    torch.testing.assert_close(loss, torch.stack([own for own, _ in alone]).mean(), rtol=1e-6, atol=1e-6)
    mean = {name: sum(own[name] for _, own in alone) / len(alone) for name in together}
    assert_same(together, mean, 1e-5 if entry.draws else 1e-9)
    result = learner.eval().evaluate(collate_episodes(tasks))
    for task, found in zip(tasks, result.outputs[:, -1], strict=True):
        expected = learner.evaluate(collate_episodes([task])).outputs[0, -1]
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-6, atol=1e-6)


@every()
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_adapt_leaves_the_learner_as_it_is(entry, mode):
    learner, task = entry.learner(**INNER).eval(), entry.task()
    before = copy.deepcopy(learner.state_dict())
    requires_grad = {name: p.requires_grad for name, p in learner.named_parameters()}
    with mode():
        adapted = learner.adapt(task.support_x, task.support_y)
        torch.manual_seed(1)
        output = adapted(task.query_x)
        torch.manual_seed(1)
        prediction = adapted.predict(task.query_x)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert {name: p.requires_grad for name, p in learner.named_parameters()} == requires_grad
    assert all(p.grad is None for p in learner.parameters())
    torch.testing.assert_close(prediction.mean, output.softmax(1) if entry.classes_only else output)


@every()
def test_copies_pickles_and_checkpoints_adapt_alike(entry, tmp_path):
    learner, task = entry.learner(**INNER).eval(), entry.task()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(tmp_path / "learner.ckpt")
    loaded = entry.cls.load_from_checkpoint(tmp_path / "learner.ckpt").eval()
    for other in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner)), loaded):
        assert type(other) is entry.cls
        assert torch.equal(outputs(other, task), outputs(learner, task))
        assert repr(other.hparams) == repr(learner.hparams)
    assert set(loaded.state_dict()) == set(learner.state_dict())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of Weights & Biases for all tests, as to start one takes a second."""
    settings = wandb.Settings(silent=True)
    run = wandb.init(mode="offline", dir=str(tmp_path_factory.mktemp("wandb")), settings=settings)
    yield run
    run.finish()
    wandb.teardown()  # it keeps the settings of the first run, which later tests of the process change


@every()
def test_the_loops_of_lightning_log_every_key(entry, run, tmp_path, monkeypatch):
    keys = set()
    monkeypatch.setattr(run, "log", lambda values, **_: keys.update(values))
    data = entry.data(tasks_per_batch=2, train_tasks=4, val_tasks=3, test_tasks=3)
    learner = entry.learner(**INNER, **({"eval_inner_steps": 3} if entry.takes_steps else {}))
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=WandbLogger(experiment=run),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = copy.deepcopy(learner.state_dict())
    trainer.fit(learner, data)
    assert any(not torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert {"train/loss", f"train/{entry.metric}"} <= keys
    expected = {"loss", entry.metric, *([f"{entry.metric}_pre"] if entry.takes_steps else [])}
    expected |= {f"{name}_ci95" for name in expected}
    for stage, loop in (("val", trainer.validate), ("test", trainer.test)):
        (logged,) = loop(learner, data, verbose=False)
        assert {f"{stage}/{name}" for name in expected} <= logged.keys() <= keys
        if not entry.takes_steps:
            assert not any("_pre" in name or "_step_" in name for name in logged)
    predicted = torch.cat(trainer.predict(learner, data))
    assert predicted.shape[0] == 3
    assert predicted.shape[2:] == (entry.outputs,)
