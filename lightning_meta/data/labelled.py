"""N-way K-shot episodes over labelled examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from lightning_meta.data.episodes import EpisodeDataset, Split
from lightning_meta.data.random_streams import sample_without_replacement, uniforms
from lightning_meta.episodes.episode import Episode

Fetch = Callable[[NDArray[np.int64]], Any]

_BLOCK = 512  # Tasks whose examples are drawn at once: drawing for 16 takes as many calls, and most of their time.


class ClassEpisodes(EpisodeDataset):
    """Classification tasks: ``ways`` classes drawn at random get the labels 0, 1, ... in random order.

    Args:
        labels: The class of every example, ``[examples]``, any integers.
        fetch: Maps example numbers ``[tasks, set]`` to inputs ``[tasks, set, ...]``.
        ways: Classes in a task.
        shots: Support examples per class.
        query_shots: Query examples per class.
        split: The split, which with ``seed`` and the index determines a task.
        num_tasks: Tasks in an epoch.
        seed: Which tasks.
        outside_ways: Further classes that give each task's ``ood_x``, ``query_shots`` examples each.

    Raises:
        ValueError: If there are fewer classes than ways, or a class with too few examples.
    """

    def __init__(
        self,
        labels: NDArray[np.integer],
        fetch: Fetch,
        ways: int,
        shots: int,
        query_shots: int,
        split: Split,
        num_tasks: int,
        seed: int,
        outside_ways: int = 0,
    ) -> None:
        super().__init__(num_tasks)
        classes, sizes = np.unique(labels, return_counts=True)
        check_classes(split, classes, sizes, ways, outside_ways, shots, query_shots)
        self._by_class = np.argsort(labels, kind="stable")
        self._sizes = sizes
        self._starts = np.cumsum(sizes) - sizes
        self.fetch = fetch
        self.ways = ways
        self.outside_ways = outside_ways
        self.shots = shots
        self.query_shots = query_shots
        self.split = split
        self.seed = seed
        self._y = {each: torch.arange(ways).repeat_interleave(each) for each in (shots, query_shots)}
        self._block: tuple[int, NDArray[np.int64]] | None = None

    def example_numbers(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return which examples make up the tasks, ``[indices, ways + outside_ways, shots + query_shots]``."""
        population = np.full(len(indices), len(self._sizes))
        each, own_draws = self.shots + self.query_shots, 2 * self.ways * (1 + self.shots + self.query_shots)
        # The outside classes come last, so that the tasks are the same with and without them.
        draws = uniforms(self.seed, self.split, indices, own_draws + 2 * self.outside_ways * (1 + each))
        classes = sample_without_replacement(population, draws[:, : 2 * self.ways])
        numbers = self._examples_of(classes, draws[:, 2 * self.ways : own_draws])
        if not self.outside_ways:
            return numbers
        draws = draws[:, own_draws:]
        others = sample_without_replacement(population - self.ways, draws[:, : 2 * self.outside_ways])
        for taken in np.sort(classes, axis=1).T:  # from positions among the other classes to classes
            others += others >= taken[:, None]
        return np.concatenate([numbers, self._examples_of(others, draws[:, 2 * self.outside_ways :])], axis=1)

    def _examples_of(self, classes: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
        within = sample_without_replacement(self._sizes[classes], draws.reshape(*classes.shape, -1))
        return self._by_class[self._starts[classes][..., None] + within]

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return tasks whose sets are ordered by class, ``[indices, ways * shots, ...]``."""
        block = indices[0] // _BLOCK
        in_block = bool((indices // _BLOCK == block).all())
        numbers = self._numbers_of(int(block))[indices % _BLOCK] if in_block else self.example_numbers(indices)
        support_x, support_y = self._set(numbers[:, : self.ways, : self.shots])
        query_x, query_y = self._set(numbers[:, : self.ways, self.shots :])
        outside = numbers[:, self.ways :, self.shots :].reshape(len(indices), -1)
        ood_x = self.fetch(outside) if self.outside_ways else None
        return Episode(support_x, support_y, query_x, query_y, ood_x=ood_x)

    def _numbers_of(self, block: int) -> NDArray[np.int64]:
        """The examples of a whole block of tasks; the latest block is kept, as loaders ask for tasks in order."""
        if self._block is None or self._block[0] != block:
            self._block = block, self.example_numbers(np.arange(block * _BLOCK, (block + 1) * _BLOCK))
        return self._block[1]

    def _set(self, numbers: NDArray[np.int64]) -> tuple[Any, Tensor]:
        tasks, ways, each = numbers.shape
        return self.fetch(numbers.reshape(tasks, ways * each)), self._y[each].repeat(tasks, 1)


def check_classes(
    split: str,
    classes: NDArray[np.integer],
    sizes: NDArray[np.integer],
    ways: int,
    outside_ways: int,
    shots: int,
    query_shots: int,
) -> None:
    """Raise a ValueError if tasks of this form cannot be drawn from classes of these sizes."""
    if outside_ways and ways + outside_ways > len(classes):
        raise ValueError(
            f"ways={ways} and eval_outside_ways={outside_ways} but the {split} split has {len(classes)} classes: "
            "lower one"
        )
    if ways > len(classes):
        raise ValueError(f"ways={ways} but the {split} split has {len(classes)} classes: lower ways or add classes")
    small = np.flatnonzero(sizes < shots + query_shots)
    if len(small):
        raise ValueError(
            f"shots={shots} and query_shots={query_shots} need {shots + query_shots} examples per class, but in the "
            f"{split} split {len(small)} classes have fewer (class {classes[small[0]]} has {sizes[small[0]]}): "
            "lower shots or query_shots, or remove those classes"
        )


def labels_of(dataset: Dataset[Any]) -> NDArray[np.int64]:
    """Return the label of every example, ``[examples]``.

    Reads ``targets`` or ``labels`` where the data set has one, or goes through all examples once.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices)]
    if type(dataset) is TensorDataset:  # a derived class may change its items
        return _as_labels(dataset.tensors[1], dataset)
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            return _as_labels(getattr(dataset, name), dataset)
    return _as_labels([dataset[i][1] for i in range(len(dataset))], dataset)  # type: ignore[arg-type]


