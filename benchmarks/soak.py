"""Whether memory stays flat over 20,000 training steps of each kind of learner.

Run as ``python soak.py [STEPS]``. Prints the resident memory at ten points of a `Trainer.fit` with logger and
checkpoints, and its slope over the second half.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn

from lightning_meta import ABML, MAML, MLP, BayesianMAML, ImplicitMAML, Reptile, SinusoidDataModule
from lightning_meta.learners.task_learner import TaskLearner

LEARNERS = {
    "MAML": lambda model, loss_fn: MAML(model, loss_fn, learned_rates="tensor"),
    "Reptile": lambda model, loss_fn: Reptile(model, loss_fn, inner_steps=2, inner_batch_size=2),
    "ImplicitMAML": lambda model, loss_fn: ImplicitMAML(model, loss_fn, inner_steps=2),
    "BayesianMAML": lambda model, loss_fn: BayesianMAML(model, loss_fn, num_particles=2, normalize_steps=True),
    "ABML": lambda model, loss_fn: ABML(model, loss_fn, inner_steps=1, num_samples=1, normalize_steps=True),
}


def resident_mebibytes() -> float:
    """This process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Memory(L.Callback):
    """Records the resident memory at regular steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.points: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Collect garbage, then record the memory."""
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.points.append((trainer.global_step, resident_mebibytes()))


def soak(learner: TaskLearner, steps: int) -> list[tuple[int, float]]:
    """Train for the steps in ten epochs, and return step and memory ten times an epoch."""
    memory = Memory(every=max(1, steps // 100))
    data = SinusoidDataModule(shots=4, tasks_per_batch=2, train_tasks=steps // 10 * 2, val_tasks=4)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            default_root_dir=folder, max_epochs=10, accelerator="cpu", callbacks=[memory], enable_progress_bar=False
        )
        trainer.fit(learner, data)
    return memory.points


def main(steps: int) -> None:
    """Print a line for each learner."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name, make in LEARNERS.items():
        points = np.array(soak(make(MLP(hidden=[8]), nn.MSELoss()), steps))
        late = points[len(points) // 2 :]
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0]
        shown = " ".join(f"{memory:.0f}" for memory in points[:: len(points) // 10, 1])
        print(f"{name:14s} {steps} steps: MiB {shown}; late slope {1e3 * slope:+.4f} MiB per 1,000 steps", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
