"""How a training step's time grows with tasks, inner steps, ways and filters, and where the time goes.

Run as ``python scaling.py``. Exponents are slopes of least-squares lines through the logarithms.
"""

from __future__ import annotations

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


def table(title: str, make: Callable[..., Callable[[], None]], grid: dict[str, tuple[int, ...]]) -> None:
    """Print times along each axis, the others at their defaults, and the exponent."""
    print(title)
    for axis, sizes in grid.items():
        times = timing.alternating_medians({str(size): make(**{axis: size}) for size in sizes}, 5)
        exponent = np.polyfit(np.log(sizes), np.log(list(times.values())), 1)[0]
        cells = "  ".join(f"{size}: {1e3 * t:.1f} ms" for size, t in times.items())
        print(f"  {axis:8s} exponent {exponent:4.2f}   {cells}", flush=True)


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
    table(f"{title} ({torch.get_num_threads()} threads)", image_step, IMAGES)
    table("MLP 1-40-40-1, 10 shots, 25 tasks, 5 inner steps, but for the axis named", sinusoid_step, SINUSOIDS)
    where_time_goes("Conv4-64, 16 tasks", image_step(tasks=16))
    where_time_goes("MLP, 25 tasks, 5 inner steps", sinusoid_step())


if __name__ == "__main__":
    main()
