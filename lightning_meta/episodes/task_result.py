"""What goes into and comes out of a per-task function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.episodes.trees import map_leaves

MetaParameters = Mapping[str, Tensor]


class TaskResult(NamedTuple):
    """What one task reports; with a leading task dimension, what a batch does.

    Attributes:
        loss: The loss, a scalar.
        outputs: The model's output on the query set after each recorded number of steps,
            ``[recorded, query, ...]``; the last is the adapted model's.
        support_losses: The support loss before each inner step, ``[steps]``.
        samples: In evaluation, the predictive distribution after the last step: the fields of `Samples` by name.
        novelty: In evaluation of tasks with ``ood_x``, kinds of uncertainty about the queries,
            ``[query]``, and about the examples of other classes, ``[ood]``, seen together.
        diagnostics: Scalars that tell how the algorithm fared, by name; training logs their means.
        carried: A pytree of what the algorithm keeps for the next batch; see `TaskLearner.after_batch`.
    """

    loss: Tensor
    outputs: Tensor
    support_losses: Tensor
    samples: Mapping[str, Tensor] = {}
    novelty: Mapping[str, tuple[Tensor, Tensor]] = {}
    diagnostics: Mapping[str, Tensor] = {}
    carried: Any = ()


def merge_results(pieces: list[tuple[Tensor | None, TaskResult]], query: int) -> TaskResult:
    """Put the pieces of a batch together, in the order of its tasks.

    Args:
        pieces: Task indices and the tasks' reports; None: the pieces are in order.
        query: The batch's number of queries; shorter outputs are padded with zeros.
    """
    results = [_padded(result, query) for _, result in pieces]
    if len(pieces) == 1 and pieces[0][0] is None:
        return results[0]
    together = map_leaves(lambda *parts: torch.cat(parts), *results)
    indices = [own for own, _ in pieces if own is not None]
    if not indices:
        return together
    order = torch.cat(indices).argsort()
    return map_leaves(lambda leaf: leaf[order.to(leaf.device)], together)


def _padded(result: TaskResult, query: int) -> TaskResult:
    if result.outputs.shape[2] == query:
        return result
    return result._replace(
        outputs=_pad(result.outputs, 2, query),
        samples={name: _pad(leaf, 2, query) for name, leaf in result.samples.items()},
        novelty={name: (_pad(inside, 1, query), ood) for name, (inside, ood) in result.novelty.items()},
    )


def _pad(leaf: Tensor, dim: int, size: int) -> Tensor:
    missing = size - leaf.shape[dim]
    if missing == 0:
        return leaf
    return torch.cat([leaf, leaf.new_zeros(*leaf.shape[:dim], missing, *leaf.shape[dim + 1 :])], dim=dim)
