from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import ABML, MAML, MLP, Conv4, Episode, EpisodicDataModule, SinusoidDataModule, SupportClassLearner
from lightning_meta.algorithms.transfer.transfer_learner import TransferLearner
from lightning_meta.execution.capture import recorder
from tests.ddp_script import LEARNERS
from tests.registry import BY_NAME, named_cases

EPOCHS, BATCHES = 2, 5


def dropout():
    return MAML(nn.Sequential(MLP(hidden=[6]), nn.Dropout(0.2)), nn.MSELoss())


def images():
    return MAML(Conv4(2, filters=4), inner_lr=0.2)


def image_data():
    classes = TensorDataset(torch.rand(24, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4)
    return EpisodicDataModule(
        train=classes,
        val=classes,
        ways=2,
        shots=1,
        query_shots=2,
        tasks_per_batch=3,
        train_tasks=3 * BATCHES,
        val_tasks=3,
    )


def fit(learner, folder, ckpt_path=None, workers=0, callbacks=(), seed=0):
    """Train a learner, or the one of a name or a function, and return what it has learned."""
    L.seed_everything(seed if ckpt_path is None else 7, verbose=False)
    if not isinstance(learner, L.LightningModule):
        learner = LEARNERS[learner]() if isinstance(learner, str) else learner()
    if isinstance(learner.model, Conv4):
        data = image_data()
    else:
        transfers, classes = isinstance(learner, TransferLearner), isinstance(learner, SupportClassLearner)
        entry = BY_NAME["Baseline" if transfers else "ProtoNet" if classes else "MAML"]
        data = entry.data(tasks_per_batch=2, train_tasks=2 * BATCHES, val_tasks=3, num_workers=workers)
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[every_step, *callbacks],
    ).fit(learner, data, ckpt_path=ckpt_path)
    return {key: value.clone() for key, value in learner.state_dict().items()}


def assert_resumes(name, folder, steps, **options):
    whole = fit(name, folder / "whole", **options)
    for step in steps:
        resumed = fit(name, folder / f"from_{step}", folder / "whole" / f"step={step}.ckpt", **options)
        for key, value in whole.items():
            assert torch.equal(resumed[key], value), f"{key} after resuming at step {step}"


@pytest.mark.parametrize("name", named_cases(LEARNERS))
def test_resuming_at_any_step_ends_where_an_uninterrupted_run_does(tmp_path, name):
    assert_resumes(name, tmp_path, [3, BATCHES, BATCHES + 4])


def test_random_numbers_and_workers_resume_too(tmp_path):
    assert_resumes(dropout, tmp_path / "dropout", [2, 7])
    assert_resumes("MAML", tmp_path / "workers", [2, 7], workers=1)


@pytest.mark.parametrize("learner", ["MAML", "ABML", images])
def test_what_was_recorded_is_recorded_again(tmp_path, monkeypatch, learner):
    """Recordings of images round otherwise than Python's steps."""
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 2)
    assert_resumes(learner, tmp_path, [2, BATCHES + 1])


def test_calls_are_remembered_over_two_resumed_runs_and_by_phase(monkeypatch):
    monkeypatch.setattr(recorder, "_WAIT_LONGER", 1)

    def batch(tasks):
        return Episode(*[torch.randn(tasks, size, 1) for size in (3, 3, 4, 4)])

    def recorded(learner):
        return len(learner._mapping._recorder.recordings())

    learners = [MAML(MLP(hidden=[4]), nn.MSELoss()) for _ in range(4)]
    for _ in range(recorder.ALIKE_BEFORE_RECORDING + 1):
        learners[0].training_step(batch(3), 0)
        learners[0].training_step(batch(2), 0)
    assert recorded(learners[0]) == 2
    for before, after in itertools.pairwise(learners[:3]):
        after._mapping.resume(before._mapping.progress(step=1))
        after.training_step(batch(3), 0)
        assert recorded(after) == 1
    learners[2].training_step(batch(2), 0)
    assert recorded(learners[2]) == 2
    phase, calls = learners[0]._mapping.progress(step=1)
    learners[3]._mapping.resume((phase + "another", calls))
    learners[3].training_step(batch(3), 0)
    assert recorded(learners[3]) == 0


def fit_with(folder, callbacks, ckpt_path=None, **options):
    """Train with Adam for two epochs of 7 batches; further options are the trainer's."""
    L.seed_everything(0 if ckpt_path is None else 7, verbose=False)
    learner = MAML(MLP(hidden=[6]), nn.MSELoss())
    data = SinusoidDataModule(shots=4, tasks_per_batch=2, train_tasks=14, val_tasks=3)
    silent = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=2, callbacks=callbacks, default_root_dir=folder, **silent, **options)
    trainer.fit(learner, data, ckpt_path=ckpt_path)
    return {key: value.clone() for key, value in learner.state_dict().items()}


class SaveAfterBatch(L.Callback):
    """Saves after each of the numbered batches."""

    def __init__(self, folder, numbers):
        self.folder, self.numbers, self.count = folder, numbers, 0

    def on_train_batch_end(self, trainer, *arguments):
        self.count += 1
        if self.count in self.numbers:
            trainer.save_checkpoint(self.folder / f"{self.count}.ckpt")


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 3}, {"overfit_batches": 4}], ids=str)
def test_runs_that_accumulate_or_overfit_resume_too(tmp_path, options):
    whole = fit_with(tmp_path, [SaveAfterBatch(tmp_path, range(1, 8))], **options)
    for number in range(1, 8):
        resumed = fit_with(tmp_path / str(number), [], tmp_path / f"{number}.ckpt", **options)
        for key, value in whole.items():
            assert torch.equal(resumed[key], value), f"{key} after resuming from batch {number}"


