"""Trains and validates learners on the number of processes given; every process saves what it ended with.

Run by learners/test_ddp.py as ``python ddp_script.py DEVICES FOLDER LEARNER...``; Lightning starts the other processes.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch

from lightning_meta import MAML, MLP
from lightning_meta.algorithms.transfer.transfer_learner import TransferLearner
from lightning_meta.inner import update_rules
from tests.registry import BY_NAME, Entry

TASKS_PER_STEP, STEPS = 4, 20


def frozen_body():
    model = MLP(hidden=[6, 6])
    model.layers[0].requires_grad_(False)
    return model


# The options that have most to pass between processes, from one step to the next, or to checkpoints.
OPTIONS = {
    "MAML": {"inner_steps": 2, "learned_rates": "tensor"},
    "Reptile": {"inner_steps": 2, "inner_optimizer": update_rules.Adam(), "inner_state": "kept"},
    "BayesianMAML": {"normalize_steps": True},
    "SimpleShot": {"normalization": "cl2n"},
}
ENTRIES = BY_NAME | {"head": Entry("head", MAML, {"adapt": "head"})}


def make(name):
    entry = ENTRIES[name]
    model = frozen_body() if name == "head" else None
    inner = {} if entry.is_bayesian else {"inner_lr": 0.02}
    return entry.learner(model, **inner, **OPTIONS.get(name, {}))


LEARNERS = {name: partial(make, name) for name in ENTRIES}


class Seen(L.Callback):
    """Notes the sum of inputs of every task that this process trained on; without tasks, every input."""

    def __init__(self):
        self.inputs = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        joint = isinstance(pl_module, TransferLearner)
        self.inputs.append(batch.query_x.flatten() if joint else batch.support_x.flatten(1).sum(1))


def main(devices, folder, names):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name in names:
        L.seed_everything(0, verbose=False)
        learner, seen = LEARNERS[name](), Seen()
        data = ENTRIES[name].data(
            tasks_per_batch=TASKS_PER_STEP // devices, train_tasks=TASKS_PER_STEP * STEPS // 2, val_tasks=11
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
        scores = learner.validation_scores
        result = {
            "state": learner.state_dict(),
            "metrics": metrics,
            "seen": torch.cat(seen.inputs),
            "per_task": learner.per_task("val"),
            "scores": None if scores is None else scores._asdict(),
        }
        torch.save(result, Path(folder) / f"{name}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
