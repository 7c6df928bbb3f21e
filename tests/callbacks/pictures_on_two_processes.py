"""Draws pictures after a test on two processes; run by test_pictures_ddp.py as a program with the logs' folder."""

from __future__ import annotations

import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_meta import MLP, SinusoidDataModule
from lightning_meta.algorithms import MAML
from lightning_meta.callbacks import PosteriorBands, ReliabilityDiagram
from tests.registry import BY_NAME


def main(folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    classes = BY_NAME["ProtoNet"]
    for name, learner, data, callback in (
        ("bands", MAML(MLP(hidden=[6]), nn.MSELoss()), SinusoidDataModule(test_tasks=4), PosteriorBands(2)),
        ("classes", classes.learner(), classes.data(test_tasks=4, tasks_per_batch=2), ReliabilityDiagram()),
    ):
        trainer = L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            logger=CSVLogger(folder, name=name, version=""),
            callbacks=[callback],
            enable_progress_bar=False,
        )
        trainer.test(learner, data, verbose=False)
        # What another process receives here must be this number, not a part of an earlier message.
        received = trainer.strategy.broadcast(1 + trainer.global_rank)
        torch.save(received, f"{folder}/{name}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
