"""Trains with a dashboard on two processes; run by test_episode_dashboard_ddp.py as a program with the logs' folder."""

from __future__ import annotations

import sys
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_meta import MAML, MLP, AmortizedMAML, SinusoidDataModule
from lightning_meta.callbacks import EpisodeDashboard
from tests.offline_runs import without_drawing


def main(folder: str) -> None:
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message="EpisodeDashboard")
    torch.set_num_threads(1)
    without_drawing(pytest.MonkeyPatch())
    for name, callbacks in (("without", []), ("with", [EpisodeDashboard(num_episodes=3)])):
        L.seed_everything(0, verbose=False)
        learner = AmortizedMAML(MLP(hidden=[6]), nn.MSELoss())
        trainer = L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=2,
            log_every_n_steps=1,
            logger=CSVLogger(folder, name=name, version=""),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = SinusoidDataModule(tasks_per_batch=2, train_tasks=8, val_tasks=7, test_tasks=7)
        trainer.fit(learner, data)
        trainer.test(learner, data, verbose=False)
        torch.save([learner.state_dict(), torch.rand(2)], f"{folder}/{name}_{trainer.global_rank}.pt")
    # A learner that draws nothing, whose tasks can be evaluated alone.
    learner = MAML(MLP(hidden=[6]), nn.MSELoss())
    trainer.test(learner, data, verbose=False)
    tasks = data.episodes("test").make(np.arange(7))
    errors = [
        (learner.adapt(tasks.support_x[i], tasks.support_y[i])(tasks.query_x[i]) - tasks.query_y[i]).square().mean()
        for i in range(7)
    ]
    torch.save(torch.stack(errors), f"{folder}/alone_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
