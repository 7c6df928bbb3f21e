"""How the C library treats memory that a step on the CPU has freed."""

import functools

import torch

# The largest block that makes glibc raise its threshold; the process then keeps twice as much.
_LARGEST_BLOCK = 31 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep tens of mebibytes that it frees, instead of returning them to the system.

    Else page faults can take a third of a convolutional network's step. glibc keeps up to twice the largest block that
    was freed (``mallopt(3)``, ``M_MMAP_THRESHOLD``), so one block is allocated, left untouched, and freed. With other C
    libraries this does nothing.
    """
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)
