"""Sinusoid regression (Finn, Abbeel, Levine, 2017, section 5.1); nothing to download."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta import arguments
from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset, Split
from lightning_meta.data.random_streams import uniforms
from lightning_meta.episodes.episode import Episode


@dataclass(eq=False)
class SinusoidEpisodes(EpisodeDataset):
    """Tasks ``y = A sin(x − phase) + noise``: A uniform in [0.1, 5], phase in [0, π], x in [−5, 5].

    Arguments as in `SinusoidDataModule`; ``split``, ``seed`` and the index determine a task.
    """

    split: Split
    num_tasks: int
    shots: int
    query_shots: int
    noise_std: float
    seed: int

    def curve(self, indices: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the tasks' amplitudes and phases, each ``[indices]``."""
        draws = uniforms(self.seed, self.split, indices, 2)
        return 0.1 + 4.9 * draws[:, 0], math.pi * draws[:, 1]

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return tasks with inputs and targets ``[indices, points, 1]``."""
        return self.redrawn(indices, np.zeros_like(indices))

    def redrawn(self, indices: NDArray[np.integer], draws: NDArray[np.integer]) -> Episode:
        """Return the same curves at other points."""
        amplitude, phase = self.curve(indices)
        points = self.shots + self.query_shots
        numbers = uniforms(self.seed, self.split, indices, 2 + 3 * points, draws)[:, 2:]
        x = 10 * numbers[:, :points] - 5  # [tasks, points]
        y = amplitude[:, None] * np.sin(x - phase[:, None])
        if self.noise_std > 0:  # the transform of Box and Muller (1958), from the remaining numbers
            radius = np.sqrt(-2 * np.log1p(-numbers[:, points : 2 * points]))
            y = y + self.noise_std * radius * np.cos(2 * math.pi * numbers[:, 2 * points :])
        both = torch.from_numpy(np.stack([x, y])).to(torch.get_default_dtype())[..., None]  # [2, tasks, points, 1]
        support, query = both.split([self.shots, self.query_shots], dim=2)
        return Episode(support[0], support[1], query[0], query[1])

    def disjoint(self) -> SinusoidEpisodes:
        """Return the tasks themselves, which are all independent."""
        return self

    def with_shots(self, shots: int) -> SinusoidEpisodes:
        """Return the same curves with so many support points, at other places."""
        arguments.check_count("shots", shots)
        return replace(self, shots=shots)


class SinusoidDataModule(TaskDataModule):
    """Sinusoid regression tasks, ``x`` and ``y`` of shape ``[tasks, points, 1]``.

    Args:
        shots: Support points per task.
        query_shots: Query points per training task; None: as many as ``shots``.
        eval_query_shots: Query points per validation and test task; None: as in training.
        noise_std: The standard deviation of Gaussian noise on y, in units of y.
        tasks_per_batch: Tasks in a meta-batch, per process.
        train_tasks: Tasks in a training epoch, over all processes.
        **options: As in `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> data = SinusoidDataModule(shots=5, query_shots=20, tasks_per_batch=4)
        >>> next(iter(data.train_dataloader())).query_x.shape
        torch.Size([4, 20, 1])
    """

    keeps_arguments = True

    def __init__(
        self,
        shots: int = 10,
        query_shots: int | None = None,
        eval_query_shots: int | None = None,
        noise_std: float = 0.0,
        tasks_per_batch: int = 25,
        train_tasks: int = 25_000,
        **options: Any,
    ) -> None:
        super().__init__(tasks_per_batch, train_tasks, **options)
        arguments.check_count("shots", shots)
        arguments.check_optional_count("query_shots", query_shots)
        arguments.check_optional_count("eval_query_shots", eval_query_shots)
        arguments.check_nonnegative("noise_std", noise_std)
        self.shots = shots
        self.query_shots = shots if query_shots is None else query_shots
        self.eval_query_shots = self.query_shots if eval_query_shots is None else eval_query_shots
        self.noise_std = noise_std

    def episodes(self, split: Split) -> SinusoidEpisodes:
        """Return the tasks of a split."""
        query = self.query_shots if split == "train" else self.eval_query_shots
        return SinusoidEpisodes(split, self.num_tasks[split], self.shots, query, self.noise_std, self.seed)
