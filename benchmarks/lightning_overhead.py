"""What Lightning adds to a training step: its loop, the progress bar, logging and metrics.

Run as ``python lightning_overhead.py``. `Trainer.fit` with its defaults, less the same steps in a plain loop over the
same loader: ``training_step`` without a trainer (which logs nothing), ``backward``, Adam.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
import warnings

import lightning as L
import timing
import torch
from torch import nn
from training_step import images

from lightning_meta import MAML, MLP, Conv4, SinusoidDataModule

STEPS, REPEATS = 300, 5


def learner_and_data() -> tuple[MAML, SinusoidDataModule]:
    """The tiniest step there is, so that what surrounds it is measured well."""
    data = SinusoidDataModule(shots=1, query_shots=1, tasks_per_batch=1, train_tasks=STEPS, val_tasks=1)
    return MAML(MLP(hidden=[2]), nn.MSELoss(), compile=False), data


def in_a_plain_loop() -> float:
    """Seconds a step."""
    learner, data = learner_and_data()
    data.setup("fit")
    optimizer = learner.configure_optimizers()
    start = time.perf_counter()
    for index, batch in enumerate(data.train_dataloader()):
        optimizer.zero_grad()
        learner.training_step(batch, index).backward()
        optimizer.step()
    return (time.perf_counter() - start) / STEPS


def under_lightning(**options: bool) -> float:
    """Seconds a step, from the first batch to the last."""
    times = []

    class Clock(L.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            times.append(time.perf_counter())

    learner, data = learner_and_data()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            default_root_dir=folder,
            max_epochs=1,
            accelerator="cpu",
            callbacks=[Clock()],
            limit_val_batches=0,
            **options,
        )
        trainer.fit(learner, data)
    return (times[-1] - times[0]) / (len(times) - 1)


def main() -> None:
    """Print the difference, and its share of Omniglot's default step."""
    warnings.simplefilter("ignore")
    timing.record_at_once()
    torch.set_num_threads(1)
    plain, whole, bare = [], [], []
    for _ in range(REPEATS):
        plain.append(in_a_plain_loop())
        whole.append(under_lightning())
        bare.append(under_lightning(enable_progress_bar=False, logger=False, enable_checkpointing=False))
    learner, batch = MAML(Conv4(5), inner_lr=0.5), images(16, 5)

    def step() -> None:
        learner.training_step(batch, 0).backward()

    step()  # records
    default = timing.alternating_medians({"": step}, 5)[""]
    for name, times in (("all defaults", whole), ("no progress bar, logger, checkpoints", bare)):
        added = statistics.median(a - b for a, b in zip(times, plain, strict=True))
        print(f"Lightning adds {1e3 * added:.2f} ms a step ({name}), {100 * added / default:.2f} % of", end=" ")
        print(f"Omniglot's default step of {1e3 * default:.0f} ms on one thread")


if __name__ == "__main__":
    main()
