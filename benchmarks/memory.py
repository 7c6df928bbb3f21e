"""Peak memory of a training step as inner steps grow: MAML, checkpointed MAML and implicit MAML, beside learn2learn.

Run as ``python benchmarks/memory.py``; learn2learn's figures need the environment of ``install_peers.sh``. Every figure
is the rise of resident memory during a step, at its peak, in a separate process for each number of steps. The first
steps are run by Python; a step of up to 32 inner steps is then recorded, which has a peak of its own, and repeated.
Ours hold 4 tasks at once, except where the name says one; learn2learn holds one.
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
_MOST_STEPS_RECORDED = 25  # more take more operations than are recorded
LEARNERS = {
    "MAML": partial(MAML, compile=False),
    "MAML, recording": MAML,
    "MAML, one task at once": partial(MAML, task_chunk_size=1, compile=False),
    "MAML, checkpointed": partial(MAML, checkpoint_inner_loop=True),
    "ImplicitMAML": partial(ImplicitMAML, compile=False),
}
RECORDED = "MAML, recording"
PEER = "learn2learn"


def peaks_mebibytes(name: str, steps: int) -> list[float]:
    """Return the memory that a training step adds to the process, and that the next step adds, once it is warm."""
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
    steps = "".join(f"{steps:>9d}" for steps in STEPS)
    print(f"{'inner steps':>24s}{steps}   growth, first to last   times learn2learn's")
    theirs = peaks_by_steps(PEER)[0] if importlib.util.find_spec(PEER) else []
    for name in LEARNERS:
        first, second = peaks_by_steps(name)
        row(name, first, theirs)
        if name == RECORDED:
            row("MAML, recorded", second, theirs)
    if theirs:
        row(PEER, theirs, theirs)


def peaks_by_steps(name: str) -> tuple[list[float], list[float]]:
    """The peaks of a first step and of the next, for each number of inner steps."""
    peaks = [
        json.loads(subprocess.check_output([sys.executable, __file__, name, str(steps)], text=True))
        for steps in STEPS
        if name != RECORDED or steps <= _MOST_STEPS_RECORDED
    ]
    return [first for first, _ in peaks], [second for _, second in peaks]


def row(name: str, peaks: list[float], theirs: list[float]) -> None:
    """Print a line of the table."""
    growth = f"{100 * (peaks[-1] / peaks[0] - 1):.1f} %"
    ratios = " / ".join(f"{ours / peer:.2f}" for ours, peer in zip(peaks, theirs, strict=False))
    cells = "".join(f"{peak:9.1f}" for peak in peaks).ljust(9 * len(STEPS))
    print(f"{name:>24s}{cells}{growth:>24s}   {ratios}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(peaks_mebibytes(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
