"""What Lightning's Trainer offers, with every kind of learner."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.tuner import Tuner
from torch import nn

from lightning_meta import MAML, MLP
from tests.ddp_script import ENTRIES, LEARNERS
from tests.learners.test_ddp import RANDOM
from tests.registry import BY_NAME, named_cases

TASKS = {"tasks_per_batch": 2, "train_tasks": 8, "val_tasks": 4}


def data(tasks_per_batch=2, **options):
    return BY_NAME["MAML"].data(**{**TASKS, "tasks_per_batch": tasks_per_batch, **options})


def fit(learner, tasks=None, entry=BY_NAME["MAML"], **options):
    trainer = L.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )
    trainer.fit(learner, entry.data(**TASKS) if tasks is None else tasks)
    return trainer, {name: value.clone() for name, value in learner.state_dict().items()}


def sgd_maml():
    torch.manual_seed(0)
    return MAML(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.02, optimizer=partial(torch.optim.SGD, lr=0.01))


@pytest.mark.filterwarnings("ignore:You requested to overfit")  # Lightning's, whatever the sampler
@pytest.mark.parametrize("name", named_cases(LEARNERS))
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 3},
        {"overfit_batches": 1},
        {"fast_dev_run": 2},
        {"deterministic": True, "profiler": "simple"},
        {"precision": "64-true"},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_every_learner_trains_with_every_option(name, options, tmp_path):
    torch.manual_seed(0)
    learner = LEARNERS[name]()
    before = {key: value.clone() for key, value in learner.named_parameters()}
    _, after = fit(learner, entry=ENTRIES[name], default_root_dir=tmp_path, **options)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[key], value.to(after[key])) for key, value in before.items())


@pytest.mark.parametrize("name", named_cases(sorted(LEARNERS.keys() - RANDOM)))
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-4), ("bf16-mixed", 0.05)])
def test_losses_in_other_precisions_are_close(name, precision, tolerance):
    def loss(precision):
        torch.manual_seed(0)
        trainer, _ = fit(LEARNERS[name](), entry=ENTRIES[name], max_epochs=1, precision=precision)
        return float(trainer.callback_metrics["val/loss"])

    assert loss(precision) == pytest.approx(loss("32-true"), rel=tolerance)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_repeats_the_same_tasks():
    seen = []

    class Noting(MAML):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(batch.support_x.clone())

    fit(Noting(MLP(hidden=[6]), nn.MSELoss()), overfit_batches=1, max_epochs=3)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_accumulated_batches_are_one_large_batch():
    _, accumulated = fit(sgd_maml(), data(2), accumulate_grad_batches=4)
    _, at_once = fit(sgd_maml(), data(8))
    for name, value in at_once.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-5, atol=1e-7)


def test_clipping_bounds_the_step():
    learner = sgd_maml()
    before = torch.cat([p.detach().flatten() for p in learner.parameters()])
    fit(learner, data(8), max_epochs=1, gradient_clip_val=1e-3)
    moved = torch.cat([p.detach().flatten() for p in learner.parameters()]) - before
    assert float(moved.norm()) == pytest.approx(0.01 * 1e-3, rel=1e-2)  # float32 after a tiny step


@pytest.mark.parametrize("name", named_cases(LEARNERS))
def test_reruns_are_identical_to_the_last_bit(name):
    def once():
        L.seed_everything(3, verbose=False)
        return fit(LEARNERS[name](), entry=ENTRIES[name], deterministic=True)[1]

    first, second = once(), once()
    assert all(torch.equal(second[key], value) for key, value in first.items())


def test_weights_are_averaged_and_training_stops_early():
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    _, averaged = fit(sgd_maml(), max_epochs=4, callbacks=[averaging])
    _, last = fit(sgd_maml(), max_epochs=4)
    assert any(not torch.equal(averaged[name], value) for name, value in last.items())
    patient = EarlyStopping("val/loss", patience=1, min_delta=1e9)
    trainer, _ = fit(sgd_maml(), max_epochs=9, callbacks=[patient])
    assert trainer.current_epoch == 2


def test_the_outer_rate_can_be_searched(tmp_path):
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1
    )
    found = Tuner(trainer).lr_find(sgd_maml(), data(train_tasks=100), update_attr=False, num_training=40)
    assert len(found.results["lr"]) == len(found.results["loss"]) > 20
    assert found.suggestion() is None or found.suggestion() > 0
