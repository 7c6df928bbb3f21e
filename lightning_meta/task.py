"""What goes into and comes out of a per-task function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

MetaParameters = Mapping[str, Tensor]


class InnerStep(NamedTuple):
    """Where the inner loop stands.

    Attributes:
        state: What the task has adapted so far; its form is the algorithm's own.
        support_loss: The loss from which the step to this state was taken; None before the first step.
    """

    state: Any
    support_loss: Tensor | None


class TaskResult(NamedTuple):
    """What one task reports; with a leading task dimension, what a batch does.

    Attributes:
        loss: The loss, a scalar.
        outputs: The model's output on the query set after each recorded number of steps,
            ``[recorded, query, ...]``; the last is the adapted model's.
        support_losses: The support loss before each inner step, ``[steps]``.
        diagnostics: Scalars that tell how the algorithm fared, by name; training logs their means.
        carried: A pytree of what the algorithm keeps for the next batch; see `MetaLearner.after_batch`.
    """

    loss: Tensor
    outputs: Tensor
    support_losses: Tensor
    diagnostics: Mapping[str, Tensor] = {}
    carried: Any = ()


def merge_results(pieces: list[tuple[Tensor, TaskResult]], query: int) -> TaskResult:
    """Put the pieces of a batch together, in the order of its tasks.

    Args:
        pieces: Task indices and the tasks' reports.
        query: The batch's number of queries; shorter outputs are padded with zeros.
    """
    order = torch.cat([indices for indices, _ in pieces]).argsort()
    results = [result._replace(outputs=_pad_queries(result.outputs, query)) for _, result in pieces]
    return tree_map(lambda *parts: torch.cat(parts)[order.to(parts[0].device)], *results)


def _pad_queries(outputs: Tensor, query: int) -> Tensor:
    missing = query - outputs.shape[2]
    if missing == 0:
        return outputs
    return torch.cat([outputs, outputs.new_zeros(*outputs.shape[:2], missing, *outputs.shape[3:])], dim=2)
