"""Calls that are shared out among threads.

The threads of a tensor library meet after every operation: with small operations they gain little, and lose much once
another process keeps one of them waiting. These meet once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

# Which share of the calls, their results, and what was raised instead.
_Outcome = tuple[int, list[Any], BaseException | None]


def share_out(calls: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """Make the calls, every ``workers``-th in the same thread, and return their results in order.

    Args:
        calls: What to call, without arguments.
        workers: The number of threads, with this one among them; their operations share the tensor library's threads.
    """
    each = _share(workers)
    used = min(workers, len(calls))

    def some(first: int) -> _Outcome:
        if torch.get_num_threads() != each:
            torch.set_num_threads(each)
        try:
            return first, [call() for call in calls[first::used]], None
        except BaseException as error:
            return first, [], error

    outcomes: SimpleQueue[_Outcome] = SimpleQueue()
    while len(_others) < used - 1:
        _others.append(_Worker(f"lightning_meta {len(_others)}"))
    with fewer_threads(workers):
        for first in range(1, used):
            _others[first - 1].jobs.put((partial(some, first), outcomes))
        done = sorted([some(0), *(outcomes.get() for _ in range(1, used))])
    for _, _, error in done:
        if error is not None:
            raise error
    return [done[i % used][1][i // used] for i in range(len(calls))]


@contextmanager
def fewer_threads(workers: int) -> Iterator[None]:
    """Inside the block an operation uses its share of the tensor library's threads."""
    threads = torch.get_num_threads()
    if _share(workers) == threads:
        yield
        return
    torch.set_num_threads(_share(workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _share(workers: int) -> int:
    return max(1, torch.get_num_threads() // workers)


class _Worker(threading.Thread):
    """Makes one call after another. An executor's threads do more Python after each, while others wait for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.jobs: SimpleQueue[tuple[Callable[[], _Outcome], SimpleQueue[_Outcome]]] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            call, outcomes = self.jobs.get()
            outcomes.put(call())
            del call, outcomes  # else they stay until the next


_others: list[_Worker] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_others.clear)  # a forked process has no such threads
