"""Evaluating tasks, adaptation included, beside learn2learn: 10-shot sinusoids and 5-way 1-shot images.

Run as ``python evaluation.py`` in the environment that ``install_peers.sh`` makes. learn2learn adapts first-order, its
users' way to leave out graphs that nobody needs; the losses are compared before the times.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import timing
import torch
from torch import nn
from training_step import images, plain_conv4, sinusoids

from lightning_meta import MAML, MLP, Conv4, Episode


def learn2learn_evaluation(
    model: nn.Module, loss_fn: Callable[..., torch.Tensor], batch: Episode, inner_lr: float, steps: int
) -> Callable[[], float]:
    """The mean query loss, one task after another."""
    import learn2learn

    maml = learn2learn.algorithms.MAML(model, lr=inner_lr, first_order=True)
    tasks = [batch.select(i) for i in range(batch.num_tasks)]

    def evaluate() -> float:
        total = 0.0
        for task in tasks:
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(loss_fn(learner(task.support_x), task.support_y))
            with torch.no_grad():
                total += float(loss_fn(learner(task.query_x), task.query_y)) / len(tasks)
        return total

    return evaluate


def compare(
    label: str, learner: MAML, plain: nn.Module, batch: Episode, inner_lr: float, steps: int, repeats: int
) -> None:
    """Time both, if their losses agree."""
    ours, theirs = (
        lambda: float(learner.evaluate(batch, steps=steps).loss.mean()),
        learn2learn_evaluation(plain, learner.loss_fn, batch, inner_lr, steps),
    )
    if abs(ours() - theirs()) > 1e-4 * abs(ours()):
        print(f"{label:34s} DIFFERS, no ratio: {ours()} and {theirs()}")
        return
    times = timing.alternating_times({"ours": ours, "learn2learn": theirs}, repeats)
    ratio = timing.median_ratio(times["learn2learn"], times["ours"])
    cells = "   ".join(f"{name} {1e3 * statistics.median(t):8.2f} ms" for name, t in times.items())
    print(f"{label:34s} {cells} ({ratio:.2f} x)")


def main() -> None:
    """Print a line for each."""
    print("Evaluation of a batch of tasks")
    for count in sorted({torch.get_num_threads(), 1}, reverse=True):
        with timing.threads(count):
            learner = MAML(MLP(), nn.MSELoss()).eval()
            label = f"sinusoids, 100 tasks, 10 steps, {count} threads"
            compare(label, learner, learner.model, sinusoids(100), 0.01, 10, 5)
    images_learner = MAML(Conv4(5), inner_lr=0.5).eval()
    plain, _ = plain_conv4(images_learner.model)
    compare("Conv4-64, 5-way, 16 tasks, 5 steps", images_learner, plain, images(16, 5), 0.5, 5, 5)


if __name__ == "__main__":
    main()
