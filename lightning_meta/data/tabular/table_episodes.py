"""`TableEpisodes`: tasks from groups of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.data.episodes import EpisodeDataset, Split
from lightning_meta.data.random_streams import uniforms
from lightning_meta.data.tabular.row_choice import RowChoice, Rows
from lightning_meta.episodes.episode import Episode

_LEAST_WIDTH = 64  # rows that cost no more than the overhead of a step


@dataclass(eq=False)
class TableEpisodes(EpisodeDataset):
    """Tasks whose rows come from one group each.

    Training draws groups at random; validation and test go through them in turn.

    Attributes:
        inputs: The features of all rows of the table, ``[rows, features]``.
        targets: Their targets, ``[rows, 1]`` or ``[rows]``.
        choice: Chooses a task's rows; its groups are those of the split.
        split: The split.
        num_tasks: Tasks in an epoch.
        seed: Determines the tasks, with the split and the index.
    """

    inputs: Tensor
    targets: Tensor
    choice: RowChoice
    split: Split
    num_tasks: int
    seed: int

    def group_numbers(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the numbers of the tasks' groups, ``[indices]``."""
        groups = len(self.choice.groups.sizes)
        if self.split != "train":
            return (indices % groups).astype(np.int64)
        return np.floor(uniforms(self.seed, self.split, indices, 1)[:, 0] * groups).astype(np.int64)

    def row_numbers(self, indices: NDArray[np.integer]) -> tuple[Rows, Rows]:
        """Return the numbers of the tasks' support and query rows, ``[indices, rows]``, -1 for padding."""
        draws = partial(self._draws, indices)
        return self.choice.rows(self.group_numbers(indices), draws)

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return tasks ``[indices, rows, ...]``, with masks only if there is padding.

        Batches of training tasks of different sizes are padded to few sizes, since a new one slows training down:
        steps are captured anew.
        """
        support, query = self.row_numbers(indices)
        if self.split == "train" and len(indices) > 1:
            most_support, most_query = self.choice.most_rows()
            support, query = _widened(support, most_support), _widened(query, most_query)
        support_x, support_y, support_mask = self._set(support)
        query_x, query_y, query_mask = self._set(query)
        return Episode(support_x, support_y, query_x, query_y, support_mask, query_mask)

    def _draws(self, indices: NDArray[np.integer], count: int) -> NDArray[np.float64]:
        return uniforms(self.seed, self.split, indices, 1 + count)[:, 1:]  # the first number chooses the group

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
