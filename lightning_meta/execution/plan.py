"""The plan of a batch: how many tasks are computed at once, on how many threads."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from lightning_meta.episodes.episode import Episode
from lightning_meta.episodes.trees import leaves_of
from lightning_meta.execution.options import Execution

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


class Plan(NamedTuple):
    """How a batch is computed.

    Attributes:
        chunk_size: How many tasks are vectorized at once.
        workers: How many threads take pieces of the batch at the same time.
        single_thread: Whether each operation uses one thread.
    """

    chunk_size: int
    workers: int
    single_thread: bool


def plan(model: ModelSize, batch: Episode, execution: Execution, threads: int, steps: int, shared_out: bool) -> Plan:
    """Return the fastest way, as measured, to compute batches of this one's shape.

    Args:
        model: The model's size.
        batch: The tasks.
        execution: What the user wants.
        threads: How many threads there are.
        steps: Inner steps of a task.
        shared_out: Whether pieces may be shared out among threads: captured steps that draw no random numbers.
    """
    if execution.task_chunk_size is not None:
        return Plan(execution.task_chunk_size, 1, single_thread=False)
    most = min(threads, batch.num_tasks, _MOST_WORKERS, execution.threads or threads)
    workers = _fastest_workers(model, batch, most, steps, execution.compile is True) if shared_out else 1
    return Plan(_fastest_chunk_size(model, batch, workers), workers, single_thread=_is_tiny(model, batch))


def _fastest_chunk_size(model: ModelSize, batch: Episode, workers: int) -> int:
    """All tasks at once, except for convolutions on a CPU, which take pieces of a size that was measured to be fast."""
    share = -(-batch.num_tasks // workers)
    if not model.convolves or not _on_cpu(batch):
        return share
    fitting = _fitting(batch)
    return min(share, fitting) if fitting >= _WORTH_VECTORIZING else 1


def _fastest_workers(model: ModelSize, batch: Episode, most: int, steps: int, compiled: bool) -> int:
    """Among how many threads to share captured tasks out, rather than give each operation all threads.

    Convolutions of few-shot tasks scale badly inside an operation, and tiny ones not at all. Without compilation tiny
    operations are bound by Python, which has one thread. Tasks too large for a cache stay one after another, to bound
    the memory too.
    """
    if not _on_cpu(batch):
        return 1
    if model.convolves:
        return most if _fitting(batch) else 1
    if not compiled or not _is_tiny(model, batch):
        return 1
    return max(1, min(most, int(_multiplications(model, batch) * steps / _WORTH_A_THREAD)))


def _is_tiny(model: ModelSize, batch: Episode) -> bool:
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
