"""The steps of an inner loop."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class InnerStep(NamedTuple):
    """The state after a number of inner steps.

    Attributes:
        state: The adapted state, in the algorithm's own form.
        support_loss: The support loss before the last step; None before the first step.
    """

    state: Any
    support_loss: Tensor | None


def run_through(loop: Iterable[InnerStep]) -> tuple[Any, Tensor]:
    """Run an inner loop; return its last state and the support loss before each step, ``[steps]``."""
    losses = []
    for step in loop:
        state, loss = step
        losses += [] if loss is None else [loss]
    return state, torch.stack(losses) if losses else torch.zeros(0)