def test_checkpoints_of_validations_in_mid_accumulation_resume_too(tmp_path):
    options = {"accumulate_grad_batches": 3, "val_check_interval": 5}

    def best(folder):
        return ModelCheckpoint(folder, filename="{step}", monitor="val/loss", save_top_k=-1)

    whole = fit_with(tmp_path, [best(tmp_path)], **options)
    saved = list(tmp_path.glob("*.ckpt"))
    assert saved
    for path in saved:
        resumed = fit_with(tmp_path / path.stem, [best(tmp_path / path.stem)], path, **options)
        assert all(torch.equal(resumed[key], value) for key, value in whole.items()), path


def test_a_checkpoint_inside_an_accumulating_step_is_refused(tmp_path):
    class SaveInside(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.fit_loop.epoch_loop.batch_progress.total.ready == 2:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    fit_with(tmp_path, [SaveInside()], accumulate_grad_batches=3)
    with pytest.raises(ValueError, match="accumulated inside a training step.*after an optimizer step"):
        fit_with(tmp_path / "again", [], tmp_path / "inside.ckpt", accumulate_grad_batches=3)


def test_what_did_not_pay_is_remembered():
    def train(learner, tasks, steps):
        for _ in range(steps):
            learner.training_step(Episode(*[torch.randn(tasks, size, 1) for size in (3, 3, 4, 4)]), 0)
        return len(learner._mapping._recorder.recordings())

    whole, resumed = (MAML(MLP(hidden=[4]), nn.MSELoss()) for _ in range(2))
    needed = recorder.ALIKE_BEFORE_RECORDING + 1
    assert train(whole, 3, needed) == 1
    resumed._mapping.resume(whole._mapping.progress(step=1))
    assert train(whole, 2, needed) == 1  # the first recording has not been repeated often enough yet
    assert train(resumed, 2, needed) == 0
    assert train(resumed, 3, recorder._REPEATS_TO_PAY) == 1
    assert train(resumed, 2, 1) == 2


def test_the_next_phase_begins_where_the_last_one_ended(tmp_path, monkeypatch):
    """What did not pay in one phase makes the next one wait, in a resumed run too."""
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 2)
    monkeypatch.setattr(recorder, "_WAIT_LONGER", 2)

    def train(folder, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        learner = MAML(Conv4(2, filters=4), inner_lr=0.2, multi_step_loss_epochs=2)
        data = image_data()
        data.num_tasks["train"] = 3 * 7
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        saves = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        L.Trainer(max_epochs=3, callbacks=[saves], **options).fit(learner, data, ckpt_path=ckpt_path)
        return {key: value.clone() for key, value in learner.state_dict().items()}

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "resumed", tmp_path / "whole" / "epoch=0.ckpt")
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_evaluating_a_checkpoint_leaves_recordings_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 2)
    data = SinusoidDataModule(shots=4, tasks_per_batch=2, train_tasks=8, val_tasks=3)
    learner = MAML(MLP(hidden=[4]), nn.MSELoss())
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(**options, default_root_dir=tmp_path)
    trainer.fit(learner, data)
    (before,) = learner._mapping._recorder.recordings()
    trainer.validate(learner, data, ckpt_path="best", verbose=False)
    L.Trainer(**options, default_root_dir=tmp_path / "again").fit(learner, data)
    assert learner._mapping._recorder.recordings() == [before]


@pytest.mark.parametrize(("learner", "step"), [("ABML", BATCHES + 2), (images, 2)])
def test_a_checkpoint_saved_inside_a_step_repeats_that_step(tmp_path, monkeypatch, learner, step):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 2)
    whole = fit(learner, tmp_path / "whole")

    class Failing(L.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "failed.ckpt")
                raise ConnectionError

    with pytest.raises(ConnectionError):
        fit(learner, tmp_path / "failing", callbacks=[Failing()])
    resumed = fit(learner, tmp_path / "resumed", tmp_path / "failed.ckpt")
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_training_on_from_trained_weights_follows_the_new_seed(tmp_path):
    fit("ABML", tmp_path / "first")

    def again(seed):
        loaded = ABML.load_from_checkpoint(tmp_path / "first" / "step=10.ckpt")
        return fit(loaded, tmp_path / str(time.monotonic_ns()), seed=seed)

    one, other, same = again(1), again(2), again(1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


KILLED = """
import sys
from tests.checkpoints.test_resume import fit
fit(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(6))
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path, attempt):
    name = random.Random(attempt).choice(list(LEARNERS))
    whole = fit(name, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, name, str(killed)], cwd=Path(__file__).parents[2])
    while not list(killed.glob("*.ckpt")):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(random.Random(attempt).uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = max(killed.glob("*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
    resumed = fit(name, tmp_path / "resumed", newest)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_checkpoints_of_others_and_broken_ones_are_refused(tmp_path):
    fit("MAML", tmp_path)
    whole = tmp_path / "step=3.ckpt"
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(RuntimeError, match="truncated.ckpt cannot be read"):
        fit("MAML", tmp_path / "again", truncated)
    foreign = tmp_path / "foreign.ckpt"
    content = torch.load(whole)
    del content["meta_learner_arguments"]
    torch.save(content, foreign)
    with pytest.raises(ValueError, match="not saved by a TaskLearner"):
        fit("MAML", tmp_path / "again", foreign)
    fit("MAML", tmp_path / "again", whole)
