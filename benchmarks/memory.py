"""Peak memory of a training step as the inner steps grow: MAML, with its inner loop checkpointed, and implicit MAML.

Run as ``python benchmarks/memory.py``. Every figure comes from a process of its own: how far a step's peak of resident
memory lies above what the process had before. MAML's first steps are run by Python; then the step is recorded, which
is a peak of its own, and repeated.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import partial

import timing
import torch

from lightning_meta import MAML, Conv4, Episode, ImplicitMAML

STEPS = (5, 25, 100)
LEARNERS = {
    "MAML": partial(MAML, compile=False),
    "MAML, recording": MAML,
    "MAML, recorded": MAML,
    "MAML, checkpointed": partial(MAML, checkpoint_inner_loop=True),
    "ImplicitMAML": ImplicitMAML,
}


def peak_mebibytes(name: str, steps: int) -> float:
    """What one training step adds to this process's resident memory, after a small learner's steps to warm up."""
    timing.record_at_once()
    images, labels = torch.rand(4, 5, 1, 28, 28), torch.arange(5).expand(4, 5)
    batch = Episode(images, labels, images.clone(), labels)
    learner = LEARNERS[name](Conv4(5), inner_lr=0.01, inner_steps=steps)
    warm = LEARNERS[name](Conv4(5, filters=2), inner_lr=0.01, inner_steps=1)
    for _ in range(2):
        warm.training_step(batch, 0).backward()
    if name == "MAML, recorded":
        learner.training_step(batch, 0).backward()
        ctypes.CDLL(None).malloc_trim(0)  # give back what recording used
    peak = timing.AddedPeak()
    learner.training_step(batch, 0).backward()
    return peak.mebibytes()


def main() -> None:
    """Print the table."""
    print("Conv4-64, 4 tasks, 5-way 1-shot: MiB that a training step adds to the process's peak")
    print(f"{'inner steps':>20s}" + "".join(f"{steps:>9d}" for steps in STEPS) + "   growth, first to last")
    for name in LEARNERS:
        peaks = [
            float(subprocess.check_output([sys.executable, __file__, name, str(steps)], text=True)) for steps in STEPS
        ]
        print(f"{name:>20s}" + "".join(f"{peak:9.1f}" for peak in peaks) + f"{100 * (peaks[-1] / peaks[0] - 1):9.1f} %")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(peak_mebibytes(sys.argv[1], int(sys.argv[2])))
    else:
        main()
