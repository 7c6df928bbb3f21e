"""How a batch of tasks is cut into pieces, with padding kept or cut off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.episodes.episode import Episode


def split_by_chunk(batch: Episode, chunk_size: int) -> Iterator[tuple[None, Episode]]:
    """Yield ``(None, smaller batch)`` with at most ``chunk_size`` tasks each, in order, with masks."""
    if chunk_size >= batch.num_tasks:
        yield None, batch
        return
    for first in range(0, batch.num_tasks, chunk_size):
        yield None, batch.select(slice(first, first + chunk_size))


def split_by_size(batch: Episode, chunk_size: int) -> Iterator[tuple[Tensor, Episode]]:
    """Yield ``(task indices, smaller batch without masks)``: tasks of one size together, padding cut off.

    For models and losses with which masks do not suffice: a batch normalization layer would count the padding.
    """
    lengths = _lengths(batch.support_x, batch.support_mask), _lengths(batch.query_x, batch.query_mask)
    sizes = torch.stack(lengths, 1)  # [tasks, 2]
    for size in sizes.unique(dim=0):
        alike = (sizes == size).all(1).nonzero()[:, 0]  # [tasks of this size]
        for indices in alike.split(chunk_size):
            part = batch.select(indices)
            support_x, support_y = _cut((part.support_x, part.support_y), part.support_mask, int(size[0]))
            query_x, query_y = _cut((part.query_x, part.query_y), part.query_mask, int(size[1]))
            yield indices, Episode(support_x, support_y, query_x, query_y, ood_x=part.ood_x)


def fill_padding(batch: Episode) -> Episode:
    """Replace padded examples by copies of a real one, so that none of their values can reach a gradient."""
    support_x, support_y = _fill((batch.support_x, batch.support_y), batch.support_mask)
    query_x, query_y = _fill((batch.query_x, batch.query_y), batch.query_mask)
    return batch._replace(support_x=support_x, support_y=support_y, query_x=query_x, query_y=query_y)


def _lengths(x: Any, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return mask.sum(1).cpu()
    leaf = tree_leaves(x)[0]
    return torch.full(leaf.shape[:1], leaf.shape[1])


def _cut(examples: Any, mask: Tensor | None, length: int) -> Any:
    if mask is None:
        return examples
    return _take(examples, mask.int().argsort(dim=1, descending=True, stable=True)[:, :length])


def _fill(examples: Any, mask: Tensor | None) -> Any:
    if mask is None:
        return examples
    own = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    return _take(examples, torch.where(mask, own, mask.int().argmax(dim=1, keepdim=True)))


def _take(examples: Any, positions: Tensor) -> Any:
    def take(leaf: Tensor) -> Tensor:
        return leaf[torch.arange(len(leaf), device=leaf.device)[:, None], positions.to(leaf.device)]

    return tree_map(take, examples)
