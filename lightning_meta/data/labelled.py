"""N-way K-shot tasks over labelled examples."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from lightning_meta import arguments
from lightning_meta.data.distinct_tasks import first_distinct
from lightning_meta.data.episodes import EpisodeDataset, Split
from lightning_meta.data.random_streams import sample_without_replacement, uniforms
from lightning_meta.episodes.episode import Episode

_BLOCK = 512  # Tasks whose examples are drawn together: 16 take as many numpy calls, which dominate the time.


@dataclass(eq=False)
class ClassEpisodes(EpisodeDataset):
    """Classification tasks: ``ways`` classes drawn at random get the labels 0, 1, ... in random order.

    Arguments and errors as in `NWayDataModule`; ``dataset`` holds the labelled examples, ``split``, ``seed`` and the
    index determine a task, and ``ood_ways`` further classes give ``ood_x``, ``query_shots`` examples of each.
    ``labels`` are those of the examples, ``[examples]``, and ``classes`` those that occur, ``[classes]``. Those of a
    task in their order make the task; a draw chooses examples of them and seeds of their augmentation.
    """

    dataset: Dataset[Any]
    ways: int
    shots: int
    query_shots: int
    split: Split
    num_tasks: int
    seed: int
    ood_ways: int = 0

    def __post_init__(self) -> None:
        self.labels = labels_of(self.dataset)
        self.classes, self._sizes = np.unique(self.labels, return_counts=True)
        if self.ways + self.ood_ways > len(self.classes):
            ood = f" and eval_outside_ways={self.ood_ways}" if self.ood_ways else ""
            raise ValueError(
                f"ways={self.ways}{ood} but the {self.split} split has {len(self.classes)} classes: lower "
                f"{'one of them' if ood else 'ways'} or add classes"
            )
        self._check_shots()
        self._by_class = np.argsort(self.labels, kind="stable")  # example numbers, sorted by class
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._block: tuple[int, NDArray[np.int64]] | None = None
        self._shared_out: NDArray[np.int64] | None = None  # the classes of disjoint tasks, [tasks, ways]

    def _check_shots(self) -> None:
        needed = self.shots + self.query_shots
        small = np.flatnonzero(self._sizes < needed)
        if len(small):
            names = self.dataset.class_names if isinstance(self.dataset, Examples) else None
            label = self.classes[small[0]]
            first = label if names is None else repr(names[label])
            raise ValueError(
                f"shots={self.shots} and query_shots={self.query_shots} need {needed} examples per class, but in the "
                f"{self.split} split {len(small)} classes have fewer (class {first} has "
                f"{self._sizes[small[0]]}): lower shots or query_shots, or remove those classes"
            )

    def make(self, indices: NDArray[np.integer]) -> Episode:
        """Return tasks whose sets are ordered by class, ``[indices, ways * shots, ...]``."""
        block = int(indices[0]) // _BLOCK
        if (indices // _BLOCK != block).any():
            numbers = self.example_numbers(indices)
        else:  # the latest block is kept, as loaders ask for tasks in order
            if self._block is None or self._block[0] != block:
                self._block = block, self.example_numbers(np.arange(block * _BLOCK, (block + 1) * _BLOCK))
            numbers = self._block[1][indices % _BLOCK]
        return self._episode(numbers, self._seeds(indices, numbers.shape))

    def redrawn(self, indices: NDArray[np.integer], draws: NDArray[np.integer]) -> Episode:
        """Return tasks of the same classes in the same order, also outside of the task, with other examples."""
        numbers = self.example_numbers(indices, draws)
        return self._episode(numbers, self._seeds(indices, numbers.shape, draws))

    def distinct_indices(self, count: int) -> NDArray[np.int64]:
        """Return the indices of tasks that differ in their classes or in their order."""
        possible = math.perm(len(self._sizes), self.ways) if self._shared_out is None else len(self._shared_out)
        return first_distinct(self._own_classes, min(count, possible))

    def disjoint(self) -> ClassEpisodes:
        """Return tasks that share no classes: the split's are shared out once, at random by the seed.

        They have no examples of outside classes. Further indices have the same classes again, with other examples.
        """
        tasks = len(self._sizes) // self.ways
        order = uniforms(self.seed, f"{self.split} disjoint", np.zeros(1, np.int64), len(self._sizes))[0].argsort()
        changed = self._with(num_tasks=tasks, ood_ways=0)
        changed._shared_out = order[: tasks * self.ways].reshape(tasks, self.ways)
        return changed

    def with_shots(self, shots: int) -> ClassEpisodes:
        """Return tasks of the same classes with so many support examples per class; outside classes are others."""
        arguments.check_count("shots", shots)
        return self._with(shots=shots)

    def _with(self, **fields: int) -> ClassEpisodes:
        """Return a copy with other values; `dataclasses.replace` would read all labels again."""
        changed = copy.copy(self)
        for name, value in fields.items():
            setattr(changed, name, value)
        changed._block = None
        changed._check_shots()
        return changed

    def _episode(self, numbers: NDArray[np.int64], seeds: NDArray[np.int64] | None) -> Episode:
        own, ood = slice(self.ways), slice(self.ways, None)  # of the classes
        support_x, support_y = self._labelled(numbers, seeds, own, slice(self.shots))
        query_x, query_y = self._labelled(numbers, seeds, own, slice(self.shots, None))
        ood_x = self._labelled(numbers, seeds, ood, slice(self.shots, None))[0] if self.ood_ways else None
        return Episode(support_x, support_y, query_x, query_y, ood_x=ood_x)

    def example_numbers(
        self, indices: NDArray[np.integer], draws: NDArray[np.integer] | None = None
    ) -> NDArray[np.int64]:
        """Return which examples make up the tasks, ``[indices, ways + ood_ways, shots + query_shots]``."""
        own, ood = self._numbers(indices)
        classes = self._own_classes(indices)
        ood_classes = self._outside(classes, ood[:, : 2 * self.ood_ways]) if self.ood_ways else None
        if draws is not None:
            own, ood = self._numbers(indices, draws)
        examples = self._examples_of(classes, own[:, 2 * self.ways :])
        if ood_classes is None:
            return examples
        return np.concatenate([examples, self._examples_of(ood_classes, ood[:, 2 * self.ood_ways :])], axis=1)

    def _numbers(
        self, indices: NDArray[np.integer], draws: NDArray[np.integer] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the uniform numbers for the tasks' own classes and for those outside, ``[indices, ...]``.

        Twice as many as numbers to sample: first for the classes, then for the examples of each. Those for outside
        classes come last, so that the tasks are the same with and without them.
        """
        per_class = 2 * (1 + self.shots + self.query_shots)
        numbers = uniforms(self.seed, self.split, indices, per_class * (self.ways + self.ood_ways), draws)
        return numbers[:, : per_class * self.ways], numbers[:, per_class * self.ways :]

    def _own_classes(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the tasks' classes in the order of their labels, ``[indices, ways]``."""
        if self._shared_out is not None:
            return self._shared_out[indices % len(self._shared_out)]
        population = np.full(len(indices), len(self._sizes))
        return sample_without_replacement(population, uniforms(self.seed, self.split, indices, 2 * self.ways))

    def _outside(self, classes: NDArray[np.int64], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return other classes than those of the tasks ``[tasks, ways]``, ``[tasks, ood_ways]``."""
        population = np.full(len(classes), len(self._sizes) - self.ways)
        outside = sample_without_replacement(population, numbers)
        for taken in np.sort(classes, axis=1).T:  # from positions among the other classes to classes
            outside += outside >= taken[:, None]
        return outside

    def _examples_of(self, classes: NDArray[np.int64], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        numbers = numbers.reshape(*classes.shape, -1)  # [tasks, classes, 2 * examples]
        within = sample_without_replacement(self._sizes[classes], numbers)  # [tasks, classes, examples]
        return self._by_class[self._starts[classes][..., None] + within]

    def _seeds(
        self, indices: NDArray[np.integer], shape: tuple[int, ...], draws: NDArray[np.integer] | None = None
    ) -> NDArray[np.int64] | None:
        """Return a seed for the augmentation of each example, ``[tasks, classes, examples]``; None: there is none."""
        if not isinstance(self.dataset, AugmentedExamples):
            return None
        numbers = uniforms(self.seed, f"{self.split} augmentation", indices, shape[1] * shape[2], draws)
        return (numbers * 2.0**53).astype(np.int64).reshape(shape)

    def _labelled(
        self, numbers: NDArray[np.int64], seeds: NDArray[np.int64] | None, classes: slice, examples: slice
    ) -> tuple[Any, Tensor]:
        """Return the inputs of some of the examples ``[tasks, classes, examples]``, and their labels in the task."""
        chosen = numbers[:, classes, examples]
        flat = chosen.reshape(len(chosen), -1)  # [tasks, classes * examples]
        labels = torch.arange(chosen.shape[1])[:, None].expand(chosen.shape).flatten(1)
        if seeds is None:
            return inputs_of(self.dataset, flat), labels
        return inputs_of(self.dataset, flat, seeds[:, classes, examples].reshape(flat.shape)), labels


class Examples(Dataset[Any], ABC):
    """Labelled examples of which any number is fetched at once.

    Attributes:
        labels: The integer label of each example, ``[examples]``.
        class_names: The name of each label, for messages; None: labels have no names.
    """

    labels: NDArray[np.int64]
    class_names: Sequence[str] | None = None

    @abstractmethod
    def inputs(self, numbers: NDArray[np.int64]) -> Any:
        """Return the inputs of examples ``[numbers]``, a pytree of tensors ``[numbers, ...]``."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one example's input and label."""
        return tree_map(lambda leaf: leaf[0], self.inputs(np.array([index]))), int(self.labels[index])


class AugmentedExamples(Examples):
    """Labelled examples that tasks contain with random changes."""

    @abstractmethod
    def augmented(self, numbers: NDArray[np.int64], seeds: NDArray[np.int64]) -> Any:
        """Return the inputs of examples ``[numbers]`` as `inputs` does, each changed as its seed ``[numbers]`` says.

        Tasks are functions of (seed, split, index), and hand down the seeds, integers from 0 to 2**53 - 1.
        """


class TensorExamples(Examples):
    """Labelled examples in memory.

    Args:
        tensors: The inputs, a pytree of tensors ``[examples, ...]``.
        labels: The integer label of each example, ``[examples]``.
    """

    def __init__(self, tensors: Any, labels: NDArray[np.int64]) -> None:
        self.tensors = tensors
        self.labels = labels

    def inputs(self, numbers: NDArray[np.int64]) -> Any:
        """Return the inputs of examples ``[numbers]``."""
        rows = torch.from_numpy(numbers)
        return tree_map(lambda leaf: leaf.index_select(0, rows), self.tensors)


def labels_of(dataset: Dataset[Any]) -> NDArray[np.int64]:
    """Return the label of every example, ``[examples]``.

    Reads ``targets`` or ``labels`` where the data set has one, or goes through all examples once.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[np.asarray(dataset.indices)]
    size = len(dataset)  # type: ignore[arg-type]
    if type(dataset) is TensorDataset:  # a derived class may change its items
        values: Any = dataset.tensors[1]
    else:
        name = next((name for name in ("targets", "labels") if hasattr(dataset, name)), None)
        values = getattr(dataset, name) if name else [dataset[i][1] for i in range(size)]
    labels = np.asarray(values)
    if labels.shape != (size,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{type(dataset).__name__} has {size} examples, and labels of type {labels.dtype} and shape "
            f"{labels.shape}: its items must be (input, label) with one integer label each"
        )
    return labels.astype(np.int64)


def inputs_of(dataset: Dataset[Any], numbers: NDArray[np.int64], seeds: NDArray[np.int64] | None = None) -> Any:
    """Return the inputs of examples ``[...]`` as ``[..., *input]``, batched as torch's default collation does.

    Seeds ``[...]`` determine the changes of `AugmentedExamples`; None: they are not changed.
    """
    if isinstance(dataset, AugmentedExamples) and seeds is not None:
        inputs = dataset.augmented(numbers.reshape(-1), seeds.reshape(-1))
        return tree_map(lambda leaf: leaf.unflatten(0, numbers.shape), inputs)
    if isinstance(dataset, Examples):
        inputs = dataset.inputs(numbers.reshape(-1))
        return tree_map(lambda leaf: leaf.unflatten(0, numbers.shape), inputs)
    if type(dataset) is TensorDataset:  # a derived class may change its items
        return dataset.tensors[0].index_select(0, torch.from_numpy(numbers.reshape(-1))).unflatten(0, numbers.shape)
    batch = default_collate([dataset[int(i)][0] for i in numbers.reshape(-1)])
    return tree_map(lambda leaf: leaf.unflatten(0, numbers.shape), batch)
