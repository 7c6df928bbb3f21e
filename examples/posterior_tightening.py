"""How does a posterior tighten as support points arrive?

Amortized MAML is trained on noisy sinusoids for about a minute, and adapts to 1, 2, ... points of one unseen curve.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar
from matplotlib.figure import Figure
from torch import nn

from lightning_meta import MLP, AmortizedMAML, SinusoidDataModule
from lightning_meta.callbacks import draw_band

SHOTS = (1, 2, 3, 5, 8, 12)
NOISE = 0.3
PICTURE = Path("outputs/posterior_tightening.png")


def train() -> tuple[AmortizedMAML, SinusoidDataModule]:
    """Train with five shots per task."""
    L.seed_everything(0)
    data = SinusoidDataModule(shots=5, query_shots=15, noise_std=NOISE, train_tasks=20_000, tasks_per_batch=25)
    learner = AmortizedMAML(MLP(), nn.MSELoss(), optimizer=lambda p: torch.optim.Adam(p, lr=3e-3))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[RichProgressBar()],
    )
    trainer.fit(learner, data)
    return learner.eval(), data


def draw(learner: AmortizedMAML, data: SinusoidDataModule) -> None:
    """Draw one unseen task after 1, 2, ... of its points, and print the mean epistemic deviation."""
    many = SinusoidDataModule(shots=max(SHOTS), noise_std=NOISE, seed=data.seed).episodes("test")
    amplitude, phase = (float(value[0]) for value in many.curve(np.array([3])))
    task = many[3]
    grid = torch.linspace(-5, 5, 200)[:, None]
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axis, shots in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, SHOTS, strict=True):
        adapted = learner.adapt(task.support_x[:shots], task.support_y[:shots])
        draw_band(axis, adapted, grid)
        axis.plot(grid, amplitude * np.sin(grid.numpy() - phase), color="black", alpha=0.4, label="true curve")
        axis.plot(task.support_x[:shots], task.support_y[:shots], "v", color="crimson", label="support points")
        deviation = float(adapted.predict(grid).epistemic.sqrt().mean())
        axis.set_title(f"{shots} points: mean epistemic deviation {deviation:.2f}")
        print(f"{shots:2d} support points: mean epistemic standard deviation {deviation:.3f}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"Drawn in {PICTURE}")


if __name__ == "__main__":
    draw(*train())
