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

# Which call, its result, and what was raised instead.
_Outcome = tuple[int, Any, BaseException | None]


def share_out(calls: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """Make each call in a thread of its own, the first in this one, and return their results in order.

    Args:
        calls: What to call, without arguments; at most as many as workers.
        workers: Among how many threads to share out those of the tensor library.
    """
    each = _share(workers)

    def outcome(index: int) -> _Outcome:
        if torch.get_num_threads() != each:
            torch.set_num_threads(each)
        try:
            return index, calls[index](), None
        except BaseException as error:
            return index, None, error

    outcomes: SimpleQueue[_Outcome] = SimpleQueue()
    while len(_others) < len(calls) - 1:
        _others.append(_Worker(f"lightning_meta {len(_others)}"))
    with fewer_threads(workers):
        for index in range(1, len(calls)):
            _others[index - 1].jobs.put((partial(outcome, index), outcomes))
        results: list[Any] = [None] * len(calls)
        errors = []
        for index, result, error in (outcome(0), *(outcomes.get() for _ in calls[1:])):
            results[index] = result
            errors += [] if error is None else [error]
    if errors:
        raise errors[0]
    return results


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
