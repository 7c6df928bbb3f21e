"""Peak memory of a training step as inner steps grow: MAML, checkpointed MAML and implicit MAML, beside learn2learn.

Run as ``python benchmarks/memory.py``; learn2learn's figures need the environment of ``install_peers.sh``. Every figure
is how far a step's peak of resident memory lies above what the process had before, in a process for each number of
steps. The first steps are run by Python; a step of up to 32 inner steps is then recorded, which is a peak of its own,
and repeated. Ours hold 4 tasks at once, learn2learn one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import peers
import timing
import torch
from torch import nn
from training_step import plain_conv4

from lightning_meta import MAML, Conv4, Episode, ImplicitMAML

STEPS = (5, 25, 100)
LEARNERS = {
    "MAML": partial(MAML, compile=False),
    "MAML, recording": MAML,
    "MAML, checkpointed": partial(MAML, checkpoint_inner_loop=True),
    "ImplicitMAML": partial(ImplicitMAML, compile=False),
}
PEER = "learn2learn"


def peaks_mebibytes(name: str, steps: int) -> list[float]:
    """What a training step adds to this process's resident memory, after a small model's; what the next adds."""
    timing.record_at_once()
    images, labels = torch.rand(4, 5, 1, 28, 28), torch.arange(5).expand(4, 5)
    batch = Episode(images, labels, images.clone(), labels)
    warm, step = (step_of(name, Conv4(5, filters=f), k, batch) for f, k in ((2, 1), (64, steps)))
    for _ in range(2):
        warm()
    peaks = []
    for _ in range(2):
        peak = timing.AddedPeak()
        step()
        peaks.append(peak.mebibytes())
        ctypes.CDLL(None).malloc_trim(0)  # give back what recording used
    return peaks


def step_of(name: str, model: Conv4, steps: int, batch: Episode) -> Callable[[], object]:
    """A training step with its backward."""
    if name == PEER:
        return peers.learn2learn_step(plain_conv4(model)[0], nn.CrossEntropyLoss(), batch, 0.01, steps)
    learner = LEARNERS[name](model, inner_lr=0.01, inner_steps=steps)
    return lambda: learner.training_step(batch, 0).backward()


def main() -> None:
    """Print the table."""
    print("Conv4-64, 4 tasks, 5-way 1-shot: MiB that a training step adds to the process's peak")
    print(f"{'inner steps':>20s}" + "".join(f"{steps:>9d}" for steps in STEPS) + "   growth, first to last")
    for name in [*LEARNERS, PEER] if importlib.util.find_spec(PEER) else LEARNERS:
        peaks = [
            json.loads(subprocess.check_output([sys.executable, __file__, name, str(steps)], text=True))
            for steps in STEPS
        ]
        row(name, [first for first, _ in peaks])
        if name == "MAML, recording":
            row("MAML, recorded", [second for _, second in peaks])


def row(name: str, peaks: list[float]) -> None:
    """Print a line of the table."""
    growth = 100 * (peaks[-1] / peaks[0] - 1)
    print(f"{name:>20s}" + "".join(f"{peak:9.1f}" for peak in peaks) + f"{growth:9.1f} %", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(peaks_mebibytes(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
