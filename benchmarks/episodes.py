"""How many 5-way and 20-way 1-shot Omniglot tasks are made a second, and what share of a training step that is.

Run as ``OMNIGLOT_ROOT=... python benchmarks/episodes.py``. Where learn2learn can be imported, its rate is measured in
alternation with ours, in memory: with a tensor data set, and in the fastest form found (labels as
Python integers, fused transforms). Both give support and query sets of 1 and 5 examples a class.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

from lightning_meta import MAML
from lightning_meta.data import OmniglotDataModule
from lightning_meta.models import Conv4

SECONDS, REPEATS = 0.5, 7


def rate(make_tasks: Callable[[], int]) -> float:
    """Tasks per second over `SECONDS`; ``make_tasks`` returns how many it made."""
    made, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        made += make_tasks()
    return made / elapsed


def ours(data: OmniglotDataModule) -> Callable[[], int]:
    """Batches of 16 tasks through the data module's loader."""
    batches = iter(data.train_dataloader())

    def make() -> int:
        return next(batches).num_tasks

    return make


class IntegerLabels(Dataset[Any]):
    """Images with labels as Python integers, which learn2learn indexes faster than tensors."""

    def __init__(self, images: torch.Tensor, labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.labels[index]


def learn2learns(data: OmniglotDataModule, ways: int, fast: bool) -> Callable[[], int]:
    """One task after another from learn2learn's task set, split into support and query."""
    import learn2learn as l2l
    from learn2learn.data import transforms as t

    flat = data.episodes("train").dataset.tensors[0]
    labels = torch.arange(len(flat) // 20).repeat_interleave(20)
    source = IntegerLabels(flat, labels.tolist()) if fast else TensorDataset(flat, labels)
    dataset = l2l.data.MetaDataset(source)
    draw = [t.FusedNWaysKShots(dataset, n=ways, k=6)] if fast else [t.NWays(dataset, ways), t.KShots(dataset, 6)]
    steps = [*draw, t.LoadData(dataset), t.RemapLabels(dataset), t.ConsecutiveLabels(dataset)]
    tasks = l2l.data.Taskset(dataset, steps, num_tasks=-1)

    def make() -> int:
        l2l.data.partition_task(*tasks.sample(), shots=1)
        return 1

    return make


def step_share(data: OmniglotDataModule, ways: int) -> float:
    """The time to make a batch over the time of the training step that uses it."""
    learner = MAML(Conv4(ways), inner_lr=0.5)
    batches = iter(data.train_dataloader())
    making, training = [], []
    for index in range(12):
        start = time.perf_counter()
        batch = next(batches)
        making.append(time.perf_counter() - start)
        start = time.perf_counter()
        learner.training_step(batch, index).backward()
        training.append(time.perf_counter() - start)
    return statistics.median(making[2:]) / statistics.median(training[2:])


def main() -> None:
    """Print the rates and ratios."""
    try:
        import learn2learn  # noqa: F401
    except ImportError:
        peers: dict[str, bool] = {}
        print("learn2learn cannot be imported here: only our own rate is measured")
    else:
        peers = {"learn2learn, tensor data set": False, "learn2learn, fastest form": True}
    root = os.environ["OMNIGLOT_ROOT"]
    cache_dir = os.environ.get("OMNIGLOT_CACHE") or tempfile.mkdtemp()
    for ways in (5, 20):
        data = OmniglotDataModule(root, ways=ways, cache_dir=cache_dir, train_tasks=10**7)
        data.setup("fit")
        makers = {"lightning_meta": ours(data)}
        makers |= {name: learn2learns(data, ways, fast) for name, fast in peers.items()}
        rates: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(REPEATS):
            for name, make in makers.items():
                rates[name].append(rate(make))
        own = np.array(rates["lightning_meta"])
        print(f"{ways}-way 1-shot, 5 queries a class, {torch.get_num_threads()} threads:")
        for name, values in rates.items():
            ratio = float(np.median(own / np.array(values)))
            print(f"  {name:30s} {statistics.median(values):9.0f} tasks/s   ours is {ratio:5.1f} times as fast")
        print(f"  share of a Conv4-64 training step of 16 tasks: {100 * step_share(data, ways):.2f} %")


if __name__ == "__main__":
    main()
