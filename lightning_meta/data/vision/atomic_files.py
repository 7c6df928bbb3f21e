"""Files that appear under their name only when they are complete, also when several processes write them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a new file beside ``target`` that takes its place only if the block ends without an exception."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with _in_use(partial):
            with partial.open("wb") as file:
                yield file
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(target: Path) -> None:
    """Remove the partial files beside ``target`` of processes that were killed while they wrote it."""
    if fcntl is None:
        return
    with suppress(OSError):
        for partial in target.parent.glob(f".{target.name}.{'[0-9a-f]' * 32}"):
            with suppress(OSError), partial.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a process writes it
                partial.unlink()


@contextmanager
def _in_use(partial: Path) -> Iterator[None]:
    """Create a file and lock it, by which `remove_leftovers` tells it from one whose process was killed."""
    while True:
        with partial.open("xb") as lock:
            if fcntl is None:
                lock.close()  # Windows does not replace open files
            else:
                with suppress(OSError):  # a file system without locks; there leftovers stay
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if partial.exists():  # else another process took it for a leftover before it was locked
                yield
                return
