"""Recordings whose tasks are shared out among threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from lightning_meta.recording.graph import Recording

# Floating-point operations that take a core about as long as to hand them to another: less than 0.1 of 0.25 ms.
_WORTH_A_THREAD = 10_000_000


class ParallelRecording:
    """What a function computes for a piece's tasks, in one part for each of several threads.

    The threads of a tensor library meet after every operation: with operations of microseconds they gain little, and
    lose much once another process keeps one of them waiting. These meet once.

    Args:
        function: Of what the tasks share, and of the tasks; returns what is summed over tasks, and what is stacked.
        arguments: Arguments such as it will be called with.
        parts: How many.
    """

    draws = False

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, Any], parts: int) -> None:
        shared, tasks = arguments
        of_size: dict[int, Recording] = {}
        self._parts = []
        for indices in torch.arange(tree_leaves(tasks)[0].shape[0]).tensor_split(parts):
            some = slice(int(indices[0]), int(indices[-1]) + 1)
            if len(indices) not in of_size:
                part = tree_map(lambda leaf, some=some: None if leaf is None else leaf[some], tasks)
                of_size[len(indices)] = Recording(function, (shared, part), compiled=True)
            self._parts.append((some, of_size[len(indices)]))
        self._form = self._parts[0][1].form
        self._shared = sum(leaf is not None for leaf in tree_leaves(shared))
        self._sums = self._form.child(0).num_leaves
        self._compiled = False

    def __call__(self, tensors: list[Tensor]) -> Any:
        """As `Recording.__call__`."""
        shared, tasks = tensors[: self._shared], tensors[self._shared :]
        calls = [
            functools.partial(recording.run, [*shared, *(leaf[some] for leaf in tasks)])
            for some, recording in self._parts
        ]
        if self._compiled:
            waiting = [_threads(len(calls) - 1).submit(call) for call in calls[1:]]
            results = [calls[0](), *(future.result() for future in waiting)]
        else:  # compilers work best alone
            results = [call() for call in calls]
            self._compiled = True
        leaves = zip(*results, strict=True)
        return tree_unflatten([self._together(i, leaf) for i, leaf in enumerate(leaves)], self._form)

    def _together(self, index: int, parts: tuple[Tensor, ...]) -> Tensor:
        return functools.reduce(torch.add, parts) if index < self._sums else torch.cat(parts)


def in_parts(
    recording: Recording, function: Callable[..., Any], arguments: tuple[Any, Any], threads: int
) -> Recording | ParallelRecording:
    """Return a recording to be compiled, or one of as many parts as there are threads and as are worth it.

    What draws random numbers stays in one part, else threads would take them in no certain order.
    """
    if threads == 1 or recording.draws:
        return recording
    tasks = tree_leaves(arguments[1])[0].shape[0]
    parts = min(threads, tasks, recording.matrix_operations() // _WORTH_A_THREAD)
    return ParallelRecording(function, arguments, parts) if parts > 1 else recording


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    # In each, operations have that thread alone.
    return ThreadPoolExecutor(count, "lightning_meta", initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has no such threads