def fetcher(dataset: Dataset[Any]) -> Fetch:
    """Return a function that fetches the inputs of many examples, batched as torch's default collation does."""
    return FetchTensor(dataset.tensors[0]) if type(dataset) is TensorDataset else FetchItems(dataset)


class FetchTensor:
    """Fetches examples from one tensor, ``[examples, ...]``."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __call__(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return the examples with these numbers, ``[..., *example]`` for numbers ``[...]``."""
        return self.inputs.index_select(0, torch.from_numpy(numbers.reshape(-1))).unflatten(0, numbers.shape)


class FetchItems:
    """Fetches examples item by item, batched as torch's default collation does."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __call__(self, numbers: NDArray[np.int64]) -> Any:
        """Return the examples with these numbers, ``[..., *example]`` for numbers ``[...]``."""
        flat = default_collate([self.dataset[int(i)][0] for i in numbers.reshape(-1)])
        return tree_map(lambda leaf: leaf.unflatten(0, numbers.shape), flat)


def _as_labels(values: Any, dataset: Dataset[Any]) -> NDArray[np.int64]:
    labels = np.asarray(values)
    if labels.shape != (len(dataset),) or not np.issubdtype(labels.dtype, np.integer):  # type: ignore[arg-type]
        raise ValueError(
            f"{type(dataset).__name__} has {len(dataset)} examples, and labels of type {labels.dtype} and shape "  # type: ignore[arg-type]
            f"{labels.shape}: its items must be (input, label) with one integer label each"
        )
    return labels.astype(np.int64)
