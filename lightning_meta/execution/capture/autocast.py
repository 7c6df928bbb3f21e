"""The mixed precision in force. Recordings contain its conversions, so that they are repeated without it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch


class Autocast(NamedTuple):
    """The mixed precision in force: none where there is no dtype."""

    device_type: str
    dtype: torch.dtype | None

    def off(self) -> AbstractContextManager[Any]:
        """A context without it."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, enabled=False)


def autocast_now(device_type: str) -> Autocast:
    """Return what is in force for a type of device."""
    enabled = torch.is_autocast_enabled(device_type)
    return Autocast(device_type, torch.get_autocast_dtype(device_type) if enabled else None)
