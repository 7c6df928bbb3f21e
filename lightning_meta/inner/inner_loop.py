"""Where an inner loop stands, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class InnerStep(NamedTuple):
    """Where the inner loop stands.

    Attributes:
        state: What the task has adapted so far; its form is the algorithm's own.
        support_loss: The loss from which the step to this state was taken; None before the first step.
    """

    state: Any
    support_loss: Tensor | None


def run_through(loop: Iterable[InnerStep]) -> tuple[Any, Tensor]:
    """Run an inner loop to its end and keep the last state only.

    Returns:
        The last state, and the support loss before each step, ``[steps]``.
    """
    losses = []
    for step in loop:
        state, loss = step
        losses += [] if loss is None else [loss]
    return state, torch.stack(losses) if losses else torch.zeros(0)
