"""Comparing what was captured or compiled with the function itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# Far above rounding, which compilers change, and far below what a missing operation would change.
_TOLERANCE = 1e-2


class RandomState:
    """The state of torch's random generators, to draw from it again."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._states = self._now()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from this state inside the block; after it the generators are as before."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    def moved(self) -> bool:
        """Whether random numbers were drawn since."""
        return not all(map(torch.equal, self._states, self._now()))

    def _now(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]


def agree(found: Any, expected: Any, slack: float = 1.0) -> bool:
    """Whether results are close, part by part; in a part, small tensors are compared on the scale of the largest."""
    for ours, theirs in zip(found, expected, strict=True):
        distance = size = 0.0
        for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
            if a is None:
                continue
            finite = b.isfinite()  # logits of absent classes can be -inf
            if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
                return False
            distance += float((a[finite].double() - b[finite].double()).norm())
            size += float(b[finite].double().norm())
        if not distance <= slack * _TOLERANCE * size:
            return False
    return True
