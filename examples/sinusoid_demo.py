"""What does adaptation achieve on a curve that training never saw?

MAML, Reptile or implicit MAML is trained on sinusoids for about a minute. It prints the error after each number of
inner steps, and draws four unseen curves.

Run as ``python examples/sinusoid_demo.py [maml|reptile|imaml]``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_meta import MAML, MLP, ImplicitMAML, Reptile, SinusoidDataModule, TaskLearner

TASKS_PER_EPOCH = 20_000
PICTURE = Path("outputs/sinusoid_demo.png")


class Setting(NamedTuple):
    """A learner, its training in ``epochs`` of 20,000 tasks, and the inner steps after which its error is reported."""

    learner: TaskLearner
    title: str
    epochs: int
    tasks_per_batch: int
    query_shots: int
    reported: tuple[int, ...]


def cosine_adam(epochs: int) -> dict[str, Callable[..., Any]]:
    """Adam from 2e-3, annealed over the epochs."""
    return {
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
    }


def maml() -> Setting:
    """One inner step in training, ten in the test."""
    options = cosine_adam(epochs=10)
    learner = MAML(MLP(), nn.MSELoss(), inner_lr=0.01, eval_inner_steps=10, log_step_metrics=True, **options)
    return Setting(learner, "MAML", 10, 25, 10, (0, 1, 5, 10))


def reptile() -> Setting:
    """The paper's interpolation with ε from 1 to 0, on 50 points per task."""
    inner_lr, inner_steps, epochs = 0.02, 8, 2
    outer_steps = epochs * TASKS_PER_EPOCH // 10
    learner = Reptile(
        MLP(),
        nn.MSELoss(),
        inner_lr=inner_lr,
        inner_steps=inner_steps,
        eval_inner_steps=32,
        log_step_metrics=True,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=inner_lr * inner_steps),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, outer_steps),
        lr_scheduler_interval="step",
    )
    return Setting(learner, "Reptile", epochs, 10, 40, (0, 1, 8, 32))


def imaml() -> Setting:
    """64 inner steps on the regularized loss, and 5 damped conjugate-gradient steps for the implicit gradient."""
    learner = ImplicitMAML(
        MLP(),
        nn.MSELoss(),
        inner_lr=0.01,
        inner_steps=64,
        prox_lambda=1.0,
        cg_damping=5.0,
        log_step_metrics=True,
        **cosine_adam(epochs=2),
    )
    return Setting(learner, "Implicit MAML", 2, 25, 10, (0, 1, 16, 64))


SETTINGS = {"maml": maml, "reptile": reptile, "imaml": imaml}


def train(make: Callable[[], Setting]) -> tuple[Setting, SinusoidDataModule, dict[str, float]]:
    """Train for about a minute on 2 cores, then test on 600 unseen tasks."""
    L.seed_everything(0)
    setting = make()
    data = SinusoidDataModule(
        shots=10,
        query_shots=setting.query_shots,
        tasks_per_batch=setting.tasks_per_batch,
        train_tasks=TASKS_PER_EPOCH,
        eval_query_shots=100,
    )
    trainer = L.Trainer(
        max_epochs=setting.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=4,
        callbacks=[RichProgressBar()],
    )
    trainer.fit(setting.learner, data)
    (results,) = trainer.test(setting.learner, data, verbose=False)
    return setting, data, results


def print_table(setting: Setting, results: dict[str, float]) -> None:
    """Print the error before and after adaptation."""
    print(f"{setting.title}: mean squared error on 600 unseen tasks, 10 shots (95 % intervals over tasks)")
    table = Table()
    table.add_column("inner steps", justify="right")
    table.add_column("error", justify="right")
    for step in setting.reported:
        label = "0 (before)" if step == 0 else str(step)
        table.add_row(label, f"{results[f'test/mse_step_{step}']:.3f} ± {results[f'test/mse_step_{step}_ci95']:.3f}")
    Console().print(table)


def draw(setting: Setting, data: SinusoidDataModule) -> None:
    """Draw how predictions approach four unseen curves."""
    learner, reported = setting.learner.eval(), setting.reported
    episodes = data.episodes("test")
    numbers = np.arange(4)
    amplitudes, phases = episodes.curve(numbers)
    batch = episodes.make(numbers)
    x = torch.linspace(-5, 5, 200)[:, None]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    shades = plt.get_cmap("viridis_r")(np.linspace(0.2, 1, len(reported) - 1))
    for axis, i in zip(axes.flat, numbers, strict=True):
        task = batch.select(int(i))
        axis.plot(
            x,
            amplitudes[i] * np.sin(x.numpy() - phases[i]),
            color="black",
            linewidth=2.5,
            alpha=0.35,
            label="true curve",
        )
        axis.plot(x, learner.model(x).detach(), color="gray", linestyle=":", label="before adaptation")
        for shade, steps in zip(shades, reported[1:], strict=True):
            adapted = learner.adapt(task.support_x, task.support_y, steps=steps)
            axis.plot(x, adapted(x), color=shade, label=f"after {steps} step{'s' if steps > 1 else ''}")
        axis.plot(task.support_x, task.support_y, "v", color="crimson", markersize=8, label="support points")
        axis.set_title(f"amplitude {amplitudes[i]:.1f}, phase {phases[i] / math.pi:.2f} π")
        axis.grid(alpha=0.2)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.suptitle(f"{setting.title} on four unseen sinusoids")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    Console().print(f"Adaptation curves drawn in {PICTURE}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a learner on sinusoids for about a minute.")
    parser.add_argument("algorithm", nargs="?", default="maml", choices=SETTINGS)
    trained, module, figures = train(SETTINGS[parser.parse_args().algorithm])
    print_table(trained, figures)
    draw(trained, module)
