"""How certain can one be of a patient's later measurements after the first day?

Amortized MAML predicts the hematocrit of PhysioNet 2012, with its uncertainty.

Run: ``python examples/patients.py data/physionet2012`` (about a minute on 2 cores). The folder holds ``set-a.zip`` of
https://physionet.org/content/challenge-2012. It prints the test error beside baselines, and draws four test patients to
``outputs/patients.png``.
"""

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_meta import MLP, AmortizedMAML, PhysioNet2012DataModule
from lightning_meta.analysis import compare_with_baselines
from lightning_meta.callbacks import draw_band

PICTURE = Path("outputs/patients.png")


def draw(learner: AmortizedMAML, data: PhysioNet2012DataModule) -> None:
    """Draw what is known of four test patients after one day, in standardized units."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    hours = torch.linspace(-1.7, 1.7, 100)[:, None]
    for axes, number in zip(figure.subplots(1, 4, sharey=True), range(4), strict=True):
        patient = data.episodes("test")[number]
        task = learner.adapt(patient.support_x, patient.support_y)
        draw_band(axes, task, hours)
        axes.plot(patient.support_x, patient.support_y, "ko", label="first day")
        axes.plot(patient.query_x, patient.query_y, "rx", label="later")
        axes.set_xlabel("time (standardized)")
    axes.legend()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


def main(root: str, steps: int = 800, **options: Any) -> None:
    """Train, compare, draw."""
    L.seed_everything(0)
    data = PhysioNet2012DataModule(
        root, parameter="HCT", random_split_time=False, tasks_per_batch=4, train_tasks=4 * steps, **options
    )
    learner = AmortizedMAML(MLP(), nn.MSELoss(), kl_weight=0.1, optimizer=lambda p: torch.optim.Adam(p, lr=2e-3))
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(learner, data)
    print(compare_with_baselines(data, learner))
    print(f"ci95: half-widths of 95 % intervals {data.interval_scope}")
    draw(learner.eval(), data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    main(parser.parse_args().root)
