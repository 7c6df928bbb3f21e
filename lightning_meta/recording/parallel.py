"""Calls that are shared out among threads.

The threads of a tensor library meet after every operation: with small operations they gain little, and lose much once
another process keeps one of them waiting. These meet once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch


def share_out(calls: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """Make the calls, every ``workers``-th in the same thread, and return their results in order.

    Args:
        calls: What to call, without arguments.
        workers: The number of threads, with this one among them; their operations share the tensor library's threads.
    """
    each = _share(workers)
    used = min(workers, len(calls))

    def some(first: int) -> list[Any]:
        if torch.get_num_threads() != each:
            torch.set_num_threads(each)
        return [call() for call in calls[first::used]]

    with fewer_threads(workers):
        others = [_pool(workers - 1).submit(some, worker) for worker in range(1, used)]
        try:
            shares = [some(0)]
        finally:
            wait(others)
    shares += [other.result() for other in others]
    return [shares[i % used][i // used] for i in range(len(calls))]


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


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "lightning_meta")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no such threads
