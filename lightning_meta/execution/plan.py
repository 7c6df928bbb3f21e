"""The plan of a batch: how many tasks are computed at once, on how many threads."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

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
    def of(cls, model: nn.Module) -> ModelSize:
        """Measure a model."""
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
        return cls(sum(p.numel() for p in model.parameters()), convolves)


def drops(model: nn.Module) -> bool:
    """Whether a model has dropout now; several threads would take random numbers in any order."""
    return any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())


class Plan(NamedTuple):
    """How a batch is computed.

    Attributes:
        chunk_size: How many tasks are vectorized at once.
        workers: How many threads compute pieces of the batch at the same time.
        single_thread: Whether each operation uses one thread.
    """

    chunk_size: int
    workers: int
    single_thread: bool


def plan(model: ModelSize, batch: Episode, execution: Execution, threads: int, steps: int, shared_out: bool) -> Plan:
    """Return the plan that was measured to be fastest for batches of this one's shape.

    Args:
        model: The model's size.
        batch: The tasks.
        execution: The user's choices.
        threads: The number of threads.
        steps: Inner steps of a task.
        shared_out: Whether threads may share pieces: those of captured steps that draw no random numbers.
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
