"""The tasks that an analysis takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode
from lightning_meta.episodes.trees import map_leaves


def take(tasks: EpisodeDataset, count: int, device: torch.device | str = "cpu", first: int = 0) -> Episode:
    """Return tasks ``first``, ``first + 1``, ... of a data set as a batch ``[count, ...]`` on a device.

    Raises:
        ValueError: If the data set has fewer.
    """
    check_available(tasks, first + count)
    return moved_to(device, tasks.make(np.arange(first, first + count)))


def check_available(tasks: EpisodeDataset, count: int) -> None:
    """Raise a ValueError if a data set has fewer tasks."""
    if count > len(tasks):
        raise ValueError(
            f"{count} tasks are asked for, and the data module has {len(tasks)} in this split: ask for fewer, or give "
            "it more (val_tasks, test_tasks)"
        )


def moved_to(device: torch.device | str, batch: Episode) -> Episode:
    """Return a batch on a device."""

    def moved(leaf: Tensor) -> Tensor:
        return leaf.to(device)

    return map_leaves(moved, batch)
