"""Trains and validates learners on the number of processes given; every process saves what it ended with.

Run by learners/test_ddp.py as ``python ddp_script.py DEVICES FOLDER LEARNER...``; Lightning starts the other processes.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import nn

from lightning_meta import (
    ABML,
    ANIL,
    MAML,
    MLP,
    AmortizedMAML,
    BayesianMAML,
    ImplicitMAML,
    MetaSGD,
    Reptile,
    SinusoidDataModule,
)
from lightning_meta.inner import update_rules

TASKS_PER_STEP, STEPS = 4, 20


def frozen_body():
    model = MLP(hidden=[6, 6])
    model.layers[0].requires_grad_(False)
    return model


LEARNERS = {
    "maml": lambda: MAML(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.02, inner_steps=2, learned_rates="tensor"),
    "head": lambda: MAML(frozen_body(), nn.MSELoss(), inner_lr=0.02, adapt="head"),
    "anil": lambda: ANIL(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.02),
    "metasgd": lambda: MetaSGD(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.02),
    "reptile": lambda: Reptile(
        MLP(hidden=[6]),
        nn.MSELoss(),
        inner_lr=0.02,
        inner_steps=2,
        inner_optimizer=update_rules.Adam(),
        inner_state="kept",
    ),
    "imaml": lambda: ImplicitMAML(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.02, inner_steps=2),
    "bayesian": lambda: BayesianMAML(MLP(hidden=[6]), nn.MSELoss(), num_particles=2, normalize_steps=True),
    "amortized": lambda: AmortizedMAML(MLP(hidden=[6]), nn.MSELoss()),
    "abml": lambda: ABML(MLP(hidden=[6]), nn.MSELoss(), normalize_steps=True, inner_steps=1),
}


class Seen(L.Callback):
    """Notes the first input of every task that this process trained on."""

    def __init__(self):
        self.first_inputs = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.first_inputs.append(batch.support_x[:, 0, 0].clone())


def main(devices, folder, names):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name in names:
        L.seed_everything(0, verbose=False)
        learner, seen = LEARNERS[name](), Seen()
        data = SinusoidDataModule(
            shots=4, tasks_per_batch=TASKS_PER_STEP // devices, train_tasks=TASKS_PER_STEP * STEPS // 2, val_tasks=11
        )
        trainer = L.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=2,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[seen],
        )
        trainer.fit(learner, data)
        trainer.limit_val_batches = 1.0
        (metrics,) = trainer.validate(learner, data, verbose=False)
        result = {"state": learner.state_dict(), "metrics": metrics, "seen": torch.cat(seen.first_inputs)}
        torch.save(result, Path(folder) / f"{name}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
