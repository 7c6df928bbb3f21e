"""What training steps log: each its loss, those that a logger keeps everything."""

from __future__ import annotations

import csv

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_meta import MAML, SinusoidDataModule
from lightning_meta.models import MLP


class Seen(L.Callback):
    """The metrics after each step, as callbacks and the progress bar read them."""

    def __init__(self):
        self.losses, self.metrics, self.returned = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.returned.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)  # Lightning divides by them
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.metrics.append(float(trainer.callback_metrics["train/mse"]))


def fit(folder, accumulate=1, max_steps=-1, epochs=1, callbacks=()):
    seen = Seen()
    data = SinusoidDataModule(tasks_per_batch=2, train_tasks=28 // epochs, val_tasks=2)
    trainer = L.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        max_steps=max_steps,
        accelerator="cpu",
        logger=CSVLogger(folder),
        log_every_n_steps=3,
        accumulate_grad_batches=accumulate,
        callbacks=[*callbacks, seen],
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(MAML(MLP(hidden=[4]), nn.MSELoss(), compile=False), data)
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        return seen, list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("accumulate", "epochs", "steps"),
    # Two epochs of 7 batches, the last accumulated alone: a third step's batches end at 5, a sixth's at 7 + 3.
    [(1, 1, [2, 5, 8, 11]), (2, 2, [5, 10])],
)
def test_loggers_keep_the_metrics_of_their_own_step(tmp_path, accumulate, epochs, steps):
    """With the squared error as loss, metric and loss of a step are one number; another step's is another."""
    seen, rows = fit(tmp_path, accumulate, epochs=epochs)
    assert [float(row["train/loss"]) for row in rows] == pytest.approx([seen.returned[n] for n in steps])
    assert [float(row["train/mse"]) for row in rows] == pytest.approx([seen.returned[n] for n in steps])


def test_a_metric_that_is_monitored_is_logged_in_every_step(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="train/mse", every_n_train_steps=2)
    seen, _ = fit(tmp_path, callbacks=[best])
    assert seen.metrics == pytest.approx(seen.returned)
    assert float(best.best_model_score) == pytest.approx(min(seen.returned[1::2]))


def test_after_a_stop_is_asked_for_rows_are_of_their_own_step(tmp_path):
    """Lightning then logs every step, of which ``min_steps`` may ask for more."""

    class Stop(L.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.fit_loop.epoch_loop.min_steps = 8

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.should_stop = trainer.should_stop or batch_idx == 3

    seen, rows = fit(tmp_path, callbacks=[Stop()])
    assert len(rows) > 4
    assert [float(row["train/mse"]) for row in rows] == [float(row["train/loss"]) for row in rows]
    assert float(rows[-1]["train/mse"]) == pytest.approx(seen.returned[-1])


def test_callbacks_see_each_steps_loss_and_the_metric_of_first_kept_and_last_steps(tmp_path):
    seen, _ = fit(tmp_path)
    assert seen.losses == seen.returned
    assert len(set(seen.losses)) == 14
    latest = [0, 0, 2, 2, 2, 5, 5, 5, 8, 8, 8, 11, 11, 13]
    assert seen.metrics == pytest.approx([seen.returned[n] for n in latest])
    seen, _ = fit(tmp_path / "cut", max_steps=5)
    assert seen.metrics == pytest.approx([seen.returned[n] for n in [0, 0, 2, 2, 4]])
