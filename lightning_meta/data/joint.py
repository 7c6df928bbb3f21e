"""Batches of ordinary classification over all training classes at once, served as the queries of one task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from lightning_meta import arguments
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.data.labelled import AugmentedExamples, inputs_of, labels_of
from lightning_meta.data.random_streams import uniforms
from lightning_meta.episodes.episode import Episode


class JointBatches(EpisodeDataset):
    """Batches of labelled examples of all classes, each served as a task whose queries they are.

    Their labels are 0, 1, ..., one for each class of the data set. The task's support set is a single example of the
    last class, whose label tells the number of classes; nothing adapts to it.

    Batch ``i`` has the examples at positions ``i * batch_size``, ... of an endless row of passes through the data set,
    each in a random order of its own: so it is a function of (seed, index), and each pass has every example once.

    Args:
        dataset: The labelled examples.
        batch_size: Examples in a batch.
        seed: Determines the orders, and with the index the changes of `AugmentedExamples`.
        labels: The label of each example, ``[examples]``, where they are known; None: they are read.

    Raises:
        ValueError: If an argument is out of its range, or the labels are no integers.

    Example:
        >>> examples = torch.utils.data.TensorDataset(torch.randn(60, 8), torch.arange(60) % 6)
        >>> batch = JointBatches(examples, batch_size=16, seed=0)[0]
        >>> batch.query_x.shape, batch.support_y
        (torch.Size([16, 8]), tensor([5]))
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, seed: int, labels: NDArray[np.int64] | None = None
    ) -> None:
        arguments.check_count("batch_size", batch_size)
        classes, numbers = np.unique(labels_of(dataset) if labels is None else labels, return_inverse=True)
        super().__init__(-(-len(numbers) // batch_size))
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_classes = len(classes)
        self._labels = numbers.astype(np.int64)  # [examples], from 0 on
        self._last = np.flatnonzero(self._labels == self.num_classes - 1)[0]
        self._orders: dict[int, NDArray[np.int64]] = {}

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return these batches, ``[indices, batch_size, ...]``."""
        positions = indices.astype(np.int64)[:, None] * self.batch_size + np.arange(self.batch_size)
        numbers = self._numbers(positions)  # [indices, batch_size]
        support = np.full((len(indices), 1), self._last)
        return Episode(
            inputs_of(self.dataset, support),
            torch.from_numpy(self._labels[support]),
            inputs_of(self.dataset, numbers, self._seeds(indices)),
            torch.from_numpy(self._labels[numbers]),
        )

    def inputs(self, first: int, last: int) -> Any:
        """Return the inputs of the examples ``first`` to ``last - 1`` of the data set as they are, ``[examples, ...]``.

        They come in an order that mixes the classes, and without random changes.
        """
        return tree_map(lambda leaf: leaf[0], inputs_of(self.dataset, self._order(0)[None, first:last]))

    @property
    def num_examples(self) -> int:
        """The number of examples of the data set."""
        return len(self._labels)

    def _numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the examples at positions of the endless row."""
        passes, within = np.divmod(positions, self.num_examples)
        numbers = np.empty_like(positions)
        for each in np.unique(passes):
            here = passes == each
            numbers[here] = self._order(int(each))[within[here]]
        return numbers

    def _order(self, number: int) -> NDArray[np.int64]:
        """Return the order of examples in a pass, ``[examples]``; the last two are kept."""
        if number not in self._orders:
            keys = uniforms(self.seed, "train joint", np.array([number]), self.num_examples)[0]
            kept = {key: order for key, order in self._orders.items() if key == number - 1}
            self._orders = {**kept, number: keys.argsort(kind="stable")}
        return self._orders[number]

    def _seeds(self, indices: NDArray[np.integer]) -> NDArray[np.int64] | None:
        """Return a seed for the augmentation of each example, ``[indices, batch_size]``; None: there is none."""
        if not isinstance(self.dataset, AugmentedExamples):
            return None
        numbers = uniforms(self.seed, "train joint augmentation", indices, self.batch_size)
        return (numbers * 2.0**53).astype(np.int64)
