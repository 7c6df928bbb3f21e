"""Calls that several threads share.

The threads of a tensor library wait for each other after every operation: with small operations they gain little, and
lose much once another process delays one of them. These wait once.
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

_Outcome = tuple[int, Any, BaseException | None]  # the call's index, its result, what it raised
_Job = tuple[Callable[[], _Outcome], SimpleQueue[_Outcome]]


def share_out(calls: Sequence[Callable[[], Any]], workers: int) -> list[Any]:
    """Make each call in a thread of its own, the first in this one, and return their results in order.

    At most ``workers`` calls share the tensor library's threads.
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
        jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=_work, args=(jobs,), name=f"lightning_meta {len(_others)}", daemon=True).start()
        _others.append(jobs)
    with fewer_threads(workers):
        for index in range(1, len(calls)):
            _others[index - 1].put((partial(outcome, index), outcomes))
        done = [outcome(0), *(outcomes.get() for _ in calls[1:])]
    for _, _, error in done:
        if error is not None:
            raise error
    return [result for _, result, _ in sorted(done, key=lambda each: each[0])]


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


def _work(jobs: SimpleQueue[_Job]) -> None:
    """Make one call after another; an executor's threads run more Python after each, for which others wait."""
    while True:
        call, outcomes = jobs.get()
        outcomes.put(call())
        del call, outcomes  # else they stay until the next job


_others: list[SimpleQueue[_Job]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_others.clear)  # a forked process has no such threads
