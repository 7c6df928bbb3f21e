"""How a batch of tasks is cut into pieces that can each be computed at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.episode import Episode

# What two CPU cores convolve fastest at once: 8 tasks of 30 images of 28 × 28 pixels. Twice as much takes up to three
# times as long a task, because oneDNN falls back to a slow kernel and the work leaves the cache.
_CONVOLVED_AT_ONCE = 8 * 30 * 28 * 28

# Fewer tasks at once are slower than one after another.
_WORTH_VECTORIZING = 4

# Input elements times parameters, about the multiplications of one call. Below, operations on more threads gain
# nothing, and on a machine that has other work, or many cores, waiting for each other costs them several times that.
_TINY = 2.5e6


class ModelSize(NamedTuple):
    """What there is to know about a model before tasks are cut into pieces."""

    parameters: int
    convolves: bool

    @classmethod
    def of(cls, model: nn.Module) -> ModelSize:
        """Measure a model."""
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
        return cls(sum(p.numel() for p in model.parameters()), convolves)


def fastest_chunk_size(model: ModelSize, batch: Episode) -> int:
    """How many tasks to vectorize at once where the user leaves it to the library.

    All of them, except for convolutions on a CPU, which take pieces of a size that was measured to be fast.
    """
    inputs = tree_leaves((batch.support_x, batch.query_x))
    if inputs[0].device.type != "cpu" or not model.convolves:
        return batch.num_tasks
    fitting = _CONVOLVED_AT_ONCE // sum(leaf[0].numel() for leaf in inputs)
    return min(batch.num_tasks, fitting) if fitting >= _WORTH_VECTORIZING else 1


def is_tiny(model: ModelSize, batch: Episode) -> bool:
    """Whether a batch is so little work that a second CPU thread can cost more than it gains."""
    inputs = tree_leaves((batch.support_x, batch.query_x))
    if inputs[0].device.type != "cpu" or model.convolves:
        return False
    return sum(leaf.numel() for leaf in inputs) * model.parameters < _TINY


def split_by_chunk(batch: Episode, chunk_size: int) -> Iterator[tuple[Tensor, Episode]]:
    """Yield ``(task indices, smaller batch)`` with at most ``chunk_size`` tasks each, masks kept."""
    if chunk_size >= batch.num_tasks:
        yield torch.arange(batch.num_tasks), batch
        return
    for indices in torch.arange(batch.num_tasks).split(chunk_size):
        yield indices, batch.select(slice(int(indices[0]), int(indices[-1]) + 1))


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
