"""What Lightning adds to a training step: its loop, the progress bar, logging and metrics.

Run as ``python lightning_overhead.py``. `Trainer.fit` with its defaults, less the same steps in a plain loop over the
same loader: ``training_step`` without a trainer (which logs nothing), ``backward``, Adam. Beside it what Lightning adds
to a module of one parameter that logs its loss, and to one that logs nothing: the minimum on this machine.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import lightning as L
import timing
import torch
from torch import nn
from training_step import images

from lightning_meta import MAML, MLP, Conv4, SinusoidDataModule

STEPS, UNCOUNTED, REPEATS = 300, 20, 9
BARE = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}


class OneParameter(L.LightningModule):
    """A minimal module that Lightning can train."""

    def __init__(self, logs: bool) -> None:
        super().__init__()
        self.weight, self.logs = nn.Parameter(torch.ones(())), logs

    def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
        """Return a loss that takes no computation."""
        loss = self.weight * 2
        if self.logs and self._trainer is not None:
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that learners use by default."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def maml() -> MAML:
    """A learner with tiny steps, so that the overhead around a step is measured precisely."""
    return MAML(MLP(hidden=[2]), nn.MSELoss())


def tasks() -> SinusoidDataModule:
    """Tasks with tiny sets."""
    return SinusoidDataModule(shots=1, query_shots=1, tasks_per_batch=1, train_tasks=STEPS, val_tasks=1)


def in_a_plain_loop(learner: L.LightningModule) -> float:
    """Return the seconds per step."""
    data, times = tasks(), []
    data.setup("fit")
    optimizer = learner.configure_optimizers()
    for index, batch in enumerate(data.train_dataloader()):
        optimizer.zero_grad()
        learner.training_step(batch, index).backward()
        optimizer.step()
        times.append(time.perf_counter())
    return seconds_per_step(times)


def under_lightning(learner: L.LightningModule, **options: bool) -> float:
    """Return the seconds per step."""
    times = []

    class Clock(L.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = L.Trainer(
            default_root_dir=folder,
            max_epochs=1,
            accelerator="cpu",
            callbacks=[Clock()],
            limit_val_batches=0,
            **options,
        )
        trainer.fit(learner, tasks())
    return seconds_per_step(times)


def seconds_per_step(ends: list[float]) -> float:
    """Seconds per step, from the times at which steps ended; the first steps, which are recorded, do not count."""
    return (ends[-1] - ends[UNCOUNTED]) / (len(ends) - 1 - UNCOUNTED)


def main() -> None:
    """Print the differences, and their share of Omniglot's default step."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    timing.record_at_once()
    torch.set_num_threads(1)
    kinds: dict[str, Callable[[], L.LightningModule]] = {
        "MAML": maml,
        "a module of one parameter that logs its loss": lambda: OneParameter(logs=True),
        "a module of one parameter that logs nothing": lambda: OneParameter(logs=False),
    }
    settings: dict[str, dict[str, bool]] = {"all defaults": {}, "no progress bar, logger, checkpoints": BARE}
    added: dict[tuple[str, str], list[float]] = {(kind, name): [] for kind in kinds for name in settings}
    for _ in range(REPEATS):
        for kind, make in kinds.items():
            plain = in_a_plain_loop(make())
            for name, options in settings.items():
                added[kind, name].append(under_lightning(make(), **options) - plain)
    learner, batch = MAML(Conv4(5), inner_lr=0.5), images(16, 5)

    def step() -> None:
        learner.training_step(batch, 0).backward()

    step()  # records
    default = timing.alternating_medians({"": step}, 5)[""]
    print(f"Omniglot's default step: {1e3 * default:.0f} ms on one thread.")
    print(f"Lightning adds to a step, medians of {REPEATS}:")
    for (kind, name), times in added.items():
        median = statistics.median(times)
        print(f"{1e3 * median:.2f} ms, {100 * median / default:.2f} % of it: {kind}, {name}")


if __name__ == "__main__":
    main()
