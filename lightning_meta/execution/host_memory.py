"""How the C library treats memory that a step on the CPU has freed."""

from __future__ import annotations

import functools

import torch

# The largest that glibc takes as a sign of what to keep; twice as much stays with the process.
_LARGEST_SIGN = 31 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep tens of mebibytes that it frees, rather than return them and fetch them again.

    Without it a step of a convolutional network can spend a third of its time on page faults. glibc keeps as much as
    twice the largest block that was freed (``mallopt(3)``, ``M_MMAP_THRESHOLD``), so one block is allocated, never
    touched, and freed. Elsewhere this does nothing.
    """
    torch.empty(_LARGEST_SIGN, dtype=torch.uint8)
