"""Offline runs of every learner with a dashboard, made once for all tests that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_meta.callbacks import EpisodeDashboard
from tests.offline_runs import OfflineRun, offline_runs

SETTINGS = wandb.Settings(x_disable_stats=True, x_disable_meta=True, disable_git=True, console="off", silent=True)


def run_offline(folder: Path, learner: Any, data: Any, tests: bool) -> OfflineRun:
    """Fit for an epoch with a dashboard, offline, and test if asked; return what the run holds."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(save_dir=folder, project="tests", settings=SETTINGS)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        callbacks=[EpisodeDashboard(num_episodes=2, num_examples=4)],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, data)
    if tests:
        trainer.test(learner, data, verbose=False)
    wandb.finish()
    (run,) = offline_runs(folder)
    return run
