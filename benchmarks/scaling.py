"""How a training step's time and memory grow with tasks, inner steps, ways and filters, and where the time goes.

Run as ``python scaling.py``. Exponents are slopes of least-squares lines through the logarithms. Memory is the peak of
resident memory that a repeated step adds, in a process of its own for every figure.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import timing
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training_step import images, sinusoids

from lightning_meta import MAML, MLP, Conv4, Episode

IMAGES = {"tasks": (4, 8, 16, 32), "steps": (1, 2, 4, 8), "ways": (5, 10, 20), "filters": (16, 32, 64, 128)}
SINUSOIDS = {"tasks": (5, 25, 125, 625), "steps": (1, 2, 5, 10, 20), "hidden": (20, 40, 80, 160)}


def step_of(learner: MAML, batch: Episode) -> Callable[[], None]:
    """A training step with its backward."""

    def step() -> None:
        learner.training_step(batch, 0).backward()

    step()
    return step


def image_step(tasks: int = 8, steps: int = 1, ways: int = 5, filters: int = 64) -> Callable[[], None]:
    """Conv4 on Omniglot's size, 1 shot, 5 queries."""
    return step_of(MAML(Conv4(ways, filters=filters), inner_lr=0.1, inner_steps=steps), images(tasks, ways))


def sinusoid_step(tasks: int = 25, steps: int = 5, hidden: int = 40) -> Callable[[], None]:
    """An MLP with two hidden layers on 10-shot sinusoids."""
    return step_of(MAML(MLP(hidden=[hidden, hidden]), nn.MSELoss(), inner_steps=steps), sinusoids(tasks))


KINDS: dict[str, tuple[Callable[..., Callable[[], None]], dict[str, tuple[int, ...]]]] = {
    "images": (image_step, IMAGES),
    "sinusoids": (sinusoid_step, SINUSOIDS),
}


def table(title: str, kind: str) -> None:
    """Print times and memory along each axis, the others at their defaults, and the exponents."""
    make, grid = KINDS[kind]
    print(title)
    for axis, sizes in grid.items():
        times = timing.alternating_medians({str(size): make(**{axis: size}) for size in sizes}, 5)
        row(axis, "time", sizes, [1e3 * seconds for seconds in times.values()], "ms")
        peaks = [
            float(subprocess.check_output([sys.executable, __file__, kind, axis, str(size)], text=True))
            for size in sizes
        ]
        row(axis, "memory", sizes, peaks, "MiB")


def row(axis: str, what: str, sizes: tuple[int, ...], values: list[float], unit: str) -> None:
    """Print the values along one axis, and the exponent."""
    exponent = np.polyfit(np.log(sizes), np.log(values), 1)[0]
    cells = "  ".join(f"{size}: {value:.1f} {unit}" for size, value in zip(sizes, values, strict=True))
    print(f"  {axis:8s} {what:7s} exponent {exponent:4.2f}   {cells}", flush=True)


def peak_mebibytes(kind: str, axis: str, size: int) -> float:
    """What a repeated step adds to this process's resident memory."""
    step = KINDS[kind][0](**{axis: size})
    step()
    ctypes.CDLL(None).malloc_trim(0)
    peak = timing.AddedPeak()
    step()
    return peak.mebibytes()


def where_time_goes(title: str, step: Callable[[], None], rows: int = 10) -> None:
    """Print the operators that take most of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{title}: share of the time inside operators")
    for event in events[:rows]:
        print(f"  {100 * event.self_cpu_time_total / total:5.1f} %  {event.key}  ({event.count // 3} calls a step)")


def main() -> None:
    """Print both tables and both profiles."""
    title = "Conv4-64, 5-way 1-shot, 8 tasks, 1 inner step, but for the axis named"
    table(f"{title} ({torch.get_num_threads()} threads)", "images")
    table("MLP 1-40-40-1, 10 shots, 25 tasks, 5 inner steps, but for the axis named", "sinusoids")
    where_time_goes("Conv4-64, 16 tasks", image_step(tasks=16))
    where_time_goes("MLP, 25 tasks, 5 inner steps", sinusoid_step())


if __name__ == "__main__":
    timing.record_at_once()
    if len(sys.argv) > 1:
        print(peak_mebibytes(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    else:
        main()
