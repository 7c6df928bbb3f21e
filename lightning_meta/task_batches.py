"""How a batch of tasks is cut into pieces that can each be computed at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.episode import Episode
from lightning_meta.trees import leaves_of

# What a CPU convolves fastest at once: 8 tasks of 30 images of 28 × 28 pixels. Twice as much takes up to three times as
# long a task, because oneDNN falls back to a slow kernel and the work leaves the cache.
_CONVOLVED_AT_ONCE = 8 * 30 * 28 * 28

# Fewer tasks at once are slower than one after another.
_WORTH_VECTORIZING = 4

# Multiplications of one call of the model on a batch. Below, operations on more threads gain nothing, and on a machine
# that has other work, or many cores, waiting for each other costs them several times that.
_TINY = 2.5e6

# Multiplications times inner steps that take a core a quarter of a millisecond, several times as long as to hand them
# to another.
_WORTH_A_THREAD = 1e6

# Each holds a piece in memory, and without compilation all wait for Python between operations.
_MOST_WORKERS = 8


class ModelSize(NamedTuple):
    """What there is to know about a model before tasks are cut into pieces."""

    parameters: int
    convolves: bool

    @classmethod
    def of(cls, model: nn.Module) -> ModelSize:
        """Measure a model."""
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
        return cls(sum(p.numel() for p in model.parameters()), convolves)


def drops(model: nn.Module) -> bool:
    """Whether a model draws random numbers, which several threads would draw in any order; measured anew each time."""
    return any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())


def fastest_chunk_size(model: ModelSize, batch: Episode, workers: int = 1) -> int:
    """How many tasks to vectorize at once where the user leaves it to the library.

    All of them, except for convolutions on a CPU, which take pieces of a size that was measured to be fast.

    Args:
        model: The model's size.
        batch: The tasks.
        workers: How many threads take pieces at the same time.
    """
    share = -(-batch.num_tasks // workers)
    if not model.convolves or not _on_cpu(batch):
        return share
    fitting = _fitting(batch)
    return min(share, fitting) if fitting >= _WORTH_VECTORIZING else 1


def fastest_workers(model: ModelSize, batch: Episode, threads: int, steps: int, compiled: bool) -> int:
    """Among how many threads to share recorded tasks out, rather than give each operation all threads.

    Convolutions of few-shot tasks scale badly inside an operation, and tiny ones not at all. Without compilation tiny
    operations are bound by Python, which has one thread. Tasks too large for a cache stay one after another, to bound
    the memory too.

    Args:
        model: The model's size.
        batch: The tasks.
        threads: How many there are.
        steps: Inner steps of a task.
        compiled: Whether the recordings are compiled.
    """
    if not _on_cpu(batch):
        return 1
    most = min(threads, batch.num_tasks, _MOST_WORKERS)
    if model.convolves:
        return most if _fitting(batch) else 1
    if not compiled or not is_tiny(model, batch):
        return 1
    return max(1, min(most, int(_multiplications(model, batch) * steps / _WORTH_A_THREAD)))


def is_tiny(model: ModelSize, batch: Episode) -> bool:
    """Whether a batch is so little work that a second CPU thread can cost an operation more than it gains."""
    return _on_cpu(batch) and not model.convolves and _multiplications(model, batch) < _TINY


def _on_cpu(batch: Episode) -> bool:
    return leaves_of(batch.support_x)[0].device.type == "cpu"


def _multiplications(model: ModelSize, batch: Episode) -> int:
    """About how many one call of the model makes: input elements times parameters."""
    return sum(leaf.numel() for leaf in leaves_of((batch.support_x, batch.query_x))) * model.parameters


def _fitting(batch: Episode) -> int:
    """How many tasks of images fit in what is fast to convolve at once."""
    return _CONVOLVED_AT_ONCE // sum(leaf[0].numel() for leaf in leaves_of((batch.support_x, batch.query_x)))


def split_by_chunk(batch: Episode, chunk_size: int) -> Iterator[tuple[None, Episode]]:
    """Yield ``(None, smaller batch)`` with at most ``chunk_size`` tasks each, in order, masks kept."""
    if chunk_size >= batch.num_tasks:
        yield None, batch
        return
    for first in range(0, batch.num_tasks, chunk_size):
        yield None, batch.select(slice(first, first + chunk_size))


def split_by_size(batch: Episode, chunk_size: int) -> Iterator[tuple[Tensor, Episode]]:
    """Yield ``(task indices, smaller batch without masks)``: tasks of one size together, padding cut off.

    For models and losses that a mask cannot serve: a batch normalization layer would count the padding.
    """
    sizes = torch.stack([_lengths(batch.support_x, batch.support_mask), _lengths(batch.query_x, batch.query_mask)], 1)
    for size in sizes.unique(dim=0):
        alike = (sizes == size).all(1).nonzero()[:, 0]
        for indices in alike.split(chunk_size):
            yield indices, _cut(batch.select(indices), int(size[0]), int(size[1]))


def fill_padding(batch: Episode) -> Episode:
    """Replace padded examples by copies of a real one, so that whatever they held cannot reach a gradient."""
    support_x, support_y = _fill((batch.support_x, batch.support_y), batch.support_mask)
    query_x, query_y = _fill((batch.query_x, batch.query_y), batch.query_mask)
    return batch._replace(support_x=support_x, support_y=support_y, query_x=query_x, query_y=query_y)


def _lengths(x: Any, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return mask.sum(1).cpu()
    leaf = tree_leaves(x)[0]
    return torch.full(leaf.shape[:1], leaf.shape[1])


def _cut(batch: Episode, support: int, query: int) -> Episode:
    support_x, support_y = _gather((batch.support_x, batch.support_y), batch.support_mask, support)
    query_x, query_y = _gather((batch.query_x, batch.query_y), batch.query_mask, query)
    return Episode(support_x, support_y, query_x, query_y, outside_x=batch.outside_x)


def _gather(examples: Any, mask: Tensor | None, length: int) -> Any:
    if mask is None:
        return examples
    positions = mask.int().argsort(dim=1, descending=True, stable=True)[:, :length]
    return tree_map(lambda leaf: _take(leaf, positions), examples)


def _fill(examples: Any, mask: Tensor | None) -> Any:
    if mask is None:
        return examples
    own = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    first_real = mask.int().argmax(dim=1, keepdim=True)
    positions = torch.where(mask, own, first_real)
    return tree_map(lambda leaf: _take(leaf, positions), examples)


def _take(leaf: Tensor, positions: Tensor) -> Tensor:
    tasks = torch.arange(leaf.shape[0], device=leaf.device)[:, None]
    return leaf[tasks, positions.to(leaf.device)]
