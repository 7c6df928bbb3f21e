"""Comparing what was recorded or compiled with the function itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# Far above rounding, which compilers change, and far below what something left out would make.
_TOLERANCE = 1e-2


class RandomState:
    """The state of torch's random generators, to draw from it again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._devices = [device] if device.type == "cuda" else []
        self._states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside the block, random numbers are drawn from this state; after it the generators are as before."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._states[0])
            for device, state in zip(self._devices, self._states[1], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    def moved(self) -> bool:
        """Whether random numbers were drawn since."""
        now = RandomState(self._device)._states
        return not all(map(torch.equal, (self._states[0], *self._states[1]), (now[0], *now[1])))


def agree(found: Any, expected: Any, slack: float = 1.0) -> bool:
    """Whether results are close, part by part; in a part, small tensors are compared on the scale of the largest."""
    for ours, theirs in zip(found, expected, strict=True):
        distance = size = 0.0
        for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
            if a is None:
                continue
            finite = b.isfinite()
            if not torch.equal(
                a[~finite].nan_to_num(), b[~finite].nan_to_num()
            ):  # such as -inf logits of absent classes
                return False
            distance += float((a[finite].double() - b[finite].double()).norm())
            size += float(b[finite].double().norm())
        if not distance <= slack * _TOLERANCE * size:
            return False
    return True
