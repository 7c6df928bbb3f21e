"""Attention that the inner loop can differentiate twice."""

import os
import threading
from contextlib import ContextDecorator, ExitStack

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class _WithoutKernels(ContextDecorator):
    """Blocks without fused kernels; torch's settings hold for all threads, so the last block to end restores them."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock, self._blocks, self._settings = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                mha = torch.backends.mha
                self._settings.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
                mha.set_fastpath_enabled(False)
                self._settings.enter_context(sdpa_kernel(SDPBackend.MATH))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                self._settings.close()


_without_kernels = _WithoutKernels()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_without_kernels.reset)  # the threads with blocks are not in the forked process


def differentiable_attention() -> _WithoutKernels:
    """Switch off attention's fused kernels inside the block.

    They have no second derivative; the one for transformer encoders in evaluation has no first either, and cannot be
    vectorized over tasks.
    """
    return _without_kernels
