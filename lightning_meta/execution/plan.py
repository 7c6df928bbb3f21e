"""How a batch of tasks is cut into pieces: of how many tasks, for how many threads, with padding kept or cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_meta.episodes.episode import Episode
from lightning_meta.episodes.trees import leaves_of
from lightning_meta.execution.options import Execution

# The input elements that a CPU convolves fastest at once: 8 tasks of 30 images of 28 × 28 pixels. Twice as many take up
# to three times as long per task, because oneDNN falls back to a slow kernel and the work leaves the cache.
_CONVOLVED_AT_ONCE = 8 * 30 * 28 * 28

# Fewer tasks at once are slower than one after another.
_WORTH_VECTORIZING = 4

# Multiplications of one call of the model on a batch. Below, operations on more threads gain nothing; on a machine with
# other work, or many cores, their waits for each other cost several times the gain.
_TINY = 2.5e6

# Multiplications times inner steps that take a core a quarter of a millisecond: several times as long as to start
# another thread on them.
_WORTH_A_THREAD = 1e6

# Each holds a piece in memory, and without compilation all wait for Python between operations.
_MOST_WORKERS = 8


class ModelSize(NamedTuple):
    """What is known of a model before tasks are cut into pieces."""

    parameters: int
    convolves: bool

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Measure a model."""
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
        return cls(sum(p.numel() for p in model.parameters()), convolves)


def drops(model: nn.Module) -> bool:
    """Whether a model has dropout now; several threads would take random numbers in any order."""
    return any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules())


class Plan(NamedTuple):
    """How a batch is computed."""

    chunk_size: int  # tasks vectorized at once
    workers: int  # threads that compute pieces of the batch at the same time
    single_thread: bool  # whether each operation uses one thread


def plan(model: ModelSize, batch: Episode, execution: Execution, threads: int, steps: int, shared_out: bool) -> Plan:
    """Return the plan that was measured to be fastest for batches of this one's shape.

    ``shared_out`` says whether threads may share the pieces: those of captured steps that draw no random numbers.
    """
    if execution.task_chunk_size is not None:
        return Plan(execution.task_chunk_size, 1, single_thread=False)
    inputs = leaves_of((batch.support_x, batch.query_x))
    on_cpu = inputs[0].device.type == "cpu"
    convolves = model.convolves and on_cpu
    multiplications = sum(leaf.numel() for leaf in inputs) * model.parameters  # of one call, roughly
    tiny = on_cpu and not convolves and multiplications < _TINY
    fitting = _CONVOLVED_AT_ONCE // sum(leaf[0].numel() for leaf in inputs) if convolves else 0

    # Convolutions of few-shot tasks scale badly inside an operation, and tiny operations not at all. Uncompiled tiny
    # operations are bound by Python, which has one thread. Tasks too large for the cache would take too much memory.
    workers = 1
    if shared_out and (fitting or (tiny and execution.compile is True)):
        workers = min(threads, batch.num_tasks, _MOST_WORKERS, execution.threads or threads)
        if tiny:
            workers = max(1, min(workers, int(multiplications * steps / _WORTH_A_THREAD)))
    share = -(-batch.num_tasks // workers)
    if convolves:
        share = min(share, fitting) if fitting >= _WORTH_VECTORIZING else 1
    return Plan(share, workers, single_thread=tiny)


def cut(
    batch: Episode, chunk_size: int, may_keep_padding: Callable[[Episode], bool]
) -> Iterator[tuple[Tensor | None, Episode]]:
    """Yield ``(task indices, smaller batch)`` with at most ``chunk_size`` tasks each; None: the next tasks in order."""
    if batch.support_mask is None and batch.query_mask is None:
        return _split_by_chunk(batch, chunk_size)
    if chunk_size == 1 or not may_keep_padding(batch):
        return _split_by_size(batch, chunk_size)
    return _split_by_chunk(_fill_padding(batch), chunk_size)


def _split_by_chunk(batch: Episode, chunk_size: int) -> Iterator[tuple[None, Episode]]:
    if chunk_size >= batch.num_tasks:
        yield None, batch
        return
    for first in range(0, batch.num_tasks, chunk_size):
        yield None, batch.select(slice(first, first + chunk_size))


def _split_by_size(batch: Episode, chunk_size: int) -> Iterator[tuple[Tensor, Episode]]:
    """Cut off padding, as masks do not suffice for all models: batch normalization would count it."""
    full = torch.zeros(batch.num_tasks, dtype=torch.long)  # without a mask all have one size
    lengths = [full if mask is None else mask.sum(1).cpu() for mask in (batch.support_mask, batch.query_mask)]
    sizes = torch.stack(lengths, 1)  # [tasks, 2]
    for size in sizes.unique(dim=0):
        alike = (sizes == size).all(1).nonzero()[:, 0]  # [tasks of this size]
        for indices in alike.split(chunk_size):
            part = batch.select(indices)
            support_x, support_y = _cut((part.support_x, part.support_y), part.support_mask, int(size[0]))
            query_x, query_y = _cut((part.query_x, part.query_y), part.query_mask, int(size[1]))
            yield indices, Episode(support_x, support_y, query_x, query_y, ood_x=part.ood_x)


def _fill_padding(batch: Episode) -> Episode:
    """Replace padded examples by copies of a real one, so that none of their values can reach a gradient."""
    support_x, support_y = _fill((batch.support_x, batch.support_y), batch.support_mask)
    query_x, query_y = _fill((batch.query_x, batch.query_y), batch.query_mask)
    return batch._replace(support_x=support_x, support_y=support_y, query_x=query_x, query_y=query_y)


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
    def take(leaf: Tensor) -> Tensor:  # [tasks, examples, ...] to [tasks, positions, ...]
        return leaf[torch.arange(len(leaf), device=leaf.device)[:, None], positions.to(leaf.device)]

    return tree_map(take, examples)
