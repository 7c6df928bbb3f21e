"""`TableEpisodes`: tasks from groups of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta import arguments
from lightning_meta.data.distinct_tasks import first_distinct
from lightning_meta.data.episodes import EpisodeDataset, Split
from lightning_meta.data.random_streams import uniforms
from lightning_meta.data.tabular.row_choice import RowChoice, Rows
from lightning_meta.episodes.episode import Episode

_LEAST_WIDTH = 64  # rows that cost no more than the overhead of a step


@dataclass(eq=False)
class TableEpisodes(EpisodeDataset):
    """Tasks whose rows come from one group each; a draw chooses other rows of it.

    Training draws groups at random; validation and test go through them in turn.

    Attributes:
        inputs: The features of all rows of the table, ``[rows, features]``.
        targets: Their targets, ``[rows, 1]`` or ``[rows]``.
        choice: Chooses a task's rows; its groups are those of the split.
        split: The split.
        num_tasks: Tasks in an epoch.
        seed: Determines the tasks, with the split and the index.
        in_turn: Whether training goes through the groups in turn, too.
    """

    inputs: Tensor
    targets: Tensor
    choice: RowChoice
    split: Split
    num_tasks: int
    seed: int
    in_turn: bool = False

    def group_numbers(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the numbers of the tasks' groups, ``[indices]``."""
        groups = len(self.choice.groups.sizes)
        if self.split != "train" or self.in_turn:
            return (indices % groups).astype(np.int64)
        return np.floor(uniforms(self.seed, self.split, indices, 1)[:, 0] * groups).astype(np.int64)

    def row_numbers(self, indices: NDArray[np.integer], draws: NDArray[np.integer] | None = None) -> tuple[Rows, Rows]:
        """Return the numbers of the tasks' support and query rows, ``[indices, rows]``, -1 for padding."""
        return self.choice.rows(self.group_numbers(indices), partial(self._uniforms, indices, draws))

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return tasks ``[indices, rows, ...]``, with masks only if there is padding.

        Batches of training tasks of different sizes are padded to few sizes, since a new one slows training down:
        steps are captured anew.
        """
        return self._episode(*self.row_numbers(indices))

    def redrawn(self, indices: NDArray[np.integer], draws: NDArray[np.integer]) -> Episode:
        """Return tasks of the same groups with other rows; of query sets of all other rows, another division.

        Raises:
            TypeError: If a group always has the same rows.
        """
        reason = self.choice.fixed_by()
        if reason is not None:
            raise TypeError(f"examples cannot be drawn anew, because {reason}")
        return self._episode(*self.row_numbers(indices, draws))

    def distinct_indices(self, count: int) -> NDArray[np.int64]:
        """Return the indices of tasks of different groups, which in training come in random order."""
        return first_distinct(self.group_numbers, min(count, len(self.choice.groups.sizes)))

    def disjoint(self) -> TableEpisodes:
        """Return a task of each group; further indices go through the groups again."""
        return replace(self, num_tasks=len(self.choice.groups.sizes), in_turn=True)

    def with_shots(self, shots: int) -> TableEpisodes:
        """Return tasks of the same groups with so many support rows.

        Raises:
            TypeError: If times give their number.
            ValueError: If a group has too few rows.
        """
        arguments.check_count("shots", shots)
        choice = self.choice.with_shots(shots)
        small = choice.groups.select(~choice.enough())
        if small.names:
            raise ValueError(
                f"shots={shots}: {len(small.names)} of {len(choice.groups.names)} {self.split} groups have too few "
                f"rows ({small.names[0]!r} has {small.sizes[0]}): take fewer"
            )
        return replace(self, choice=choice)

    def _episode(self, support: Rows, query: Rows) -> Episode:
        if self.split == "train" and len(support) > 1:
            most_support, most_query = self.choice.most_rows()
            support, query = _widened(support, most_support), _widened(query, most_query)
        support_x, support_y, support_mask = self._set(support)
        query_x, query_y, query_mask = self._set(query)
        return Episode(support_x, support_y, query_x, query_y, support_mask, query_mask)

    def _uniforms(
        self, indices: NDArray[np.integer], draws: NDArray[np.integer] | None, count: int
    ) -> NDArray[np.float64]:
        return uniforms(self.seed, self.split, indices, 1 + count, draws)[:, 1:]  # the first chooses the group

    def _set(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor | None]:
        numbers = torch.from_numpy(rows)
        mask = numbers >= 0
        if bool(mask.all()):
            return self.inputs[numbers], self.targets[numbers], None
        numbers = numbers.clamp(min=0)
        x, y = self.inputs[numbers], self.targets[numbers]
        padding = ~mask[..., None]
        return x.masked_fill(padding, 0), y.masked_fill(padding if y.ndim > 2 else ~mask, 0), mask


def _widened(rows: Rows, most: int) -> Rows:
    """Pad rows to ``most``, or to the next power of two if that is less and more than ``_LEAST_WIDTH``."""
    width = min(most, max(_LEAST_WIDTH, 1 << (rows.shape[1] - 1).bit_length()))
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=-1)
