"""Attention that the inner loop can differentiate twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Switch:
    """Torch's settings hold for all threads: the first block switches the kernels off, the last one on again."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._lock, self._blocks, self._settings = threading.Lock(), 0, ExitStack()

    def off(self) -> None:
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._settings.callback(
                    torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
                )
                torch.backends.mha.set_fastpath_enabled(False)
                self._settings.enter_context(sdpa_kernel(SDPBackend.MATH))

    def on(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                self._settings.close()


_switch = _Switch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_switch.renew)


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Switch off attention's fused kernels inside the block.

    They have no second derivative, and the one for transformer encoders in evaluation has none at all and
    cannot be vectorized over tasks.
    """
    _switch.off()
    try:
        yield
    finally:
        _switch.on()
